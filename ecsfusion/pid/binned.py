"""Bins of columns that tell the label by more than a straight line, such as an interval, a wave or a heavy tail.

A linear readout of these bins is an additive model: any function of each column. It is made only where a table of one
column, fitted on half of the rows, tells more of the other half than a discriminant analysis of that column does. Of
embeddings with many columns, in which no single column has a meaning, no bins are made.
"""

import torch
from torch import Tensor

from ecsfusion.pid.linear import LinearSums

MAX_COLUMNS = 128
"""With more columns none is looked at."""
MAX_BINNED = 16
"""The most columns that are put into bins."""
MAX_BINS = 32
MIN_BINS = 4
ROWS_PER_CELL = 8
"""Rows for each bin and class of a column."""
MAX_SAMPLED_ROWS = 4096
"""The most rows that the edges of the bins are taken of, and that columns are judged by."""
MAX_VALUES = 1 << 22
"""Values rows x columns x classes that are held at a time."""
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
    rows, classes = sums.rows, sums.sets.one_hot.shape[1]
    number = min(MAX_BINS, len(rows) // (ROWS_PER_CELL * classes))
    if rows.shape[1] > MAX_COLUMNS or number < MIN_BINS:
        return None
    step = max(1, -(-len(rows) // MAX_SAMPLED_ROWS))
    sample = rows[::step].sort(0).values
    places = torch.linspace(0, len(sample) - 1, number + 1, dtype=torch.float32, device=rows.device)
    edges = sample[places.long()[1:-1]]
    bins = torch.searchsorted(edges.T.contiguous(), rows.T.contiguous())
    gain = _gain(sums, bins, number, step)
    error = gain.std(1) / gain.shape[1] ** 0.5
    told = torch.where(gain.mean(1) > (DEVIATIONS * error).clamp_min(MIN_TOLD), gain.mean(1), 0.0)
    best = told.topk(min(MAX_BINNED, len(told))).indices
    best = best[told[best] > 0]
    if not len(best):
        return None
    return torch.nn.functional.one_hot(bins[best], number).transpose(0, 1).flatten(1).float()


def _gain(sums: LinearSums, bins: Tensor, number: int, step: int) -> Tensor:
    """What each column tells each `step`-th row beyond its discriminant analysis, both fitted on the other half: nats.

    Args:
        sums: of standardized rows, for all training sets.
        bins: (D, N) int64.
        number: of bins.
        step: between the rows that judge.

    Returns:
        (D, n) float32.
    """
    halves = sums.halves()
    labels, classes = halves.sets.labels, halves.sets.one_hot.shape[1]
    prior = (halves.sets.counts + 1e-3) / (halves.sets.counts + 1e-3).sum(1, keepdim=True)
    member, reader = halves.sets.member, halves.sets.reader[0]
    spread = halves.within.diagonal(dim1=1, dim2=2).clamp_min(1e-6)
    gains = []
    for columns in torch.arange(len(bins), device=bins.device).split(
        max(1, MAX_VALUES * step // bins.shape[1] // classes)
    ):
        place = torch.arange(len(columns), device=bins.device)[:, None]
        cell = (place * number + bins[columns]) * classes + labels
        gain = torch.zeros(len(columns), len(labels[::step]), dtype=torch.float32, device=bins.device)
        for half in range(2):
            # Not `bincount`, which a GPU refuses with weights where deterministic algorithms are asked for.
            counts = member.new_zeros(len(columns) * number * classes)
            counts.index_add_(0, cell.flatten(), member[:, half].repeat(len(columns)))
            counts = counts.view(len(columns), number, classes)
            table = (counts + PRIOR_ROWS * prior[half]) / (counts.sum(-1, keepdim=True) + PRIOR_ROWS)
            by_bins = table.flatten()[cell[:, ::step]].clamp_min(TINY).log()
            slope = halves.deviation[half][:, columns] / spread[half, columns]
            away = (sums.rows[::step][:, columns] - halves.center[half, columns]).T
            # (columns, n, C)
            line = away.unsqueeze(2) * slope.T.unsqueeze(1)
            line += (
                prior[half].log()[:, None] - 0.5 * halves.deviation[half][:, columns] * slope
            ).T.unsqueeze(1)
            by_line = torch.log_softmax(line, -1).gather(
                2, labels[::step].view(1, -1, 1).expand(len(columns), -1, 1)
            )
            gain = torch.where(reader[::step] == half, by_bins - by_line.squeeze(2), gain)
        gains.append(gain)
    return torch.cat(gains)
