"""Groups of rows with equal keys, in plain PyTorch."""

import torch
from torch import Tensor

from .random import uniform

__all__ = ["groups_of_rows"]

LARGEST_CLASS = 1 << 20
"""Above every class."""
SIZE_BITS = 40
MAX_COPIES = 16
"""With more equal rows than so many for each distinct one, the rows are taken for a table of categories."""
TABLE_SEED = 23
"""By which the equal rows of such a table are dealt."""
DEALT = 1 << 24


def groups_of_rows(keys: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The group (N,) of each row, a key (N,) by which groups are dealt, and the number () of groups; all int64.

    See the op of this name.

    Args:
        keys: (N,) int64, ascending.
        labels: (N,) int64, ascending among equal keys.
    """
    if not len(keys):
        return keys.clone(), keys.clone(), keys.new_zeros(())
    rows = torch.arange(len(keys), device=keys.device)
    group = torch.nn.functional.pad((keys[1:] != keys[:-1]).cumsum(0), (1, 0))
    is_table = (group[-1] + 1) * MAX_COPIES < len(keys)
    group = torch.where(is_table, rows, group)
    size = torch.where(is_table, (uniform(rows, TABLE_SEED) * DEALT).long(), group_sizes(group))
    return group, dealing_key(group, labels, size), group[-1] + 1


def group_sizes(group: Tensor) -> Tensor:
    """The number (N,) of rows of each group."""
    return torch.zeros_like(group).scatter_add(0, group, torch.ones_like(group))


def dealing_key(group: Tensor, labels: Tensor, size: Tensor) -> Tensor:
    """By class, and larger groups first; (N,), above all others where there is no group."""
    first_class = torch.full_like(group, LARGEST_CLASS).scatter_reduce(0, group, labels, "amin")
    return first_class * (1 << SIZE_BITS) - size
