"""Which of many columns tell the label by a threshold: those that trees are grown of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ecsfusion.pid.linear import TrainingSets, fold_products

THRESHOLDS = (-1.0, -0.3, 0.3, 1.0)
"""Of standardized columns."""
MIN_ROWS = 5
"""On both sides of a threshold."""


def telling_columns(sides: Sequence[Tensor], sets: TrainingSets, number: int) -> Tensor:
    """The columns (T, `number`) int64 that tell most in each training set by one threshold, in ascending order.

    Args:
        sides: (N, D_s) standardized rows; their columns are counted one side after the other.
        sets: T training sets.
        number: at most the sum of D_s.
    """
    told = torch.cat([_told(rows, sets) for rows in sides], 1)
    return told.topk(number).indices.sort(1).values


def _told(rows: Tensor, sets: TrainingSets) -> Tensor:
    """The largest chi-square (T, D) of rows (N, D) by class and side of a threshold."""
    size, classes = sets.sizes[:, None], sets.counts.unsqueeze(2)
    told = rows.new_zeros(len(size), rows.shape[1])
    above = torch.empty_like(rows)
    for threshold in THRESHOLDS:
        torch.gt(rows, threshold, out=above)
        found = fold_products(sets.one_hot, above, sets)
        number_above = found.sum(1)
        expected = number_above.unsqueeze(1) * (classes / size.unsqueeze(2).clamp_min(1))
        apart = ((found - expected).square() / classes.clamp_min(1)).sum(1) * size.square()
        below = size - number_above
        is_large = torch.minimum(number_above, below) >= MIN_ROWS
        told = torch.maximum(told, torch.where(is_large, apart / (number_above * below).clamp_min(1), 0.0))
    return told
