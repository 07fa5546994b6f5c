"""Bins of columns that tell the label by more than a straight line, such as an interval, a wave or a heavy tail.

A linear readout of these bins is an additive model: any function of each column. It is made only where a table of one
column, fitted on half of the rows, tells more of the other half than a discriminant analysis of that column does. Of
embeddings with many columns, in which no single column has a meaning, no bins are made.
"""

import numpy as np
import torch
from torch import Tensor

from ecsfusion.pid.linear import LinearSums, TrainingSets

MAX_COLUMNS = 128
"""With more columns none is looked at."""
MAX_BINNED = 16
"""The most columns that are put into bins."""
MAX_BINS = 32
MAX_JUDGED_BINS = 16
"""The most bins by which columns are judged; neighbours are joined."""
MAX_JUDGED_ROWS = 8192
"""The most rows that judge a column; they resolve the least that bins must tell."""
MIN_BINS = 4
ROWS_PER_CELL = 8
"""Rows for each bin and class of a column."""
MAX_SAMPLED_ROWS = 4096
"""The most rows that the edges of the bins are taken of."""
PRIOR_ROWS = 2.0
"""Rows of the prior p(y) that every bin starts with."""
MIN_TOLD = 5e-3
"""Nats that bins must tell beyond the line,"""
DEVIATIONS = 4.0
"""and in standard errors: of 100 columns of noise one does so in 300 data sets."""
TINY = 1e-12


def binned_columns(sums: LinearSums) -> Tensor | None:
    """Indicators (N, E) float32 of the bins of those columns that tell more by bins than by a line; None without any.

    Args:
        sums: of standardized rows, for all training sets.
    """
    rows, classes = sums.rows, sums.sets.num_classes
    number = min(MAX_BINS, len(rows) // (ROWS_PER_CELL * classes))
    if rows.shape[1] > MAX_COLUMNS or number < MIN_BINS:
        return None
    step = max(1, -(-len(rows) // MAX_SAMPLED_ROWS))
    sample = sorted_columns(rows[::step].T.contiguous())
    places = torch.linspace(0, sample.shape[1] - 1, number + 1, dtype=torch.float32, device=rows.device)
    edges = sample[:, places.long()[1:-1]]
    gain, error = _gain(sums, edges[:, :: -(-number // MAX_JUDGED_BINS)])
    told = torch.where(gain > (DEVIATIONS * error).clamp_min(MIN_TOLD), gain, 0.0)
    best = told.topk(min(MAX_BINNED, len(told))).indices
    best = best[told[best] > 0]
    if not len(best):
        return None
    bins = torch.searchsorted(edges[best].contiguous(), rows[:, best].T.contiguous())
    return torch.nn.functional.one_hot(bins, number).transpose(0, 1).flatten(1).float()


def sorted_columns(columns: Tensor) -> Tensor:
    """The values of each column (D, n), ascending."""
    if columns.device.type == "cpu":
        # NumPy sorts without the places, ten times faster.
        return torch.from_numpy(np.sort(columns.numpy(), 1))
    return columns.sort(1).values


def _halves(sets: TrainingSets, step: int) -> list[tuple[slice, Tensor]]:
    """For each half a slice with all of its rows among every so many, and (n, 1) float32: 1 where a row is in it."""
    if sets.cells is None:
        return [(slice(None), sets.member[::step, half, None]) for half in range(2)]
    middle = -(-sets.slices()[sets.num_folds // 2].start // step)
    one_hot = sets.one_hot[::step]
    parts = slice(0, middle), slice(middle, None)
    return [(part, torch.ones_like(one_hot[part, :1])) for part in parts]


def _gain(sums: LinearSums, edges: Tensor) -> tuple[Tensor, Tensor]:
    """What each column tells a row beyond its discriminant analysis, both fitted on the other half, and its error.

    In nats.

    Both read the bin of a row alone, the discriminant analysis as the mean of the column in the bin. So it is enough to
    count.

    Args:
        sums: of standardized rows, for all training sets.
        edges: (D, E), ascending: E + 1 bins of each column.

    Returns:
        (D,) float64 each.
    """
    halves = sums.halves()
    sets = halves.sets
    step = max(1, -(-len(sums.rows) // MAX_JUDGED_ROWS))
    rows, one_hot = sums.rows[::step].contiguous(), sets.one_hot[::step]
    # Of each half, what lies above each edge, from everything to nothing: rows by class, and the sum of their values.
    halved = [
        ((one_hot[part] * mine).T.contiguous(), mine.T.contiguous(), part)
        for part, mine in _halves(sets, step)
    ]
    above = torch.ones_like(rows)
    sums_above = []
    for edge in (None, *edges.T.contiguous()):
        if edge is not None:
            torch.gt(rows, edge, out=above)
        number = [by_class @ above[part] for by_class, _, part in halved]
        above.mul_(rows)
        value = [mine @ above[part] for _, mine, part in halved]
        # (2, C + 1, D)
        sums_above.append(torch.cat([torch.stack(number), torch.stack(value)], 1))
    inside = -torch.stack([*sums_above, torch.zeros_like(sums_above[0])]).diff(dim=0)
    # (2, D, bins, C), (2, D, bins)
    counts, values = inside[:, :, :-1].permute(1, 3, 0, 2), inside[:, :, -1].permute(1, 2, 0)
    in_bin = counts.sum(-1)
    middle = values / in_bin.clamp_min(1)
    prior = (sets.counts + 1e-3) / (sets.counts + 1e-3).sum(1, keepdim=True)
    table = (counts + PRIOR_ROWS * prior[:, None, None]) / (in_bin[..., None] + PRIOR_ROWS)
    by_bins = table.clamp_min(TINY).log()
    # (2, columns, C)
    slope = (halves.deviation / halves.within.diagonal(dim1=1, dim2=2).clamp_min(1e-6)[:, None]).mT
    offset = prior.log()[:, None] - 0.5 * halves.deviation.mT * slope
    # Each half is read by what the other has fitted.
    away = middle - halves.center.flip(0)[..., None]
    line = away[..., None] * slope.flip(0)[:, :, None] + offset.flip(0)[:, :, None]
    gain = (by_bins.flip(0) - torch.log_softmax(line, -1)).double()
    mean = (counts * gain).sum((0, 2, 3)) / len(rows)
    square = (counts * gain.square()).sum((0, 2, 3)) / len(rows)
    return mean, (square - mean.square()).clamp_min(0.0).sqrt() / len(rows) ** 0.5
