"""Pairs of columns that tell together what neither tells alone: boards, and thresholds that depend on another column.

Columns are put into a few bins, and a table of two columns, fitted on half of the rows, is compared on the other half
with what both columns tell one by one. A linear readout of the bins of the best pairs is a sum of functions of two
columns each. Of embeddings with many columns, in which no single column has a meaning, no pair is looked at.
"""

import torch
from torch import Tensor

from ecsfusion.pid.binned import DEVIATIONS, MIN_TOLD, PRIOR_ROWS, sorted_columns
from ecsfusion.pid.linear import LinearSums, TrainingSets, linear_readouts
from ecsfusion.pid.trial import is_worth, some_rows, told_by

MAX_COLUMNS = 48
"""With more columns none is looked at."""
BINS = (8, 6, 4, 3)
ROWS_PER_CELL = 8
"""Rows for each cell of a table, whatever their class, below which there are fewer bins."""
MAX_CELLS = 192
"""The most cells of all tables, which are columns of the readout."""
MAX_SAMPLED_ROWS = 4096
"""The most rows that the edges of the bins are taken of."""
MAX_JUDGED_ROWS = 4096
"""The most rows that judge a pair."""


def pair_readouts(rows: Tensor, sets: TrainingSets, known: list[Tensor], log_prior: Tensor) -> list[Tensor]:
    """Held-out logits (2, N, C) by bins of pairs of columns, or none where by halves they tell nothing new.

    Args:
        rows: (N, D) standardized rows.
        sets: all training sets.
        known: (2, N, C) each, held-out logits of other readouts.
        log_prior: (C,).
    """
    number, columns = rows.shape
    sizes = [size for size in BINS if number >= ROWS_PER_CELL * size**2]
    if not 2 <= columns <= MAX_COLUMNS or not sizes:
        return []
    bins = [_bins(rows, size) for size in sizes]
    # (bins, D, D); a pair has the bins by which it tells most.
    gain, best = torch.stack([_gain(b, size, sets) for b, size in zip(bins, sizes, strict=True)]).max(0)
    parts, left = [], MAX_CELLS
    for place in gain.flatten().argsort(descending=True).tolist():
        first, second = divmod(place, columns)
        size = sizes[int(best[first, second])]
        if gain[first, second] <= 0 or left < size**2:
            break
        chosen = bins[int(best[first, second])]
        cells = chosen[:, first] * size + chosen[:, second]
        parts.append(torch.nn.functional.one_hot(cells, size**2))
        left -= size**2
    if not parts:
        return []
    cells = torch.cat(parts, 1).float()
    places = some_rows(number, rows.device)
    if not is_worth(told_by(cells[places], sets, places), known, sets, places, log_prior):
        return []
    return linear_readouts(LinearSums.make(cells, sets), log_prior).logits


def _bins(rows: Tensor, number: int) -> Tensor:
    """The bin (N, D) int64 of each value, of bins that have about equally many values."""
    sample = sorted_columns(rows[:: max(1, -(-len(rows) // MAX_SAMPLED_ROWS))].T.contiguous())
    places = torch.linspace(0, sample.shape[1] - 1, number + 1, dtype=torch.float32, device=rows.device)
    edges = sample[:, places.long()[1:-1]].contiguous()
    return torch.searchsorted(edges, rows.T.contiguous(), right=True).T


def _gain(bins: Tensor, number: int, sets: TrainingSets) -> Tensor:
    """What the table of each pair of columns tells a row beyond its columns, fitted on the other half: (D, D) in nats.

    The columns tell it by the table of one of them, by the product of both posteriors, or by the root of that, as of
    columns that say the same. 0 below the diagonal, and where chance may do as much.

    Args:
        bins: (N, D) int64.
        number: B, bins of each column.
        sets: all training sets.
    """
    halves = sets.halves()
    step = max(1, -(-len(bins) // MAX_JUDGED_ROWS))
    bins, labels, half = bins[::step], sets.labels[::step], halves.reader[0][::step]
    columns, classes = bins.shape[1], sets.num_classes
    # One product of the rows of each half and class counts them in all tables.
    cell = half * classes + labels
    sizes = torch.zeros(2 * classes, dtype=torch.int64, device=bins.device)
    sizes.index_add_(0, cell, torch.ones_like(cell))
    one_hot = torch.nn.functional.one_hot(bins, number).flatten(1).float()
    parts = one_hot[cell.argsort(stable=True)].split(sizes.tolist())
    products = torch.stack([part.T @ part for part in parts]).view(
        2, classes, columns, number, columns, number
    )
    first, second = torch.triu_indices(columns, columns, 1, device=bins.device)
    # (2, C, P, B, B)
    counts = products.permute(2, 4, 0, 1, 3, 5)[first, second].permute(1, 2, 0, 3, 4).contiguous()
    prior = sizes.view(2, classes, 1, 1, 1).float() + 1e-3
    prior = prior / prior.sum(1, keepdim=True)

    def told(table: Tensor) -> Tensor:
        return ((table + PRIOR_ROWS * prior) / (table.sum(1, keepdim=True) + PRIOR_ROWS)).log()

    both, left, right = told(counts), told(counts.sum(4, keepdim=True)), told(counts.sum(3, keepdim=True))
    apart = (
        left,
        right,
        torch.log_softmax(left + right - prior.log(), 1),
        torch.log_softmax(0.5 * (left + right), 1),
    )
    gains = []
    for alone in apart:
        # Each half is read by what the other has fitted.
        gain = (both - alone).flip(0)
        weighted = counts * gain
        mean = weighted.sum((0, 1, 3, 4)) / len(bins)
        square = weighted.mul_(gain).sum((0, 1, 3, 4)) / len(bins)
        error = (square - mean.square()).clamp_min(0).sqrt() / len(bins) ** 0.5
        gains.append(torch.where(mean > (DEVIATIONS * error).clamp_min(MIN_TOLD), mean, 0.0))
    found = torch.zeros(columns, columns, dtype=both.dtype, device=bins.device)
    found[first, second] = torch.stack(gains).amin(0)
    return found
