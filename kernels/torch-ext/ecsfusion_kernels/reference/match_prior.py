"""Posteriors scaled to have the prior as their mean, on NumPy views of CPU tensors and on tensors elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    import numpy as np
# PyTorch works without NumPy, and so does the kernel package by itself.
except ImportError:
    np = None  # type: ignore[assignment]

from ..precision import in_full_precision

__all__ = ["match_prior"]

# numpy.ndarray or torch.Tensor.
Array = Any

RESCALINGS = 20
MATCHED = 3e-4
"""Relative distance of their mean from the prior at which posteriors are not scaled any further."""
TINY = 1e-30
LARGEST_SCALE = 1e100


@in_full_precision
def match_prior(
    posteriors: Tensor, prior: Tensor, nearly: float = MATCHED, rescalings: int = RESCALINGS
) -> Tensor:
    """Posteriors (..., N, C) float64 scaled until their mean is the prior (C,), or nearly so where they are certain.

    Each rescaling multiplies the classes by prior / mean, and divides each row by its sum.

    Args:
        posteriors: (..., N, C) float64, of sum 1 over the classes.
        prior: (C,) float64.
        nearly: ends the scaling where the means of all are within this relative distance; 0 for never. Elsewhere than
            on a CPU, and where gradients are wanted, nothing ends it early.
        rescalings: the most.
    """
    if not posteriors.numel():
        return posteriors
    if posteriors.device.type == "cpu" and not posteriors.requires_grad and np is not None:
        return torch.from_numpy(_matched(np, posteriors.numpy(), prior.numpy(), nearly, rescalings))
    return _matched(torch, posteriors, prior, 0.0, rescalings)


def _matched(xp: Any, posteriors: Array, prior: Array, nearly: float, rescalings: int) -> Array:
    """`match_prior`, in NumPy, whose calls cost less, or in PyTorch."""
    scale: Array = None
    by_class = posteriors.swapaxes(-1, -2)
    mass = 0 * by_class[..., :1, :] + 1
    # Of the scaled rows only their mean is needed until the end, by two products.
    for _ in range(rescalings):
        mean = (1 / mass) @ posteriors / posteriors.shape[-2]
        mean = mean if scale is None else mean * scale
        factor = prior / xp.clip(mean, TINY, None)
        if nearly and (abs(factor - 1) < nearly).all():
            break
        # A class that no row has stays without mass.
        scale = factor if scale is None else xp.clip(scale * factor, None, LARGEST_SCALE)
        mass = xp.clip(scale @ by_class, TINY, None)
    return posteriors if scale is None else posteriors * scale / mass.swapaxes(-1, -2)
