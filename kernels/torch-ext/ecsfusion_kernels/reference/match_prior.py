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
LARGEST_POWER = 4.0
"""Of prior / mean in a rescaling: more overshoots where posteriors are nearly certain."""


@in_full_precision
def match_prior(
    posteriors: Tensor, prior: Tensor, nearly: float = MATCHED, rescalings: int = RESCALINGS
) -> Tensor:
    """Posteriors (..., N, C) float64 scaled until their mean is the prior (C,), or nearly so where they are certain.

    Each rescaling multiplies the classes by powers of prior / mean, and divides each row by its sum. With powers of 1
    that is iterative proportional fitting, which takes the mean of a class to grow in proportion to its scale; it grows
    by the share 1 - E[q^2] / E[q] of that. The power is the inverse of this share at first, as in Newton's steps with a
    diagonal matrix, times (C - 1) / C for what the other classes give; and 1 from where the distance has grown.

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
    classes = posteriors.shape[-1]
    by_class = posteriors.swapaxes(-1, -2)
    mass = 0 * by_class[..., :1, :] + 1
    power, before = 1.0, LARGEST_SCALE
    # Of the scaled rows only their mean is needed until the end, by two products.
    for _ in range(rescalings):
        mean = (1 / mass) @ posteriors / posteriors.shape[-2]
        mean = xp.clip(mean if scale is None else mean * scale, TINY, None)
        factor = prior / mean
        distance = xp.amax(abs(factor - 1), -1, keepdims=True)
        if nearly and (distance < nearly).all():
            break
        if scale is None:
            squares = xp.einsum("...nc,...nc->...c", posteriors, posteriors)[..., None, :]
            grown = 1 - squares / posteriors.shape[-2] / mean
            power = xp.clip((1 - 1 / classes) / xp.clip(grown, TINY, None), 1.0, LARGEST_POWER)
            scale = 1.0
        power = xp.where(distance > before, 1.0, power)
        before = distance
        # A class that no row has stays without mass.
        scale = xp.clip(scale * factor**power, None, LARGEST_SCALE)
        mass = xp.clip(scale @ by_class, TINY, None)
    return posteriors if scale is None else posteriors * scale / mass.swapaxes(-1, -2)
