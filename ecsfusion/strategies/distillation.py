"""Distillation: each modality, trained alone, teaches its encoder in a joint model that starts anew."""

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
    """Unimodal teachers (UMT, Du et al. 2023, arXiv 2305.01233).

        L = CE(z) + weight * sum_m MSE(h_m, h_m of the teacher), the mean over rows and entries

    For a share of the budget every modality trains alone; the result are the teachers, whose weights are in the run's
    folder "unimodal". Then everything goes back to its initial weights, and the rest of the budget is joint training. A
    row that lacks a modality counts as zero for it.

    Args:
        modalities: any number.
        share: of the budget that the teachers take.
        weight: of the distance to the teachers. No value of the authors could be checked: tune it.
    """

    name = "unimodal-distillation"
    stages = "two-stage"
    auxiliary_weight = 0.0
    has_own_loss = True

    def __init__(self, modalities: Sequence[str], *, share: float = 0.5, weight: float = 1.0) -> None:
        super().__init__(modalities)
        check_share(share)
        if not weight >= 0:
            raise ValueError(f"weight is {weight}; it must not be negative.")
        self.share, self.weight = share, weight
        # No part of the model: neither counted nor saved with it.
        self.teachers: dict[str, nn.Module] = {}

    def make_rule(self, context: RunContext) -> Rule:
        """All modalities train alone for that share, then everything starts anew."""
        return PretrainThenReset(self.modalities, max_unimodal_share=self.share).in_context(context)

    def begin_stage(self, trainer: TrainerOfStrategy) -> None:
        """Call the teachers, when joint training begins or goes on."""
        if trainer.model.stage != "joint":
            return
        kept = trainer.load_folder("unimodal").eval().requires_grad_(False)
        self.teachers = {name: kept.encoders[name] for name in self.modalities}
        # Teachers compute as their pupils do.
        self._autocast = trainer.accelerator.autocast

    def prepare_inputs(self, model: FusionForClassification, inputs: dict[str, Any]) -> dict[str, Any]:
        """Remember the batch, for the teachers; it stays as it is."""
        self._inputs = inputs
        return inputs

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> Tensor:
        """CE(z) and the distances to the teachers."""
        embeddings, loss = outputs.embeddings or {}, cast("Tensor", outputs.loss)
        for name in embeddings:
            rows = rows_of(outputs, name)
            if len(rows):
                with torch.no_grad(), self._autocast():
                    taught = model.embed(name, take(self._inputs[name], rows), self.teachers[name])
                distance = (embeddings[name][rows].float() - taught.float()).square().mean()
                loss = loss + self.weight * distance * (len(rows) / len(labels))
        self._inputs = {}
        return loss
