"""Quadratic readouts: classes that differ in their covariance, which a line does not see.

Regularized discriminant analysis (Friedman 1989): each class has a Gaussian of its own, whose covariance is drawn
towards the shape of that of all classes, by as many rows as are few for its columns. Closed form, from products of the
rows by class.
"""

import torch
from torch import Tensor

from ecsfusion.pid.cholesky import factored, half_solved, log_diagonal
from ecsfusion.pid.linear import JITTER, LinearSums, TrainingSets
from ecsfusion.pid.mixtures import class_products
from ecsfusion.pid.trial import is_worth, some_rows

MAX_COLUMNS = 128
"""Of more columns the covariance of every class costs too much; a few directions of them are read in `mixtures`."""
MAX_VALUES = 1 << 22
"""The most values C x D x D of the covariances of one training set, and C x D of the rows that are read at a time."""
MIN_ROWS_PER_COLUMN = 2.0
"""Rows per class and column below which covariances by class are noise."""
MAX_PRODUCTS = 1 << 34
"""The most products N x C x D x D of reading all rows, which are seconds of a core."""
MAX_TRIED_ROWS = 1024
"""The most rows that show whether anything is told."""
ROWS_OF_ALL = (0.3, 3.0)
"""Rows per column that the covariance of all classes counts for in that of each class."""
SHRINKAGE = 0.01
"""Share of the identity in every covariance."""
TINY = 1e-12


def quadratic_readouts(sums: LinearSums, known: list[Tensor], log_prior: Tensor) -> list[Tensor]:
    """Held-out logits (2, N, C) by quadratic functions of the rows, or none where by halves they tell nothing new.

    Args:
        sums: of standardized rows, for all training sets.
        known: (2, N, C) each, held-out logits of other readouts.
        log_prior: (C,).
    """
    rows, sets = sums.rows, sums.sets
    if not has_few_columns(rows.shape[1], sets):
        return []
    places = some_rows(len(rows), rows.device, MAX_TRIED_ROWS)
    halves = sums.halves()
    differences = class_products(halves, halves)
    part = halves._replace(
        rows=rows[places],
        sets=halves.sets._replace(fold=sets.fold[places], labels=sets.labels[places], cells=None),
    )
    if not is_worth([_read(part, differences, ROWS_OF_ALL[0])[0]], known, sets, places, log_prior):
        return []
    differences = class_products(sums, sums)
    return [_read(sums, differences, share) for share in ROWS_OF_ALL]


def has_few_columns(columns: int, sets: TrainingSets) -> bool:
    """Whether there are rows enough, and not too many values, for a covariance of so many columns for every class."""
    rows, classes = sets.one_hot.shape
    enough = rows >= MIN_ROWS_PER_COLUMN * classes * columns
    values = classes * columns**2
    return enough and columns <= MAX_COLUMNS and values <= MAX_VALUES and rows * values <= MAX_PRODUCTS


def _read(sums: LinearSums, differences: Tensor, rows_of_all: float) -> Tensor:
    """Held-out logits (R, N, C), without the prior.

    Args:
        sums: of the rows that are read.
        differences: (T, C, D, D), the covariance of each class minus that of all.
        rows_of_all: how many rows per column the covariance of all counts for.
    """
    sets, columns = sums.sets, sums.rows.shape[1]
    kept = (sets.counts / (sets.counts + rows_of_all * columns))[..., None, None]
    spread = sums.within.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    within = sums.within[:, None]
    # Towards that of all classes, of the size of their own.
    change = differences.diagonal(dim1=2, dim2=3).mean(-1)[..., None, None] / spread[..., None].clamp_min(
        TINY
    )
    covariance = (1 - SHRINKAGE) * (within + kept * differences + (1 - kept) * change * within)
    covariance.diagonal(dim1=2, dim2=3).add_(SHRINKAGE * spread + JITTER)
    factor = factored(covariance)
    mean = sums.center[:, None] + sums.deviation
    logits = sums.rows.new_zeros(len(sets.readers), len(sums.rows), sets.num_classes)
    for place, readers in enumerate(sets.readers):
        for number in sorted(set(readers)):
            is_read = sets.reader[place] == number
            logits[place, is_read] = _log_densities(sums.rows[is_read], mean[number], factor[number])
    return logits


def _log_densities(rows: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Rows (N, D) under Gaussians of means (C, D) and Cholesky factors (C, D, D): (N, C), up to a constant.

    Few rows at a time: there are C D values for each.
    """
    size = log_diagonal(factor)[:, None]
    found = []
    for part in rows.split(max(1, MAX_VALUES // mean.numel())):
        away = half_solved(factor, part.T - mean[:, :, None])
        found.append((-0.5 * away.square_().sum(1) - size).T)
    return torch.cat(found)
