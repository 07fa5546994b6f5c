"""Pair tables of joint tables, and what independence would make of them, in plain PyTorch."""

import torch
from torch import Tensor

__all__ = ["pair_tables"]


def pair_tables(table: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """The pair tables (3, P, Q) of a table (K1, K2, C), and their expectations. See the op of this name."""
    rows, columns, classes = table.shape
    pairs = table.new_zeros(3, max(rows, columns), max(classes, columns), dtype=torch.float64)
    pairs[0, :rows, :classes] = table.sum(1)
    pairs[1, :columns, :classes] = table.sum(0)
    pairs[2, :rows, :columns] = table.sum(2)
    return pairs, pairs.sum(2, keepdim=True) * (pairs.sum(1, keepdim=True) / num_samples)
