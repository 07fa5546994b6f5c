"""UMT: encoders that were trained alone are the teachers of the encoders in a joint model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ecsfusion.controller.pretrain_then_reset import PretrainThenReset
from ecsfusion.model.rows import take
from ecsfusion.strategies.strategy import Strategy, TrainerOfStrategy, check_share, rows_of

if TYPE_CHECKING:
    from ecsfusion.controller.rule import Rule, RunContext
    from ecsfusion.modeling import FusionForClassification, FusionOutput


class UnimodalDistillation(Strategy):
    """Train each modality alone, then a new joint model whose encoders imitate the trained ones (UMT, Du et al. 2023).

    Unimodal teachers, arXiv 2305.01233:

        L = CE(z) + weight * sum_m MSE(h_m, h_m of the teacher), the mean over rows and entries

    For a share of the budget every modality trains alone. The resulting encoders are the teachers; their weights are in
    the run's folder "unimodal". Then the model goes back to its initial weights, and the rest of the budget is joint
    training. A row that lacks a modality adds zero to the distance for it.

    Args:
        modalities: names of the modalities of the model.
        share: the share of the budget in which the teachers are trained.
        weight: weight of the distance to the teachers. The authors' value could not be found out, so tune it.

    Raises:
        ValueError: a share outside of (0, 1), or a negative weight.
    """

    name = "unimodal-distillation"
    not_sharded = "each process would hold the whole encoders of stage 1 as teachers"
    stages = "two-stage"
    auxiliary_weight = 0.0
    has_own_loss = True
    loss_trains_heads = False

    def __init__(self, modalities: Sequence[str], *, share: float = 0.5, weight: float = 1.0) -> None:
        super().__init__(modalities)
        check_share(share)
        if not weight >= 0:
            raise ValueError(f"weight is {weight}; it must not be negative.")
        self.share, self.weight = share, weight
        # The teachers are no part of the model, so they are neither counted nor saved with it.
        self.teachers: dict[str, nn.Module] = {}

    def make_rule(self, context: RunContext) -> Rule:
        """A rule by which all modalities train alone for the share, then go back to their initial weights."""
        return PretrainThenReset(self.modalities, max_unimodal_share=self.share)

    def begin_stage(self, trainer: TrainerOfStrategy) -> None:
        """Load the teachers, when joint training begins or goes on."""
        if trainer.model.stage != "joint":
            return
        trained = trainer.load_folder("unimodal").eval().requires_grad_(False)
        self.teachers = {name: trained.encoders[name] for name in self.modalities}
        # The teachers compute in the same precision as the model.
        self._autocast = trainer.accelerator.autocast

    def prepare_inputs(self, model: FusionForClassification, inputs: dict[str, Any]) -> dict[str, Any]:
        """Remember the batch for the teachers, and return it unchanged."""
        self._inputs = inputs
        return inputs

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> Tensor:
        """CE(z), plus the weighted distances to the teachers."""
        embeddings, loss = outputs.embeddings or {}, cast("Tensor", outputs.loss)
        for name in embeddings:
            rows = rows_of(outputs, name)
            if len(rows):
                with torch.no_grad(), self._autocast():
                    target = model.embed(name, take(self._inputs[name], rows), self.teachers[name])
                distance = (embeddings[name][rows].float() - target.float()).square().mean()
                loss = loss + self.weight * distance * (len(rows) / len(labels))
        self._inputs = {}
        return loss
