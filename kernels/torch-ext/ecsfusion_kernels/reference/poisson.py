"""Poisson numbers from a hash of (seed, counter), in plain PyTorch."""

from itertools import accumulate

import torch
from torch import Tensor

from .random import uniform

__all__ = ["poisson"]

# From this expectation on the Cornish-Fisher expansion is used.
MIN_EXPANSION_MEAN = 16.0
MAX_COUNT = (
    # For smaller expectations P(X >= 44) < 2^-25, the distance of the uniform numbers from 1.
    44
)


def poisson(expected: Tensor, num_replicates: int, seed: int) -> Tensor:
    """Independent Poisson numbers that depend on the expectations, their positions and the seed alone.

    A number is the quantile of a hashed uniform number. For expectations below 16 it is found by summing
    probabilities; above, by the Cornish-Fisher expansion, by which less than 3 in 10 000 numbers are off by one.

    Args:
        expected: (...) floating point, >= 0.
        num_replicates: independent numbers for each expectation.
        seed: any whole number.

    Returns:
        (num_replicates, ...) float64. Another device may differ where exp and log round differently.
    """
    mean = expected.to(torch.float64).flatten()
    counter = torch.arange(num_replicates * len(mean), device=mean.device).reshape(num_replicates, len(mean))
    u = uniform(counter, seed).to(torch.float64)

    small = mean.clamp_max(MIN_EXPANSION_MEAN).unsqueeze(-1)
    k = torch.arange(MAX_COUNT - 1, dtype=torch.float64, device=mean.device)
    probability = torch.exp(torch.xlogy(k, small) - small - torch.lgamma(k + 1))
    # P(X <= k), summed in this order on every device, as `cumsum` does not.
    cumulative = torch.stack(list(accumulate(probability.unbind(-1))), -1)
    count = torch.searchsorted(cumulative, u.T.contiguous()).T

    w = normal_quantile(u)
    root = mean.clamp_min(MIN_EXPANSION_MEAN).sqrt()
    terms = (1 / 3 + w.square() / 6) - (w / 36 + w**3 / 72) / root
    terms += (-8 / 405 + 7 * w.square() / 810 + w**4 / 270) / root.square()
    expansion = torch.floor(mean + root * w + terms)
    drawn = torch.where(mean < MIN_EXPANSION_MEAN, count, expansion)
    return drawn.reshape(num_replicates, *expected.shape).contiguous()


def normal_quantile(u: Tensor) -> Tensor:
    """Phi^-1(u) for float64 u in [2^-25, 1 - 2^-25]: algorithm AS 241 (Wichura 1988), PPND7."""
    q = u - 0.5
    r = 0.180625 - q * q
    middle = q * (((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179)
    middle = middle / (((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1.0)
    s = torch.sqrt(-torch.log(torch.minimum(u, 1.0 - u))) - 1.6
    tail = ((0.17023821103 * s + 1.3067284816) * s + 2.7568153900) * s + 1.4234372777
    tail = tail / ((0.12021132975 * s + 0.73700164250) * s + 1.0)
    return torch.where(q.abs() <= 0.425, middle, torch.copysign(tail, q))
