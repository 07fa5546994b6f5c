"""Cells of a table: what rows that are equal in both modalities say of each other, where both are categories.

Two codes that say something only together, such as a place and a month, are a table of categories. Lines, bins and
clusters see the part of it that follows from an order of the codes; counting sees all. The counts of a cell are drawn
towards what the modalities say alone.
"""

import torch
from torch import Tensor

from ecsfusion.pid.folds import MIN_COPIES, row_keys
from ecsfusion.pid.linear import TrainingSets, tells_more

MAX_COUNTS = 1 << 22
"""The most counts, of cells and classes, of a training set."""
ROWS_ALONE = (1.0, 8.0)
"""Rows that what the modalities say alone counts for; both are tried."""
TINY = 1e-12


def cell_readouts(
    first: Tensor, second: Tensor, sets: TrainingSets, known: list[Tensor], log_prior: Tensor
) -> list[Tensor]:
    """Held-out logits (2, N, C) by counts of cells; none where rows are no categories, or cells tell nothing new.

    Args:
        first: (N, D1) standardized rows of one side.
        second: (N, D2) those of the other.
        sets: all training sets.
        known: (2, N, C) each, held-out logits of other readouts, by folds and by halves; those of both sides alone
            come first.
        log_prior: (C,).
    """
    kinds = [kinds_of(rows) for rows in (first, second)]
    if kinds[0] is None or kinds[1] is None:
        return []
    cells, cell = (kinds[0] * len(first) + kinds[1]).unique(return_inverse=True)
    if len(cells) * sets.num_classes > MAX_COUNTS:
        return []
    classes, folds = sets.num_classes, sets.num_folds
    place = (sets.fold * len(cells) + cell) * classes + sets.labels
    counts = torch.zeros(folds * len(cells) * classes, dtype=first.dtype, device=first.device)
    counts.index_add_(0, place, torch.ones_like(place, dtype=counts.dtype))
    counts = sets.sums(counts.view(folds, len(cells), classes))
    alone = (known[0] + known[1] + log_prior).softmax(2)
    found = [_read(counts[sets.reader, cell], alone, rows_alone).sub_(log_prior) for rows_alone in ROWS_ALONE]
    if not tells_more([part[1] for part in known], [part[1] for part in found], sets.labels, log_prior):
        return []
    return found


def _read(counts: Tensor, alone: Tensor, rows_alone: float) -> Tensor:
    """Log posteriors (2, N, C) from counts (2, N, C) and the posteriors (2, N, C) of the sides alone."""
    total = counts.sum(2, keepdim=True) + rows_alone
    return ((counts + rows_alone * alone) / total).clamp_min_(TINY).log_()


def kinds_of(rows: Tensor) -> Tensor | None:
    """Which of the distinct rows each of rows (N, D) is: (N,) int64; None where most are distinct."""
    kinds, place = row_keys([rows], 0).unique(return_inverse=True)
    return place if len(kinds) * MIN_COPIES <= len(rows) else None
