"""Diagnostic: a modality may carry a shortcut, because what it alone knows does not hold on another evaluation set."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from ecsfusion.diagnostics.finding import Finding
from ecsfusion.evaluation.measurement import Measurement

MIN_KEPT_SHARE = 0.5
"""The least share of its lead over chance that a head should keep on another set. Other data may be harder, but a head
that loses most of its lead relied on something that only the first set has. A lead is a share of what there is to gain,
so that a set of few classes, or mostly of one, can be compared; one of a single class cannot."""


def shortcut(
    validation: Measurement,
    other: Measurement,
    name_of_other: str,
    trained_heads: Collection[str] | None = None,
) -> Iterator[Finding]:
    """Find each modality that is unique on validation and whose head loses its lead over chance on another set.

    The head keeps less than `MIN_KEPT_SHARE` of the lead, and the loss is beyond three standard errors. Every other
    evaluation set can be compared, because nothing is lost on a set that is like validation.

    Args:
        validation: the measurement of the trained model on the probe set.
        other: the measurement of the same model on another set.
        name_of_other: the name of the other set, for the sentence.
        trained_heads: the modalities whose own heads are trained; None for all. The scores of others mean nothing.

    Yields:
        One finding for each such modality.
    """
    information = validation.information
    gains = 1 - validation.scale.chance, 1 - other.scale.chance
    if information is None or not all(gains):
        return
    for name, unique in information.unique.items():
        if trained_heads is not None and name not in trained_heads:
            continue
        if name not in other.scores:
            # No row of the other set has this modality.
            continue
        score, other_score = validation.scores[name], other.scores[name]
        lead, other_lead = (
            (score - validation.scale.chance) / gains[0],
            (other_score - other.scale.chance) / gains[1],
        )
        noise = math.hypot(
            validation.scale.error(score) / gains[0], other.scale.error(other_score) / gains[1]
        )
        is_unique, word = unique > information.floor[name], validation.score_in_words
        if is_unique and other_lead < MIN_KEPT_SHARE * lead and lead - other_lead > 3 * noise:
            yield Finding(
                "shortcut",
                f"{name}, {name_of_other}",
                f"{name} may carry a shortcut: it says {unique:.2f} bits about the label that no other modality says, "
                f"with an {word} of {score:.3f} on validation, but {other_score:.3f} on {name_of_other} (chance "
                f"{other.scale.chance:.3f}); look at what the model answers there without {name}, and leave it out "
                "if that is better.",
            )
