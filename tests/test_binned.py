"""Bins of columns: made where a column tells more than a line, and nowhere else."""

import pytest
import torch

from ecsfusion.pid.binned import MAX_BINNED, MAX_COLUMNS, binned_columns
from ecsfusion.pid.linear import LinearSums, TrainingSets, standardize

ROWS, FOLDS = 1800, 6


def sums_of(rows, labels, classes=3):
    sets = TrainingSets.make(torch.arange(len(rows)) % FOLDS, FOLDS, labels, classes)
    return LinearSums.make(standardize(rows), sets)


def drawn(columns, random_seed=0):
    generator = torch.Generator().manual_seed(random_seed)
    labels = torch.randint(3, (ROWS,), generator=generator)
    return torch.randn(ROWS, columns, generator=generator), labels


def test_bins_are_made_of_the_columns_that_need_them():
    rows, labels = drawn(6)
    # One class lies between the others: no line tells it apart.
    rows[:, 4] = torch.where(labels == 1, 0.2 * rows[:, 4], 2 * rows[:, 4])
    # A line tells all of this.
    rows[:, 2] += labels
    bins = binned_columns(sums_of(rows, labels))
    number = bins.shape[1]
    assert (bins.sum(1) == 1).all()
    assert bins.sum(0).max() <= 1.1 * ROWS / number
    # Bins are intervals of column 4, in its order.
    place = bins.argmax(1)[rows[:, 4].argsort()]
    assert (place.diff() >= 0).all()


@pytest.mark.parametrize("random_seed", range(3))
@pytest.mark.parametrize("heavy", [False, True])
def test_noise_and_straight_lines_need_no_bins(random_seed, heavy):
    rows, labels = drawn(60, random_seed)
    if heavy:
        rows = rows / torch.randn(ROWS, 60, generator=torch.Generator().manual_seed(random_seed + 9))
    else:
        rows[:, :30] += 0.5 * labels[:, None]
    assert binned_columns(sums_of(rows, labels)) is None


def test_few_columns_of_many_are_binned_and_of_very_many_none():
    rows, labels = drawn(MAX_COLUMNS)
    rows *= torch.where(labels == 1, 0.2, 2.0)[:, None]
    assert binned_columns(sums_of(rows, labels)).sum(1).unique().tolist() == [MAX_BINNED]
    assert binned_columns(sums_of(torch.cat([rows, rows[:, :1]], 1), labels)) is None


def test_few_rows_and_constant_columns_have_no_bins():
    rows, labels = drawn(4)
    assert binned_columns(sums_of(rows[:90], labels[:90])) is None
    assert binned_columns(sums_of(torch.zeros(ROWS, 2), labels)) is None
