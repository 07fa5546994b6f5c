"""Joint tables of counts from cluster indices and labels, in plain PyTorch."""

import torch
from torch import Tensor

__all__ = ["histogram"]


def histogram(
    first: Tensor, second: Tensor, labels: Tensor, num_first: int, num_second: int, num_classes: int
) -> Tensor:
    """Count how often (first, second, label) occur together, for a batch of problems at once.

    A sample with an index outside of its range is not counted; the sum of the table is then below N.

    Args:
        first: (..., N) integers in [0, num_first).
        second: (..., N) integers in [0, num_second), broadcast against `first`.
        labels: (..., N) integers in [0, num_classes), broadcast likewise.
        num_first: K1.
        num_second: K2.
        num_classes: C.

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
    # Samples that are not counted go to one more cell.
    cell = torch.where(is_counted, cell, num_cells)
    counts = torch.zeros(*cell.shape[:-1], num_cells + 1, dtype=torch.int32, device=cell.device)
    counts.scatter_add_(-1, cell, torch.ones((), dtype=torch.int32, device=cell.device).expand_as(cell))
    return counts[..., :-1].contiguous().view(*cell.shape[:-1], num_first, num_second, num_classes)
