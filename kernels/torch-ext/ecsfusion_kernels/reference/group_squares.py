"""Squared sums of groups of rows, in plain PyTorch."""

import torch
from torch import Tensor

__all__ = ["group_squares"]


def group_squares(rows: Tensor, group: Tensor) -> Tensor:
    """Sums (B,) over the groups of the squared sum of the deviations of rows (B, N) from their mean.

    Args:
        rows: (B, N) float64.
        group: (N,) int64, ascending from 0 without a gap.
    """
    deviations = rows - rows.mean(-1, keepdim=True)
    return torch.zeros_like(rows).index_add_(-1, group, deviations).square().sum(-1)
