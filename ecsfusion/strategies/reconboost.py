"""ReconBoost: the modalities take turns, and each learns most what the others do not know."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from ecsfusion.model.rows import take
from ecsfusion.strategies.strategy import Strategy, TrainerOfStrategy, rows_of

if TYPE_CHECKING:
    from ecsfusion.modeling import FusionForClassification, FusionOutput


class ReconBoost(Strategy):
    """Train the modalities in turn, each most on rows that the others get wrong, then all (ReconBoost, 2024).

    Boosting can achieve modality reconcilement, Hua et al., ICML 2024, arXiv 2405.09321. A run has `rounds` rounds; in
    each, every modality m has a stage of two halves of equal length:

        first half, only modality m trains:   L = mean over the rows of (fit - reconcile q) CE(z_m, y) / C
                                              q = softmax of (sum of the others' logits)[y], without a gradient
        second half, all train together:      L = CE(sum of all z_m, y)          (global rectification)

    The prediction is the softmax of the sum; the fused head "late-average" answers with the mean, which ranks the
    classes alike. C is the number of classes, by which the authors' code divides. Two things of that code are left out,
    which change no answer: a factor of the sum, which is learned and begins at 1, and the distance between the softmax
    of the modality and of the one before (memory consolidation), which has no gradient there. Each modality has a head
    of its own, as in that code without `common_space`. The authors' stages last four epochs a half, and begin with
    modalities that were trained alone, "to enhance the stability"; here they begin untrained. The others are run in
    evaluation mode, so that this does not change their batch statistics.

    A step of the first half trains one modality, one of the second all of them. To train each modality for as many
    steps as in joint training, the number of steps must be 2 M / (M + 1) times as large (`modalities_per_step`).

    Args:
        modalities: names of the modalities of the model.
        fit: weight of a row's error; the authors use 3 to 5.
        reconcile: how much less a row weighs that the others get right.
        rounds: how often each modality has its stage.

    Raises:
        ValueError: an option that is out of its range.
    """

    name = "reconboost"
    stages = "joint"
    auxiliary_weight = 0.0
    only_single_label = "a row's weight is the probability of its class"
    only_fusion = "late-average"
    not_sharded = "it runs encoders apart from the model"
    has_own_loss = True

    def __init__(
        self, modalities: Sequence[str], *, fit: float = 5.0, reconcile: float = 1.0, rounds: int = 4
    ) -> None:
        super().__init__(modalities)
        if not fit > 0:
            raise ValueError(f"fit is {fit}; it must be positive.")
        if not 0.0 <= reconcile <= fit:
            raise ValueError(f"reconcile is {reconcile}; it must be in [0, fit], which is {fit}.")
        if rounds < 1:
            raise ValueError(f"rounds is {rounds}; give at least 1.")
        self.fit, self.reconcile, self.rounds = fit, reconcile, rounds
        self.modalities_per_step = (1 + len(self.modalities)) / 2
        self._trainer: TrainerOfStrategy | None = None
        self._boosted: str | None = None
        """The modality that the present batch trains alone; None if it trains all."""
        self._weights = torch.zeros(0)
        """fit - reconcile q of the rows (n,) that it is trained on."""
        self._share = 1.0
        """The share of these among the rows of the batch."""

    def begin_stage(self, trainer: TrainerOfStrategy) -> None:
        """Remember the trainer, which knows how much of the budget is over.

        Raises:
            ValueError: the run has fewer steps than halves of stages.
        """
        halves, steps = 2 * self.rounds * len(self.modalities), trainer.state.max_steps
        if 0 < steps < halves:
            raise ValueError(
                f"rounds is {self.rounds}, for which a run needs {halves} steps, and this one has {steps}; lower "
                "rounds."
            )
        self._trainer = trainer

    def turn(self, step: int, max_steps: int) -> str | None:
        """The modality that a step trains alone; None if it trains all of them.

        Args:
            step: the number of optimizer steps before it.
            max_steps: of the run.
        """
        half = step * 2 * self.rounds * len(self.modalities) // max(max_steps, 1)
        return None if half % 2 else self.modalities[half // 2 % len(self.modalities)]

    def prepare_inputs(self, model: FusionForClassification, inputs: dict[str, Any]) -> dict[str, Any]:
        """In a first half ask the other modalities, then keep the one that trains and the rows that have it."""
        state = cast("TrainerOfStrategy", self._trainer).state
        self._boosted = name = self.turn(state.global_step, state.max_steps)
        mask = (inputs.get("present") or {}).get(name)
        if name is None or inputs.get(name) is None or (mask is not None and not mask.any()):
            # All modalities train, or no row has the one that would: the loss will be zero.
            return inputs
        everyone = torch.ones(len(inputs["labels"]), dtype=torch.bool, device=inputs["labels"].device)
        rows = (everyone if mask is None else mask.to(everyone.device)).nonzero()[:, 0]
        labels = inputs["labels"][rows]
        q = self.others(model, inputs, name)[rows].softmax(dim=1).gather(1, labels[:, None])[:, 0]
        self._weights, self._share = self.fit - self.reconcile * q, len(rows) / len(everyone)
        left_out = {"present", *self.modalities} - {name}
        kept = {key: value for key, value in inputs.items() if key not in left_out}
        return {**kept, name: take(inputs[name], rows), "labels": labels}

    @torch.no_grad()
    def others(self, model: FusionForClassification, inputs: dict[str, Any], name: str) -> Tensor:
        """The sum (B, C) of the logits of all other modalities that a row has; zero where it has none."""
        labels, present = inputs["labels"], inputs.get("present") or {}
        total = torch.zeros(len(labels), model.config.num_labels, device=labels.device)
        autocast = self._trainer.accelerator.autocast if self._trainer is not None else nullcontext
        for other in self.modalities:
            if other == name or inputs.get(other) is None:
                continue
            rows = present[other].to(labels.device).nonzero()[:, 0] if other in present else None
            if rows is not None and not len(rows):
                continue
            values = inputs[other] if rows is None else take(inputs[other], rows)
            encoder = model.encoders[other]
            trains = encoder.training
            encoder.eval()
            with autocast():
                embeddings = model.embed(other, values)
                logits = model.heads[other](embeddings.to(model.heads[other].weight.dtype))  # type: ignore[arg-type]
            encoder.train(trains)
            index = torch.arange(len(labels), device=labels.device) if rows is None else rows
            total.index_add_(0, index, logits.float())
        return total

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> Tensor:
        """The error of the modality that trains, or that of the sum of all."""
        logits, present = outputs.unimodal_logits or {}, outputs.present or {}
        name = self._boosted
        if name is None:
            added = torch.stack([z.where(present[m][:, None], 0.0) for m, z in logits.items()]).sum(dim=0)
            return model.fused_loss(added, labels, present)
        if name not in present or not bool(present[name].any()):
            return cast("Tensor", outputs.loss) * 0.0
        rows = rows_of(outputs, name)
        errors = functional.cross_entropy(logits[name][rows].float(), labels[rows], reduction="none")
        return (self._weights * errors).mean() / model.config.num_labels * self._share
