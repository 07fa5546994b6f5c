"""MMPareto: the joint and the unimodal gradient of each encoder are combined into one that serves both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ecsfusion.model.losses import share_of_loss
from ecsfusion.strategies.strategy import Strategy, mean_over_processes

if TYPE_CHECKING:
    from ecsfusion.modeling import FusionForClassification, FusionOutput


class MMPareto(Strategy):
    """Combine each encoder's joint and unimodal gradients so that neither works against the other (MMPareto, 2024).

    Wei & Hu 2024, arXiv 2405.17730:

        g0 = gradient of CE(z), g1 = gradient of CE(z_m), in all parameters of encoder m
        a = (1/2, 1/2) if g0 . g1 >= 0, else the a that minimizes |a0 g0 + a1 g1|, a0 + a1 = 1
        h = 2 (a0 g0 + a1 g1),   g_m <- gamma (|g0 + g1| / |h|) h

    h is never longer than g0 + g1, and is scaled to the same length. Lengths are those of an encoder's whole gradient,
    as in the paper; the authors' code uses those of each tensor. The heads have the gradient of
    CE(z) + sum_m CE(z_m).

    Args:
        modalities: names of the modalities of the model.
        gamma: factor of the encoders' gradients.

    Raises:
        ValueError: gamma is not positive.
    """

    name = "mmpareto"
    stages = "joint"
    auxiliary_weight = 1.0
    not_sharded = "it takes gradients of weights that are put together for a moment only"
    not_fp16 = "its unimodal gradients are taken apart from the others, without a loss scale"
    has_own_loss = True

    def __init__(self, modalities: Sequence[str], *, gamma: float = 1.5) -> None:
        super().__init__(modalities)
        if not gamma > 0:
            raise ValueError(f"gamma is {gamma}; it must be positive.")
        self.gamma = gamma
        self._unimodal: dict[str, Tensor] = {}
        """The gradient g1 by modality, summed over the batches of the present optimizer step."""
        self._batches = 0

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> Tensor:
        """CE(z) + sum_m CE(z_m), whose gradient is g0 + g1; g1 is remembered for `adjust_gradients`."""
        present = outputs.present or {}
        total = model.fused_loss(outputs.logits, labels, present)  # type: ignore[arg-type]
        for name, logits in (outputs.unimodal_logits or {}).items():
            loss = share_of_loss(model.head_loss, logits, labels, present[name])
            if loss is None:
                continue
            total = total + loss
            parameters = trained_parameters(model, name)
            if parameters:
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                gradient = flat(gradients, parameters)
                if name in self._unimodal:
                    gradient = self._unimodal[name] + gradient
                self._unimodal[name] = gradient
        self._batches += 1
        return total

    def adjust_gradients(self, model: FusionForClassification) -> None:
        """Replace the gradient g0 + g1 of each encoder by the combination."""
        for name in self.modalities:
            parameters = trained_parameters(model, name)
            if not parameters:
                continue
            both = flat([parameter.grad for parameter in parameters], parameters)
            # The gradients of the parameters are means over the batches of this step and over the processes.
            sums = self._unimodal.get(name, torch.zeros_like(both))
            unimodal = mean_over_processes(sums) / max(self._batches, 1)
            start = 0
            combined = self.combine(both - unimodal, unimodal)
            for parameter in parameters:
                part = combined[start : start + parameter.numel()]
                start += parameter.numel()
                if parameter.grad is not None:
                    parameter.grad.copy_(part.view_as(parameter))
        self._unimodal.clear()
        self._batches = 0

    def combine(self, joint: Tensor, unimodal: Tensor) -> Tensor:
        """The combined gradient (P,) of an encoder, from g0 (P,) and g1 (P,)."""
        both = joint + unimodal
        product = joint @ unimodal
        if product >= 0:
            return self.gamma * both
        # This is a0. It is between 0 and 1, because the product is negative.
        share = (unimodal @ unimodal - product) / (joint - unimodal).square().sum()
        h = 2 * (share * joint + (1 - share) * unimodal)
        if h.norm() <= 1e-5 * (joint.norm() + unimodal.norm()):
            # The gradients are opposite: h is only rounding error, and its direction means nothing.
            return torch.zeros_like(h)
        return self.gamma * (both.norm() / h.norm()) * h


def trained_parameters(model: FusionForClassification, name: str) -> list[nn.Parameter]:
    """The parameters of an encoder that are trained at present."""
    return [parameter for parameter in model.encoders[name].parameters() if parameter.requires_grad]


def flat(gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Join gradients into one vector, with zeros for a parameter that has none."""
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).detach().flatten().float() for g, p in pairs])
