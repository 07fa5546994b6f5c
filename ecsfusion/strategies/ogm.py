"""OGM and OGM-GE: in every step, the gradient of the modality that is ahead is scaled down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ecsfusion.model.fused_heads import ConcatenationHead
from ecsfusion.strategies.strategy import Strategy, mean_over_processes, rows_of

if TYPE_CHECKING:
    from ecsfusion.modeling import FusionForClassification, FusionOutput


class OGM(Strategy):
    """Scale down the gradient of the modality that is ahead, in every step (OGM, Peng et al. 2022).

    On-the-fly gradient modulation, arXiv 2203.15332:

        s_m = sum over the batch of softmax(z_m)[y],   rho_m = s_m / s_other
        k_m = 1 - tanh(alpha * rho_m) if rho_m > 1 else 1,   g_m <- k_m g_m

    If the fused head is linear ("concatenation"), z_m is the part of modality m in the fused logits, W_m h_m + b / 2.
    With another fused head, z_m are the logits of the modality's own head. The method was made for SGD: Adam and
    similar optimizers divide a gradient by its running size, which cancels most of the scaling.

    Args:
        modalities: names of the two modalities of the model.
        alpha: strength of the scaling.

    Raises:
        ValueError: more or fewer than two modalities, or alpha is not positive.
    """

    name = "ogm"
    stages = "joint"
    auxiliary_weight = 0.0
    only_two = "a modality is compared with the other one"
    only_single_label = "a score is the probability of the row's class"

    def __init__(self, modalities: Sequence[str], *, alpha: float = 0.5) -> None:
        super().__init__(modalities)
        if not alpha > 0:
            raise ValueError(f"alpha is {alpha}; it must be positive.")
        self.alpha = alpha
        self._scores = torch.zeros(2)
        """The scores s_m, summed over the batches of the present optimizer step."""

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> None:
        """Add the scores of this batch. The loss of the model is kept."""
        with torch.no_grad():
            logits = parts_of_fused_logits(model, outputs)
            for index, name in enumerate(self.modalities):
                rows = rows_of(outputs, name)
                p = logits[name][rows].float().softmax(dim=1)
                self._scores[index] += p.gather(1, labels[rows, None]).sum().cpu()

    def coefficients(self, scores: Tensor) -> Tensor:
        """The factors k_m (2,) for scores s_m (2,)."""
        ratio = scores / scores.flip(0).clamp_min(torch.finfo(scores.dtype).tiny)
        return torch.where(ratio > 1, 1 - torch.tanh(self.alpha * ratio), 1.0)

    def adjust_gradients(self, model: FusionForClassification) -> None:
        """Scale the encoders' gradients."""
        coefficients = self.coefficients(mean_over_processes(self._scores))
        self._scores.zero_()
        for name, coefficient in zip(self.modalities, coefficients.tolist(), strict=True):
            if coefficient < 1.0:
                for parameter in model.encoders[name].parameters():
                    if parameter.grad is not None:
                        self._scale(parameter.grad, coefficient)

    def _scale(self, gradient: Tensor, coefficient: float) -> None:
        gradient.mul_(coefficient)


class OGMGE(OGM):
    """Do as OGM, and add noise N(0, std(g)^2) to each tensor g of a scaled gradient (OGM-GE, Peng et al. 2022).

    GE stands for generalization enhancement.

    Args:
        modalities: names of the two modalities of the model.
        alpha: strength of the scaling.
    """

    name = "ogm-ge"
    not_sharded = "its noise has the size of whole gradients"

    def __init__(self, modalities: Sequence[str], *, alpha: float = 0.5) -> None:
        super().__init__(modalities, alpha=alpha)
        self.state = {"steps": 0}

    def adjust_gradients(self, model: FusionForClassification) -> None:
        """Scale the encoders' gradients, and add the noise."""
        # This generator is seeded by the step, so that all processes, and a resumed run, add the same noise.
        self._generator = torch.Generator().manual_seed(torch.initial_seed() + self.state["steps"])
        self.state["steps"] += 1
        super().adjust_gradients(model)

    def _scale(self, gradient: Tensor, coefficient: float) -> None:
        noise = torch.randn(gradient.shape, generator=self._generator).to(gradient)
        noise.mul_(gradient.std(correction=0))
        gradient.mul_(coefficient).add_(noise)


def parts_of_fused_logits(model: FusionForClassification, outputs: FusionOutput) -> dict[str, Tensor]:
    """The part (B, C) of each modality in the logits of a linear fused head, else the logits of its own head."""
    head = model.fusion
    if not isinstance(head, ConcatenationHead):
        return dict(outputs.unimodal_logits or {})
    widths = [model.embedding_dims[name] for name in head.names]
    parts = head.linear.weight.split(widths, dim=1)
    bias = head.linear.bias / len(widths)
    embeddings = outputs.embeddings or {}
    return {
        name: embeddings[name] @ weight.to(embeddings[name].dtype).T + bias
        for name, weight in zip(head.names, parts, strict=True)
    }
