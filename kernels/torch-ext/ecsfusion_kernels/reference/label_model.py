"""Labels given two variables, as without three-way interaction, in plain PyTorch."""

from collections.abc import Callable

import torch
from torch import Tensor

from .broja import LN2
from .loglinear import loglinear

__all__ = ["label_model"]

TINY = 1e-300
MIN_BITS = 1e-9
"""Less information than this counts as so much, in what part of it is noise."""


def label_model(counts: Tensor, noise: Tensor, sweeps: int = 30) -> Tensor:
    """p(y | x1, x2), (B, K1, K2, C), of counts (B, K1, K2, C). See the op of this name."""
    return fitted_labels(counts, noise, sweeps, loglinear)


def fitted_labels(
    counts: Tensor, noise: Tensor, sweeps: int, fit: Callable[[Tensor, Tensor, Tensor, int], Tensor]
) -> Tensor:
    """`label_model` by a function that fits pair tables as `loglinear` does."""
    rows, columns = counts.shape[1:3]
    total = counts.sum((1, 2, 3)).clamp_min(TINY)[:, None, None]
    pairs = counts.new_zeros(2, len(counts), max(rows, columns), counts.shape[3])
    pairs[0, :, :rows] = counts.sum(2)
    pairs[1, :, :columns] = counts.sum(1)
    first, second = _shrunk(pairs / total, noise.unsqueeze(-1))
    table = fit(counts.sum(3) / total, first[:, :rows], second[:, :columns], sweeps)
    return table / table.sum(-1, keepdim=True).clamp_min(TINY)


def _shrunk(pairs: Tensor, noise: Tensor) -> Tensor:
    """Pair tables (..., K, C) of probabilities, mixed with independence until `noise` (...) bits less are left."""
    independent = pairs.sum(-2, keepdim=True) * pairs.sum(-1, keepdim=True)
    # Near independence the information of a mixture grows with the square of its share.
    share = (1 - noise / _bits(pairs).clamp_min(MIN_BITS)).clamp(0.0, 1.0).sqrt()
    return independent + share[..., None, None] * (pairs - independent)


def _bits(p: Tensor) -> Tensor:
    """I(X; Y) in bits of tables (..., K, C) of sum 1."""
    rows, columns = p.sum(-1), p.sum(-2)
    shared = torch.xlogy(p, p).sum((-2, -1)) - torch.xlogy(rows, rows).sum(-1)
    return ((shared - torch.xlogy(columns, columns).sum(-1)) / LN2).clamp_min(0.0)
