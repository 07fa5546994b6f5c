"""How much each modality contributes to an answer: Shapley values over the sets of modalities that are present.

The value v(S) of a set S is how good the answer from these modalities alone is; v of no modality is that of the class
frequencies. The contribution of a modality is what it adds to the value, on average over all orders in which modalities
could be added (Shapley 1953):

    phi_m = sum over S without m of |S|! (M - |S| - 1)! / M! * (v(S and m) - v(S))

The contributions of all modalities add up to v(all) - v(none).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from math import factorial

import torch
from torch import Tensor

from ecsfusion.model.names import FUSED
from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION
from ecsfusion.model.readout import Readout

MAX_MODALITIES = 6
"""With more modalities, the answers of more than 64 sets would be needed."""


def shapley_values(
    modalities: Sequence[str], value: Callable[[tuple[str, ...]], Tensor]
) -> dict[str, Tensor]:
    """The exact Shapley value of each modality.

    Args:
        modalities: names of all M modalities, at most `MAX_MODALITIES`.
        value: the value of a set of modalities, given as a tuple in the order of `modalities`; it is called once for
            each of the 2^M sets.

    Returns:
        By modality a tensor of the shape that `value` returns.

    Raises:
        ValueError: more than `MAX_MODALITIES`.
    """
    M = len(modalities)
    if M > MAX_MODALITIES:
        raise ValueError(
            f"the contributions of {M} modalities need the answers of {2**M:,} sets of them; they are computed for up "
            f"to {MAX_MODALITIES}."
        )
    values = {
        names: value(names) for size in range(M + 1) for names in itertools.combinations(modalities, size)
    }
    contributions = {}
    for name in modalities:
        steps = []
        for names in (names for names in values if name not in names):
            weight = factorial(len(names)) * factorial(M - len(names) - 1) / factorial(M)
            with_it = tuple(m for m in modalities if m in names or m == name)
            steps.append(weight * (values[with_it] - values[names]))
        contributions[name] = torch.stack(steps).sum(0)
    return contributions


def row_contributions(
    readout: Readout,
    heads: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    labels: Tensor | None = None,
    fuse: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The contribution of each modality to the answer for each row.

    Args:
        readout: of the model.
        heads: logits (B, C) by head, float64, the fused head's among them.
        present: which rows have a modality, (B,) bool, by modality.
        labels: (B,) class indices whose probability is explained, or (B, C) zeros and ones; None for what the model
            answers.
        fuse: from masks like `present` to the logits (B, C) of the fused head that sees no other modalities; it is
            called where the fused head answers rows that lack a modality (`Readout.fused_head_alone`).

    Returns:
        By modality (B,) bits, or in regression (B, C) in the unit of the targets.
    """
    kind = readout.problem_type
    everything = readout.answers(heads, present)
    targets = None
    if kind != REGRESSION:
        targets = (
            labels
            if labels is not None
            else everything > 0.5
            if kind == MULTI_LABEL
            else everything.argmax(1)
        )
        targets = targets.to(everything.device)

    def value(names: tuple[str, ...]) -> Tensor:
        given, seen = only(present, names), heads
        if fuse is not None and readout.fused_head_alone:
            seen = {**heads, FUSED: fuse(given)}
        answers = readout.answers(seen, given)
        return answers if targets is None else log2_probability(answers, targets, kind)

    return shapley_values(tuple(present), value)


def only(present: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The masks of rows that have no other modalities than these."""
    return {m: mask if m in names else torch.zeros_like(mask) for m, mask in present.items()}


def log2_probability(answers: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """The log2-probability (B,) that answers (B, C) give to the labels; with several labels a row, to all of them."""
    tiny = torch.finfo(answers.dtype).tiny
    if problem_type == MULTI_LABEL:
        return torch.where(labels > 0.5, answers, 1 - answers).clamp_min(tiny).log2().sum(dim=1)
    return answers.gather(1, labels.long()[:, None])[:, 0].clamp_min(tiny).log2()
