"""The heads of a model in tables and sentences: their labels, their scores, and how they compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ecsfusion.evaluation.measurement import Measurement
from ecsfusion.evaluation.rounding import told_apart
from ecsfusion.model.names import CALIBRATED, FUSED

COMBINED_HEADS = {FUSED: "fused head", CALIBRATED: "calibrated combination"}
"""What the heads that combine all modalities are called."""


def head_label(head: str) -> str:
    """What a head is called in a table: "image alone", "fused head" or "calibrated combination"."""
    return COMBINED_HEADS.get(head, f"{head} alone")


def score_shares(measurement: Measurement) -> dict[str, float]:
    """The score of every head as a share from 0 to 1: an R^2 below 0, worse than the mean, counts as 0."""
    return {head: max(score, 0.0) for head, score in measurement.scores.items()}


def compare_heads(
    accuracy: Mapping[str, Mapping[str, float]],
    modalities: Sequence[str],
    rows: Mapping[str, int],
    last_only: bool = False,
) -> str:
    """Whether the fused head and the calibrated combination are better than their parts, split by split.

    Args:
        accuracy: `{split: {head: accuracy}}`, accuracies between 0 and 1.
        modalities: names of the modalities.
        rows: number of rows by split, so that a difference is also counted in rows; a split may be absent.
        last_only: whether only the last split is compared.
    """
    sentences = []
    for split, heads in list(accuracy.items())[-1 if last_only else 0 :]:
        alone = {head: heads[head] for head in modalities if head in heads}
        parts = {head: heads[head] for head in (*modalities, FUSED) if head in heads}
        if alone and FUSED in heads:
            sentences.append(_compare(split, rows.get(split), FUSED, heads[FUSED], alone))
        if parts and CALIBRATED in heads:
            sentences.append(_compare(split, rows.get(split), CALIBRATED, heads[CALIBRATED], parts))
    return " ".join(sentences)


def percent(share: float) -> str:
    """A share in percent, with one decimal."""
    return f"{100 * share:.1f} %"


def _compare(split: str, rows: int | None, head: str, value: float, parts: Mapping[str, float]) -> str:
    best = max(parts, key=lambda part: parts[part])
    figures = " against ".join(told_apart(value, parts[best], digits=1, percent=True))
    if value == parts[best]:
        return (
            f"On {split} the {head_label(head)} equals {_with_article(best)}, the best of its parts: "
            f"{percent(value)}."
        )
    gap = f" ({round(abs(value - parts[best]) * rows):,} of {rows:,} rows)" if rows else ""
    if value < parts[best]:
        return f"**On {split} the {head_label(head)} is worse than {_with_article(best)}: {figures}{gap}.**"
    return (
        f"On {split} the {head_label(head)} is better than {_with_article(best)}, the best of its parts: "
        f"{figures}{gap}."
    )


def _with_article(head: str) -> str:
    return f"the {head_label(head)}" if head in COMBINED_HEADS else head_label(head)
