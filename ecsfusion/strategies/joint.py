"""Joint training in one stage: plain, with unimodal losses, with modalities dropped, with rates by modality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ecsfusion.strategies.strategy import Strategy

if TYPE_CHECKING:
    from ecsfusion.modeling import FusionForClassification


class Joint(Strategy):
    """Plain joint training: the loss of the fused head, CE(z), and nothing else."""

    name = "joint"
    stages = "joint"
    auxiliary_weight = 0.0


class JointAuxiliary(Strategy):
    """Joint training with unimodal losses ("multi-loss"): CE(z) + auxiliary_weight * sum_m CE(z_m)."""

    name = "joint-auxiliary"
    stages = "joint"


class ModalityDropout(Strategy):
    """Joint training in which a row loses one whole modality with a given probability (which one, by lot).

    What a missing modality means to model and loss: see `FusionForClassification`.

    Args:
        modalities: as everywhere.
        probability: that a row loses a modality. A row that has only one keeps it.
    """

    name = "modality-dropout"
    stages = "joint"
    auxiliary_weight = 0.0

    def __init__(self, modalities: Sequence[str], *, probability: float = 0.3) -> None:
        super().__init__(modalities)
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"probability is {probability}; it must be in [0, 1].")
        self.probability = probability

    def prepare_inputs(self, model: FusionForClassification, inputs: dict[str, Any]) -> dict[str, Any]:
        """Mark dropped modalities as missing."""
        labels = inputs["labels"]
        size, names = len(labels), [name for name in self.modalities if inputs.get(name) is not None]
        given = inputs.get("present") or {}
        everyone = torch.ones(size, dtype=torch.bool)
        there = torch.stack([given[name].cpu() if name in given else everyone for name in names])
        # The number drawn decides whether and which: one of the modalities that the row has.
        drawn, count = torch.rand(size), there.sum(dim=0)
        place = (drawn / max(self.probability, 1e-12) * count).long()
        lost = (there.cumsum(dim=0) - 1 == place) & there & (drawn < self.probability) & (count > 1)
        present = {name: mask.to(labels.device) for name, mask in zip(names, there & ~lost, strict=True)}
        return {**inputs, "present": {**given, **present}}


class RatePerModality(Strategy):
    """Joint training in which one encoder, the slow one, learns at a multiple of the rate.

    Args:
        modalities: as everywhere.
        slow: the modality that learns faster than `learning_rate` says.
        factor: how many times faster, 3 to 5 by custom.
    """

    name = "rate-per-modality"
    stages = "joint"
    auxiliary_weight = 0.0

    def __init__(self, modalities: Sequence[str], *, slow: str, factor: float = 3.0) -> None:
        super().__init__(modalities)
        if slow not in self.modalities:
            raise ValueError(f"slow is {slow!r}; it must be one of the modalities {list(self.modalities)}.")
        if not factor > 0:
            raise ValueError(f"factor is {factor}; it must be positive.")
        self.slow, self.factor = slow, factor

    def learning_rates(self, learning_rate: float) -> dict[str, float]:
        """The rate of the slow modality; the others keep theirs."""
        return {self.slow: self.factor * learning_rate}
