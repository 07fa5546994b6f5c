"""G-Blending: each head's loss weighs as much as what it learns is general."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ecsfusion.model.names import FUSED
from ecsfusion.strategies.strategy import Strategy, TrainerOfStrategy, mean_over_processes, rows_of

if TYPE_CHECKING:
    from ecsfusion.evaluation.outputs import Evaluation
    from ecsfusion.modeling import FusionForClassification, FusionOutput

MIN_OVERFITTING = 1e-3
"""Nats; a smaller O_k, which no evaluation could tell from none, counts as this."""


class GBlending(Strategy):
    """Gradient blending, online (Wang et al. 2020, arXiv 1905.12681).

        heads k = 1..M of the modalities and the fused one; V_k validation loss, T_k training loss
        G_k = V_k(before) - V_k(now),   O_k = (V_k - T_k)(now) - (V_k - T_k)(before)
        w_k proportional to G_k / O_k^2, sum_k w_k = 1,   loss = sum_k w_k CE_k

    "Before" and "now" are two evaluations that follow one another, and T_k is the mean over the training batches since
    the one before. So the weights are equal until the second evaluation. A head that got worse on validation has the
    weight zero; where all did, the weights are equal. They sum to 1 as in the paper: the gradients are about M + 1
    times smaller than those of "joint-auxiliary", which matters to SGD.

    The paper takes the validation part out of the training data, and measures each head on a copy of the model that
    trains with that head's loss alone. Here V_k is measured on the evaluation set, which so has a say in training (do
    not report it as held out), and on the one model that there is.

    Args:
        modalities: as everywhere.
    """

    name = "g-blending"
    stages = "joint"
    auxiliary_weight = 0.0
    needs_evaluations = "it weighs the heads by their validation loss"
    has_own_loss = True

    def __init__(self, modalities: Sequence[str]) -> None:
        super().__init__(modalities)
        self.heads = (*self.modalities, FUSED)
        self.state = {
            "weights": dict.fromkeys(self.heads, 1 / len(self.heads)),
            # Of each head [V_k, T_k].
            "before": None,
            # Since then: sum of the losses, rows.
            "training": {head: [0.0, 0.0] for head in self.heads},
        }
        # (heads, 2) the same of one optimizer step on this process.
        self._step: Tensor | None = None

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> Tensor:
        """sum_k w_k CE_k."""
        fused = model.fused_loss(outputs.logits, labels, outputs.present or {})  # type: ignore[arg-type]
        # By head: the sum over its rows / all rows, and its rows.
        losses = {FUSED: (fused, len(labels))}
        for name, logits in (outputs.unimodal_logits or {}).items():
            rows = rows_of(outputs, name)
            if len(rows):
                loss = model.head_loss(logits[rows], labels[rows]) * (len(rows) / len(labels))
                losses[name] = loss, len(rows)
        if self._step is None:
            self._step = torch.zeros(len(self.heads), 2, device=labels.device)
        for head, (loss, rows_seen) in losses.items():
            self._step[self.heads.index(head), 0] += loss.detach() * len(labels)
            self._step[self.heads.index(head), 1] += rows_seen
        weights = self.state["weights"]
        return torch.stack([weights[head] * loss for head, (loss, _) in losses.items()]).sum()

    def adjust_gradients(self, model: FusionForClassification) -> None:
        """Only count: what all processes saw in this step."""
        if self._step is None:
            return
        for head, values in zip(self.heads, mean_over_processes(self._step).tolist(), strict=True):
            self.state["training"][head] = [
                a + b for a, b in zip(self.state["training"][head], values, strict=True)
            ]
        self._step = None

    def after_evaluation(self, trainer: TrainerOfStrategy, evaluation: Evaluation) -> None:
        """Weigh the heads anew."""
        training = self.state["training"]
        if not all(rows for _, rows in training.values()):
            # No step yet, or a head that saw nothing.
            return
        now = {
            head: [validation_loss(trainer, evaluation, head), training[head][0] / training[head][1]]
            for head in self.heads
        }
        if self.state["before"] is not None:
            self.state["weights"] = self.weigh(self.state["before"], now)
        self.state["before"] = now
        self.state["training"] = {head: [0.0, 0.0] for head in self.heads}

    def weigh(
        self, before: Mapping[str, Sequence[float]], now: Mapping[str, Sequence[float]]
    ) -> dict[str, float]:
        """w_k by head, from [V_k, T_k] by head at two evaluations."""
        blend = {}
        for head in self.heads:
            (validation_before, training_before), (validation, training) = before[head], now[head]
            gain = max(validation_before - validation, 0.0)
            overfitting = (validation - training) - (validation_before - training_before)
            blend[head] = gain / max(abs(overfitting), MIN_OVERFITTING) ** 2
        total = sum(blend.values())
        if total == 0.0:
            return dict.fromkeys(self.heads, 1 / len(self.heads))
        return {head: value / total for head, value in blend.items()}


def validation_loss(trainer: TrainerOfStrategy, evaluation: Evaluation, head: str) -> float:
    """The mean loss of a head over the rows of the evaluation set that have its modality."""
    logits, labels = evaluation.heads[head], evaluation.labels
    if head != FUSED:
        logits, labels = logits[evaluation.present[head]], labels[evaluation.present[head]]
    device = trainer.args.device
    with torch.no_grad():
        return float(trainer.model.head_loss(logits.float().to(device), labels.to(device)))
