"""Cluster indices and labels -> joint tables of counts."""

import torch
from torch import Tensor

__all__ = ["histogram"]


def histogram(
    first: Tensor, second: Tensor, labels: Tensor, num_first: int, num_second: int, num_classes: int
) -> Tensor:
    """Count how often (first, second, label) occur together, for a batch of problems at once.

    A sample with an index outside of its range is not counted: a sum below N tells that there was one.

    Args:
        first, second, labels: (..., N) integers, broadcast against each other; first in [0, num_first) and so on.

    Returns:
        (..., num_first, num_second, num_classes) int32.
    """
    parts = ((first, num_first), (second, num_second), (labels, num_classes))
    is_counted = torch.ones((), dtype=torch.bool, device=first.device)
    cell = torch.zeros((), dtype=torch.int64, device=first.device)
    for index, size in parts:
        is_counted = is_counted & (index >= 0) & (index < size)
        cell = cell * size + index.to(torch.int64)
    num_cells = num_first * num_second * num_classes
    # One cell more takes what is not counted.
    cell = torch.where(is_counted, cell, num_cells)
    counts = torch.zeros(*cell.shape[:-1], num_cells + 1, dtype=torch.int32, device=cell.device)
    counts.scatter_add_(-1, cell, torch.ones((), dtype=torch.int32, device=cell.device).expand_as(cell))
    return counts[..., :-1].reshape(*cell.shape[:-1], num_first, num_second, num_classes)
