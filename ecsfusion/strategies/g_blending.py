"""G-Blending: the losses of the heads are weighted by how much they generalize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ecsfusion.model.losses import share_of_loss
from ecsfusion.model.names import FUSED
from ecsfusion.strategies.strategy import Strategy, TrainerOfStrategy, mean_over_processes

if TYPE_CHECKING:
    from ecsfusion.evaluation.outputs import Evaluation
    from ecsfusion.modeling import FusionForClassification, FusionOutput

MIN_OVERFITTING = 1e-3
"""The smallest O_k in nats that is used; an evaluation could not tell a smaller one from zero."""


class GBlending(Strategy):
    """Weigh each head's loss by how much it improves on validation without overfitting (G-Blending, Wang et al. 2020).

    Gradient blending in its online form, arXiv 1905.12681:

        heads k = 1..M of the modalities and the fused one; V_k validation loss, T_k training loss
        G_k = V_k(before) - V_k(now),   O_k = (V_k - T_k)(now) - (V_k - T_k)(before)
        w_k proportional to G_k / O_k^2, sum_k w_k = 1,   loss = sum_k w_k CE_k

    "Before" and "now" are two successive evaluations, and T_k is the mean over the training batches since the
    evaluation before. So the weights are equal until the second evaluation. A head that got worse on validation has the
    weight zero; if all heads got worse, the weights are equal. They sum to 1 as in the paper, so the gradients are
    about M + 1 times smaller than those of "joint-auxiliary". That matters for SGD.

    In the paper the validation rows are a part of the training data, and each head is measured on a copy of the model
    that is trained with that head's loss alone. Here V_k is measured on the evaluation set and on the model itself. So
    the evaluation set has an influence on training; do not report its scores as those of held-out data.

    Args:
        modalities: names of the modalities of the model.
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
            # [V_k, T_k] of each head at the last evaluation.
            "before": None,
            # Since that evaluation, for each head: the sum of the losses, and the number of rows.
            "training": {head: [0.0, 0.0] for head in self.heads},
        }
        self._step: Tensor | None = None
        """(heads, 2): loss sums and rows of the present optimizer step, in this process."""

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> Tensor:
        """The weighted sum of the losses, sum_k w_k CE_k."""
        fused = model.fused_loss(outputs.logits, labels, outputs.present or {})  # type: ignore[arg-type]
        present = outputs.present or {}
        # By head: its part of the loss of the batch, and the number of its rows.
        losses = {FUSED: (fused, len(labels))}
        for name, logits in (outputs.unimodal_logits or {}).items():
            loss = share_of_loss(model.head_loss, logits, labels, present[name])
            if loss is not None:
                losses[name] = loss, int(present[name].sum())
        if self._step is None:
            self._step = torch.zeros(len(self.heads), 2, device=labels.device)
        for head, (loss, num_rows) in losses.items():
            self._step[self.heads.index(head), 0] += loss.detach() * len(labels)
            self._step[self.heads.index(head), 1] += num_rows
        weights = self.state["weights"]
        return torch.stack([weights[head] * loss for head, (loss, _) in losses.items()]).sum()

    def adjust_gradients(self, model: FusionForClassification) -> None:
        """Add the losses and rows of this step, over all processes, to the state. Gradients are not changed."""
        if self._step is None:
            return
        for head, values in zip(self.heads, mean_over_processes(self._step).tolist(), strict=True):
            self.state["training"][head] = [
                a + b for a, b in zip(self.state["training"][head], values, strict=True)
            ]
        self._step = None

    def after_evaluation(self, trainer: TrainerOfStrategy, evaluation: Evaluation) -> None:
        """Compute the weights of the heads anew."""
        training = self.state["training"]
        if not all(rows for _, rows in training.values()):
            # There has been no step, or a head has had no rows.
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
        """The weights w_k by head, from [V_k, T_k] by head at two successive evaluations."""
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
