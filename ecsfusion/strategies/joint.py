"""Joint training in one stage: plain, with unimodal losses, with modality dropout, or with a rate per modality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ecsfusion.strategies.strategy import Strategy

if TYPE_CHECKING:
    from ecsfusion.modeling import FusionForClassification


class Joint(Strategy):
    """Train jointly on the loss of the fused head alone, CE(z)."""

    name = "joint"
    stages = "joint"
    auxiliary_weight = 0.0


class JointAuxiliary(Strategy):
    """Train jointly with unimodal losses ("multi-loss"): CE(z) + auxiliary_weight * sum_m CE(z_m)."""

    name = "joint-auxiliary"
    stages = "joint"


class ModalityDropout(Strategy):
    """Train jointly, and leave one random modality out of a row with a given probability.

    `FusionForClassification` describes what a missing modality means for the model and for the loss.

    Args:
        modalities: names of the modalities of the model.
        probability: probability that a row loses a modality. A row that has only one modality keeps it.

    Raises:
        ValueError: a probability outside of [0, 1].
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
        masks = inputs.get("present") or {}
        all_rows = torch.ones(size, dtype=torch.bool)
        present = torch.stack([masks[name].cpu() if name in masks else all_rows for name in names])
        # One random number per row decides whether the row loses a modality, and which of those that it has.
        drawn, count = torch.rand(size), present.sum(dim=0)
        position = (drawn / max(self.probability, 1e-12) * count).long()
        dropped = (present.cumsum(dim=0) - 1 == position) & present & (drawn < self.probability) & (count > 1)
        left = {name: mask.to(labels.device) for name, mask in zip(names, present & ~dropped, strict=True)}
        return {**inputs, "present": {**masks, **left}}


class RatePerModality(Strategy):
    """Train jointly, with a higher learning rate for the encoder of one modality that learns slowly.

    Args:
        modalities: names of the modalities of the model.
        slow: the modality that learns slowly.
        factor: its learning rate is `learning_rate` times this factor; 3 to 5 is usual.

    Raises:
        ValueError: `slow` is not one of the modalities, or the factor is not positive.
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
        """The learning rate of the slow modality; the others use `learning_rate`."""
        return {self.slow: self.factor * learning_rate}
