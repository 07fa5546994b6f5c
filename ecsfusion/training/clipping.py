"""Clips the gradients of each modality separately, so that one modality never changes the scale of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ecsfusion.training.sharding import whole


def clip_by_part(parts: Mapping[str, Sequence[nn.Parameter]], max_norm: float) -> dict[str, Tensor]:
    """Clip the gradients of each part separately to the norm `max_norm`.

    Args:
        parts: parameters by name of the part. A part without gradients, such as a paused modality, is left out.
        max_norm: the largest norm; infinite to measure without clipping.

    Returns:
        The norm of each part's gradients before clipping, scalars.
    """
    norms = {}
    for name, parameters in parts.items():
        trained = [parameter for parameter in parameters if parameter.grad is not None]
        if trained:
            norms[name] = whole(nn.utils.clip_grad_norm_(trained, max_norm))
    return norms


def total_norm(norms: Mapping[str, Tensor]) -> Tensor:
    """The norm over all parts, a scalar, which the Trainer logs as `grad_norm`."""
    if not norms:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms.values()]))
