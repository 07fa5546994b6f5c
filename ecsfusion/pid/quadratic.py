"""Quadratic readouts: classes that differ in their covariance, which a line does not see.

Regularized discriminant analysis (Friedman 1989): each class has a Gaussian of its own, whose covariance is drawn
towards the shape of that of all classes, by as many rows as are few for its columns. Closed form, from products of the
rows by class.
"""

import torch
from ecsfusion_kernels import uniform
from torch import Tensor

from ecsfusion.pid.cholesky import factored, half_solved, log_diagonal
from ecsfusion.pid.linear import JITTER, LinearSums, TrainingSets
from ecsfusion.pid.mixtures import class_products
from ecsfusion.pid.trial import is_worth, some_rows

MANY_COLUMNS = 128
"""Of more columns the covariance of every class is only looked at where it differs clearly on some of the rows."""
MAX_VALUES = 1 << 23
"""The most values C x D x D of the covariances of one training set, and C x D of the rows that are read at a time."""
MIN_ROWS_PER_COLUMN = 2.0
"""Rows per class and column below which covariances by class are noise."""
MAX_PRODUCTS = 1 << 35
"""The most products N x C x D x D of reading all rows, which are seconds of a core."""
MAX_TRIED_ROWS = 1024
"""The most rows that show whether anything is told."""
ROWS_OF_ALL = (0.3, 3.0)
"""Rows per column that the covariance of all classes counts for in that of each class."""
SHRINKAGE = 0.01
"""Share of the identity in every covariance."""
RELABELLINGS = 24
"""Random labels of the rows, among which the true ones must stand out by"""
MIN_DIFFERENCE = 4.0
"""standard deviations."""
WHITENING = 0.01
TINY = 1e-12


def quadratic_readouts(
    sums: LinearSums, known: list[Tensor], log_prior: Tensor, random_seed: int
) -> list[Tensor]:
    """Held-out logits (2, N, C) by quadratic functions of the rows, or none where by halves they tell nothing new.

    Args:
        sums: of standardized rows, for all training sets.
        known: (2, N, C) each, held-out logits of other readouts.
        log_prior: (C,).
        random_seed: of a test.
    """
    rows, sets = sums.rows, sums.sets
    if not has_few_columns(rows.shape[1], sets):
        return []
    if rows.shape[1] > MANY_COLUMNS and not classes_differ(sums, sums, random_seed):
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


def classes_differ(first: LinearSums, second: LinearSums, random_seed: int) -> bool:
    """Whether the covariance of two sides, or of one with itself, clearly differs from class to class.

    Of some rows: the mean over all pairs of a class of (x1 . x1') (x2 . x2'), in whitened columns, is the size of its
    covariance. None is formed, which of hundreds of columns costs a hundredth.

    Args:
        first: the sums of a side.
        second: of another, or of the same.
        random_seed: of the labels that are drawn anew.
    """
    sets = first.sets
    places = some_rows(len(sets.labels), sets.labels.device, MAX_TRIED_ROWS)
    labels, number = sets.labels[places], len(places)
    alike = _products(first, places)
    alike *= alike if first is second else _products(second, places)
    alike.fill_diagonal_(0.0)
    # Less what is due to each of the two rows, such as their lengths.
    of_row = alike.sum(1) / (number - 2)
    alike -= of_row[:, None] + of_row - of_row.sum() / (number - 1)
    alike.fill_diagonal_(0.0)
    keys = uniform(torch.arange(RELABELLINGS * number, device=labels.device), random_seed + 31)
    values = []
    for drawn in (labels, *labels[keys.view(RELABELLINGS, number).argsort(1)]):
        one_hot = torch.nn.functional.one_hot(drawn, sets.num_classes).to(alike.dtype)
        values.append(((alike @ one_hot) * one_hot / one_hot.sum(0).clamp_min(1)).sum())
    found, chance = values[0], torch.stack(values[1:])
    return bool(found - chance.mean() > MIN_DIFFERENCE * chance.std().clamp_min(TINY))


def _products(sums: LinearSums, places: Tensor) -> Tensor:
    """The inner products (n, n) of some rows about the means of their classes, in whitened columns."""
    one = sums.one_set(0)
    means = (one.deviation + one.center[:, None])[0]
    factor = one.factor(torch.tensor(WHITENING, dtype=sums.rows.dtype, device=sums.rows.device))
    white = half_solved(factor, (sums.rows[places] - means[sums.sets.labels[places]]).T[None])[0]
    return white.T @ white


def has_few_columns(columns: int, sets: TrainingSets) -> bool:
    """Whether there are rows enough, and not too many values, for a covariance of so many columns for every class."""
    rows, classes = sets.one_hot.shape
    enough = rows >= MIN_ROWS_PER_COLUMN * classes * columns
    values = classes * columns**2
    return enough and values <= MAX_VALUES and rows * values <= MAX_PRODUCTS


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
