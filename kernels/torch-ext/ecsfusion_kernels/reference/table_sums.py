"""Entropies of joint tables and of their marginals, in plain PyTorch."""

import torch
from torch import Tensor

__all__ = ["table_sums"]

MARGINALS = ("y", "x1", "x2", "x1y", "x2y", "x1x2", "all")
"""In the order of their sums, and then of their occupied cells; the last number is the total."""
NUMBERS = 2 * len(MARGINALS) + 1


def table_sums(tables: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P(x1, y), P(x2, y) and numbers of tables (..., K1, K2, C). See the op of this name."""
    total = tables.sum((-3, -2, -1), keepdim=True)
    p = tables / torch.where(total > 0, total, 1.0)
    first, second = p.sum(-2), p.sum(-3)
    batch = p.ndim - 3
    marginals = (first.sum(-2), first.sum(-1), second.sum(-1), first, second, p.sum(-1), p)
    flat = [marginal.flatten(batch) for marginal in marginals]
    sums = [torch.xlogy(x, x).sum(-1) for x in flat]
    occupied = [x.count_nonzero(-1).to(p.dtype) for x in flat]
    return first, second, torch.stack([*sums, *occupied, total[..., 0, 0, 0]], -1)
