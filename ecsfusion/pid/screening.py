"""Which of many columns tell the label by a threshold, alone or beside another: those that trees are grown of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ecsfusion.pid.binned import sorted_columns
from ecsfusion.pid.linear import TrainingSets
from ecsfusion.pid.trial import some_rows

QUANTILES = (0.16, 0.38, 0.62, 0.84)
"""Of a column; its thresholds are these and its mean, which parts two values however rare one is."""
MAX_SAMPLED_ROWS = 512
"""The most rows that quantiles are taken of."""
MIN_ROWS = 5
"""On both sides of a threshold."""
SPLIT_BY = 3
"""The columns that tell most alone, on each side of whose threshold all are looked at again;"""
MAX_CLASSES = 16
"""of more classes this costs too much."""


def telling_columns(sides: Sequence[Tensor], sets: TrainingSets, number: int) -> Tensor:
    """The columns (T, `number`) int64 that tell most in each training set by one threshold, in ascending order.

    A column that tells nothing alone may tell much where another one is large, such as one that says which of two
    others counts. So all are looked at among all rows, and on both sides of the columns that tell most.

    Args:
        sides: (N, D_s) standardized rows; their columns are counted one side after the other.
        sets: T training sets.
        number: at most the sum of D_s.
    """
    places = some_rows(len(sets.labels), sets.labels.device)
    rows = [part[places] for part in sides]
    levels = [thresholds(part) for part in rows]
    member, one_hot = sets.member[places].T, sets.one_hot[places]
    told, which = _told(rows, levels, member.unsqueeze(2), one_hot)
    told, which = told[:, 0], which[:, 0]
    if sets.num_classes <= MAX_CLASSES:
        best = told.topk(min(SPLIT_BY, told.shape[1])).indices
        used = best.unique()
        values = columns_of(rows, used)[:, torch.searchsorted(used, best)].transpose(0, 1)
        level = torch.cat(levels, 1)[which.gather(1, best), best]
        is_above = (values > level.unsqueeze(1)).float()
        parts = torch.cat([is_above, 1 - is_above], 2) * member.unsqueeze(2)
        beside = _told(rows, levels, parts, one_hot)[0].unflatten(1, (2, -1)).sum(1)
        told = torch.maximum(told, beside.amax(1))
    return told.topk(number).indices.sort(1).values


def thresholds(rows: Tensor) -> Tensor:
    """Thresholds (K, D) of standardized rows (N, D)."""
    sample = sorted_columns(rows[some_rows(len(rows), rows.device, MAX_SAMPLED_ROWS)].T.contiguous())
    places = [int(share * (sample.shape[1] - 1)) for share in QUANTILES]
    return torch.cat([sample[:, places].T, torch.zeros_like(sample[:, :1]).T])


def columns_of(sides: Sequence[Tensor], columns: Tensor) -> Tensor:
    """Some columns (N, K) of sides (N, D_s), by their numbers (K,), ascending and counted one side after the other."""
    chosen, start = [], 0
    for rows in sides:
        end = start + rows.shape[1]
        chosen.append(rows[:, columns[(columns >= start) & (columns < end)] - start])
        start = end
    return torch.cat(chosen, 1)


def _told(
    sides: Sequence[Tensor], levels: Sequence[Tensor], parts: Tensor, one_hot: Tensor
) -> tuple[Tensor, Tensor]:
    """The largest chi-square (T, G, D) of rows by class and side of a threshold, and the place of that threshold.

    Args:
        sides: (n, D_s) standardized rows.
        levels: (K, D_s) thresholds of each.
        parts: (T, n, G) float32: 1 where a row is in a part of a training set.
        one_hot: (n, C) float32.
    """
    by_class = (parts.mT.unsqueeze(2) * one_hot.T).contiguous()
    classes = by_class.sum(3, keepdim=True)
    size = classes.sum(2)
    # (T, G, C, 1), (T, G, 1)
    share = classes / size.unsqueeze(2).clamp_min(1)
    flat = by_class.flatten(0, 2)

    def chi_square(rows: Tensor, threshold: Tensor) -> Tensor:
        found = (flat @ (rows > threshold).float()).view(*by_class.shape[:3], -1)
        above = found.sum(2)
        below = size - above
        apart = ((found - share * above.unsqueeze(2)).square() / classes.clamp_min(1)).sum(2) * size.square()
        is_large = torch.minimum(above, below) >= MIN_ROWS
        return torch.where(is_large, apart / (above * below).clamp_min(1), 0.0)

    every = [
        torch.stack([chi_square(rows, threshold) for threshold in own]).max(0)
        for rows, own in zip(sides, levels, strict=True)
    ]
    return torch.cat([best.values for best in every], 2), torch.cat([best.indices for best in every], 2)
