"""MLA: the modalities train in turn and share one head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ecsfusion.model.rows import take
from ecsfusion.strategies.strategy import Strategy, TrainerOfStrategy, mean_over_processes, rows_of
from ecsfusion.strategies.tensors import from_json, to_json

if TYPE_CHECKING:
    from ecsfusion.modeling import FusionForClassification, FusionOutput


class MLA(Strategy):
    """Train one modality per step, with a shared head that does not forget the others (MLA, Zhang et al. 2024).

    Multimodal learning with alternating unimodal adaptation, arXiv 2311.10707.

    Optimizer step t trains the encoder of modality m = t mod M and the head W that all modalities share, on CE(z_m):

        grad W <- (grad W) P                       P = identity at first
        P <- P - (P r)(P r)' / (alpha + r' P r)    r = mean of h_m over the batch (recursive least squares)
        P <- P / |P|                               Frobenius norm

    So the change of W in a step is nearly orthogonal to the embeddings of the steps before. The division by |P| is in
    the authors' code; without it P falls to zero and W stops changing. It also makes the learning rate of W smaller, at
    first by sqrt(D). (The authors' code lets alpha fall from 0.1 to 0.01 in each epoch, and updates P before using it.)

    A step trains one modality. To train each modality for as many steps as in joint training, the number of steps must
    be M times as large (`modalities_per_step`). The heads of the modalities are kept equal, but each has its own
    momentum or moments in the optimizer. The prediction is that of the fused head "entropy-average".

    Args:
        modalities: names of the modalities of the model, whose embeddings must have the same width.
        alpha: the smaller it is, the more of an embedding is protected at once.

    Raises:
        ValueError: alpha is not positive.
    """

    name = "mla"
    stages = "joint"
    auxiliary_weight = 0.0
    only_single_label = "the fused head weighs by the entropy over classes"
    only_fusion = "entropy-average"
    has_own_loss = True
    not_sharded = "it multiplies the whole gradient of a head"
    modalities_per_step = 1

    def __init__(self, modalities: Sequence[str], *, alpha: float = 0.1) -> None:
        super().__init__(modalities)
        if not alpha > 0:
            raise ValueError(f"alpha is {alpha}; it must be positive.")
        self.alpha = alpha
        self.state = {"steps": 0}
        self.projection: Tensor | None = None
        """The symmetric matrix P (D, D); None before the first step."""
        self._features = torch.zeros(0)
        """The sum of the embeddings of the present optimizer step, followed by their number."""
        self._share = 1.0
        """The share of the rows of the batch that are trained on."""

    @property
    def turn(self) -> str:
        """The modality that the next step trains."""
        return self.modalities[self.state["steps"] % len(self.modalities)]

    def begin_stage(self, trainer: TrainerOfStrategy) -> None:
        """Make the heads of all modalities equal.

        Raises:
            ValueError: the embeddings have different widths.
        """
        widths = trainer.model.embedding_dims
        if len(set(widths.values())) > 1:
            raise ValueError(
                f"the strategy 'mla' has one head for all modalities, and the widths of their embeddings are {widths}; "
                "give encoders of the same width, or project the embeddings to the same width."
            )
        share_head(trainer.model, self.modalities[0])
        self._features = torch.zeros(next(iter(widths.values())) + 1, device=trainer.args.device)

    def prepare_inputs(self, model: FusionForClassification, inputs: dict[str, Any]) -> dict[str, Any]:
        """Keep only the modality whose turn it is, and the rows that have it."""
        name, self._share = self.turn, 1.0
        mask = (inputs.get("present") or {}).get(name)
        if inputs.get(name) is None or (mask is not None and not mask.any()):
            # No row has the modality. The loss will be zero.
            return inputs
        left_out = {"present", *self.modalities} - {name}
        unimodal_inputs = {key: value for key, value in inputs.items() if key not in left_out}
        if mask is None or bool(mask.all()):
            return unimodal_inputs
        self._share = float(mask.float().mean())
        rows = mask.nonzero()[:, 0].to(inputs["labels"].device)
        return {**unimodal_inputs, name: take(inputs[name], rows), "labels": inputs["labels"][rows]}

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> Tensor:
        """CE(z_m) of the modality whose turn it is."""
        name, present = self.turn, outputs.present or {}
        if name not in present or not bool(present[name].any()):
            return cast("Tensor", outputs.loss) * 0.0
        rows = rows_of(outputs, name)
        embeddings, logits = outputs.embeddings or {}, outputs.unimodal_logits or {}
        h = embeddings[name][rows].detach().float()
        self._features += torch.cat([h.sum(dim=0), h.new_tensor([float(len(h))])])
        return model.head_loss(logits[name][rows], labels[rows]) * self._share

    def adjust_gradients(self, model: FusionForClassification) -> None:
        """Project the gradient of the head by P, then update P with the embeddings of this step."""
        gradient = cast("nn.Linear", model.heads[self.turn]).weight.grad
        if gradient is not None and self.projection is not None:
            gradient.copy_(gradient.float() @ self.projection.to(gradient.device))
        features = mean_over_processes(self._features)
        self._features = torch.zeros_like(self._features)
        if features[-1] > 0:
            self.protect(features[:-1] / features[-1])

    def protect(self, feature: Tensor) -> None:
        """Update P with the mean embedding r (D,) of a step."""
        if self.projection is None:
            self.projection = torch.eye(len(feature), device=feature.device)
        projection = self.projection.to(feature.device)
        projected = projection @ feature
        projection = projection - torch.outer(projected, projected) / (self.alpha + feature @ projected)
        self.projection = projection / torch.linalg.matrix_norm(projection)

    def after_step(self, model: FusionForClassification) -> None:
        """Copy the head that was trained to all modalities, and go on to the next modality."""
        share_head(model, self.turn)
        self.state["steps"] += 1

    def state_dict(self) -> dict[str, Any]:
        """The number of steps and the matrix P."""
        return {
            **super().state_dict(),
            "projection": None if self.projection is None else to_json(self.projection),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the number of steps and the matrix P."""
        saved = state["projection"]
        self.projection = None if saved is None else from_json(saved)
        super().load_state_dict({"steps": state["steps"]})


@torch.no_grad()
def share_head(model: FusionForClassification, name: str) -> None:
    """Copy the weights of this modality's head to the heads of all others."""
    for other in model.modalities:
        if other != name:
            for target, source in zip(
                model.heads[other].parameters(), model.heads[name].parameters(), strict=True
            ):
                target.copy_(source)
