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
MAX_JUDGED_ROWS = 4096
"""The most rows that the edges of the bins are taken of, and that judge a pair."""
COUNTS_PER_ROW = 3000
"""Counts of all tables of one number of bins, of both halves and each class, for each row that judges: of more columns
and classes there are fewer bins."""
CACHED_COUNTS = 1 << 18
"""Counts that stay in the cache of a core."""
MAX_TESTED = 64
"""The most pairs whose error is looked at: several times as many as have room in the readout."""


def pair_readouts(rows: Tensor, sets: TrainingSets, known: list[Tensor], log_prior: Tensor) -> list[Tensor]:
    """Held-out logits (2, N, C) by bins of pairs of columns, or none where by halves they tell nothing new.

    Args:
        rows: (N, D) standardized rows.
        sets: all training sets.
        known: (2, N, C) each, held-out logits of other readouts.
        log_prior: (C,).
    """
    number, columns = rows.shape
    if not 2 <= columns <= MAX_COLUMNS:
        return []
    step = max(1, -(-number // MAX_JUDGED_ROWS))
    judged = rows[::step].T.contiguous()
    most = COUNTS_PER_ROW * judged.shape[1]
    sizes = [
        size
        for size in BINS
        if number >= ROWS_PER_CELL * size**2 and 2 * sets.num_classes * (columns * size) ** 2 <= most
    ]
    if not sizes:
        return []
    edges = _edges(judged, sizes)
    labels, half = sets.labels[::step], sets.halves().reader[0][::step]
    gains = [
        _gain(torch.searchsorted(edge, judged, right=True).T, size, labels, half, sets.num_classes)
        for edge, size in zip(edges, sizes, strict=True)
    ]
    # (bins, D, D); a pair has the bins by which it tells most.
    gain, best = torch.stack(gains).max(0)
    parts, left = [], MAX_CELLS
    for place in gain.flatten().argsort(descending=True).tolist():
        first, second = divmod(place, columns)
        place_of_size = int(best[first, second])
        size = sizes[place_of_size]
        if gain[first, second] <= 0 or left < size**2:
            break
        pair = [first, second]
        bins = torch.searchsorted(edges[place_of_size][pair], rows[:, pair].T.contiguous(), right=True)
        cells = bins[0] * size + bins[1]
        parts.append(torch.nn.functional.one_hot(cells, size**2))
        left -= size**2
    if not parts:
        return []
    cells = torch.cat(parts, 1).float()
    places = some_rows(number, rows.device)
    if not is_worth(told_by(cells[places], sets, places), known, sets, places, log_prior):
        return []
    return linear_readouts(LinearSums.make(cells, sets), log_prior).logits


def _edges(columns: Tensor, sizes: list[int]) -> list[Tensor]:
    """The edges (D, size - 1) of bins of columns (D, n) that have about equally many values, for each of the sizes."""
    ascending = sorted_columns(columns)
    places = [
        torch.linspace(0, columns.shape[1] - 1, size + 1, dtype=torch.float32, device=columns.device)
        for size in sizes
    ]
    return [ascending[:, place.long()[1:-1]].contiguous() for place in places]


def _gain(bins: Tensor, number: int, labels: Tensor, half: Tensor, classes: int) -> Tensor:
    """What the table of each pair of columns tells a row beyond its columns, fitted on the other half: (D, D) in nats.

    The columns tell it by the table of one of them, by the product of both posteriors, or by the root of that, as of
    columns that say the same. 0 on and below the diagonal, and where chance may do as much.

    Args:
        bins: (n, D) int64.
        number: B, bins of each column.
        labels: (n,) int64.
        half: (n,) int64, 0 or 1, of each row.
        classes: C.
    """
    rows, columns = bins.shape
    # One product of the rows of each half and class counts them in all tables.
    cell = half * classes + labels
    sizes = torch.zeros(2 * classes, dtype=torch.int64, device=bins.device)
    sizes.index_add_(0, cell, torch.ones_like(cell))
    one_hot = torch.nn.functional.one_hot(bins[cell.argsort(stable=True)], number).flatten(1).float()
    parts = one_hot.split(sizes.tolist())
    prior = sizes.view(2, classes, 1).float() + 1e-3
    prior = prior / prior.sum(1, keepdim=True)

    # What a row of one half is told by what the other has fitted, summed over the rows. Tables of all pairs:
    cells = columns * number
    table, both = one_hot.new_zeros(2, cells, cells), one_hot.new_zeros(cells, cells)
    # In the cache of a CPU; all classes at once on a GPU.
    step = max(1, CACHED_COUNTS // (2 * cells**2)) if bins.device.type == "cpu" else classes
    single_counts = []
    for start in range(0, classes, step):
        some = slice(start, start + step)
        products = [
            [part.T @ part for part in of_half[some]] for of_half in (parts[:classes], parts[classes:])
        ]
        counts = torch.stack([torch.stack(of_half) for of_half in products])
        table += counts.sum(1)
        single_counts.append(counts.diagonal(dim1=2, dim2=3))
        fitted = counts.flip(0).add_(PRIOR_ROWS * prior.flip(0)[:, some, None])
        both += fitted.log_().mul_(counts).sum((0, 1))
    both -= (table * (table.flip(0) + PRIOR_ROWS).log()).sum(0)
    # Each column, (2, C, D B):
    own = torch.cat(single_counts, 1)
    share = _share(own, prior)
    single = (own * share.flip(0).log()).sum((0, 1)).unflatten(0, (columns, number)).sum(1)
    base = (sizes.view(2, classes) * prior.flip(0).log().squeeze(-1)).sum()
    # The product of the posteriors of two columns and its root, each divided by its sum over the classes:
    product = (table * ((share / prior).mT @ share).flip(0).log()).sum(0)
    root = (table * (share.sqrt().mT @ share.sqrt()).flip(0).log()).sum(0)

    def by_pair(values: Tensor) -> Tensor:
        return values.view(columns, number, columns, number).sum((1, 3))

    apart = single[:, None] + single
    alone = torch.stack(
        [
            torch.maximum(single[:, None], single),
            apart - base - by_pair(product),
            0.5 * apart - by_pair(root),
        ]
    )
    told = ((by_pair(both) - alone.amax(0)) / rows).triu(1).flatten()
    best = told.topk(min(MAX_TESTED, len(told))).indices
    best = best[told[best] > MIN_TOLD]
    first, second = best // columns, best % columns
    # (K, n)
    place = (torch.arange(len(best), device=bins.device)[:, None] * 2 * classes + cell) * number**2
    place += (bins[:, first] * number + bins[:, second]).T
    tables = torch.zeros(len(best) * 2 * classes * number**2, dtype=torch.int64, device=bins.device)
    tables.index_add_(0, place.flatten(), torch.ones_like(place).flatten())
    found = torch.zeros_like(told)
    found[best] = _beyond_chance(tables.view(-1, 2, classes, number, number).float(), prior[..., None, None])
    return found.view(columns, columns)


def _share(counts: Tensor, prior: Tensor) -> Tensor:
    """The share of each class among the rows that are counted (2, C, ...), with a few rows of the prior."""
    return (counts + PRIOR_ROWS * prior) / (counts.sum(1, keepdim=True) + PRIOR_ROWS)


def _beyond_chance(tables: Tensor, prior: Tensor) -> Tensor:
    """What tables tell beyond their columns, in nats (K,); 0 where chance may do as much.

    Args:
        tables: (K, 2, C, B, B) float32: the rows of each half and class.
        prior: (2, C, 1, 1, 1) float32: the share of each class in each half.
    """
    # (2, C, K, B, B)
    counts = tables.permute(1, 2, 0, 3, 4)
    rows = counts[:, :, :1].sum()
    both, left, right = (
        _share(part, prior).log()
        for part in (counts, counts.sum(4, keepdim=True), counts.sum(3, keepdim=True))
    )
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
        mean = weighted.sum((0, 1, 3, 4)) / rows
        square = weighted.mul_(gain).sum((0, 1, 3, 4)) / rows
        error = (square - mean.square()).clamp_min(0).sqrt() / rows.sqrt()
        gains.append(torch.where(mean > (DEVIATIONS * error).clamp_min(MIN_TOLD), mean, 0.0))
    return torch.stack(gains).amin(0)
