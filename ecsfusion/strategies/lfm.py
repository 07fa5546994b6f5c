"""LFM: the modalities first learn to agree, then to fit the labels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ecsfusion.strategies.strategy import Strategy, TrainerOfStrategy

if TYPE_CHECKING:
    from ecsfusion.modeling import FusionForClassification, FusionOutput

LABEL_WEIGHT = (0.204623704, 0.670945454, 4.91958228, -23.43579328, 35.81367776, -17.27096016)
"""Of the authors' fit for CREMA-D over 200 epochs, with the epoch divided by 200."""


class LFM(Strategy):
    """Let the modalities first agree with one another, and then more and more fit the labels (LFM, Yang et al. 2024).

    Facilitating multimodal classification via dynamically learning modality gap, NeurIPS 2024:

        L = 2 (a CE(z, y) + (1 - a) G),   z = mean of the z_m ("late-average")
        G = mean over the rows of (KL(m | p) + KL(m | q)) / 2,   p, q = softmax of z_1, z_2,   m = (p + q) / 2
        a = sum_i label_weight[i] t^i at the share t of the budget that is over, kept within [0, 1]

    The paper learns a in a second level of optimization, or lets it follow a fixed curve. The authors' code trains with
    a polynomial that was fitted to what had been learned on CREMA-D, from a = 0.20 at the start over 0.54 in the middle
    to 0.90; it is the default here. G is what that code minimizes for images and sounds; for the contrastive loss that
    the paper names, no code was found. With more than two modalities, which that code does not have, G is the mean over
    all pairs. A row counts in a pair where it has both modalities, otherwise as zero.

    Args:
        modalities: names of the modalities of the model.
        label_weight: the coefficients of a, the constant one first.

    Raises:
        ValueError: no coefficient, or one that is not finite.
    """

    name = "lfm"
    stages = "joint"
    auxiliary_weight = 0.0
    only_single_label = "it compares distributions over the classes"
    only_fusion = "late-average"
    has_own_loss = True

    def __init__(self, modalities: Sequence[str], *, label_weight: Sequence[float] = LABEL_WEIGHT) -> None:
        super().__init__(modalities)
        if not label_weight or not all(map(math.isfinite, label_weight)):
            raise ValueError(
                f"label_weight is {list(label_weight)}; give the coefficients of a polynomial, such as [0.5]."
            )
        self.label_weight = tuple(label_weight)

    def begin_stage(self, trainer: TrainerOfStrategy) -> None:
        """Remember the trainer, which knows how much of the budget is over."""
        self._trainer = trainer

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> Tensor:
        """2 (a CE(z) + (1 - a) G)."""
        state, present = self._trainer.state, outputs.present or {}
        weight = self.weight(state.global_step / max(state.max_steps, 1))
        fused = model.fused_loss(outputs.logits, labels, present)  # type: ignore[arg-type]
        return 2.0 * (weight * fused + (1.0 - weight) * self.gap(outputs, len(labels)))

    def weight(self, progress: float) -> float:
        """The weight a of the labels at a share of the budget, between 0 and 1."""
        value = sum(factor * progress**power for power, factor in enumerate(self.label_weight))
        return min(max(value, 0.0), 1.0)

    def gap(self, outputs: FusionOutput, size: int) -> Tensor:
        """G of a batch of `size` rows, a scalar."""
        logits, present = outputs.unimodal_logits or {}, outputs.present or {}
        some = next(iter(logits.values()))
        gaps = []
        for one, other in itertools.combinations(logits, 2):
            both = (present[one] & present[other]).nonzero()[:, 0]
            gaps.append(disagreement(logits[one][both], logits[other][both]).sum() / size)
        return torch.stack(gaps).mean() if gaps else some.new_zeros(())


def disagreement(one: Tensor, other: Tensor) -> Tensor:
    """(KL(m | p) + KL(m | q)) / 2 in nats of each row, (N,): m = (p + q) / 2, p and q = softmax of logits (N, C)."""
    log_p, log_q = one.float().log_softmax(dim=1), other.float().log_softmax(dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    return (log_m.exp() * (log_m - 0.5 * (log_p + log_q))).sum(dim=1)
