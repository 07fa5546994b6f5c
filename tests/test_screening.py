"""Which of many columns tell the label by a threshold."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency
from sorted_sets import FOLDS, sets_of

from ecsfusion.pid.linear import TrainingSets, standardize
from ecsfusion.pid.screening import MIN_ROWS, SPLIT_BY, telling_columns, thresholds


def chi_square(above, labels, classes):
    """By SciPy; 0 where few rows are on a side."""
    table = np.stack([np.bincount(labels[side], minlength=classes) for side in (above, ~above)])
    if table.sum(1).min() < MIN_ROWS:
        return 0.0
    return chi2_contingency(table[:, table.sum(0) > 0], correction=False).statistic


def expected_columns(rows, labels, levels, number):
    """The columns of greatest chi-square, in all rows or on both sides of those that are greatest there."""
    classes = labels.max() + 1

    def told(part):
        return np.array(
            [
                [chi_square(rows[part][:, k] > t, labels[part], classes) for t in levels[:, k]]
                for k in range(40)
            ]
        )

    alone = told(slice(None))
    best = alone.max(1)
    for column in np.argsort(-alone.max(1))[:SPLIT_BY]:
        above = rows[:, column] > levels[alone[column].argmax(), column]
        best = np.maximum(best, told(above).max(1) + told(~above).max(1))
    return np.sort(np.argsort(-best)[:number])


@pytest.mark.parametrize("classes", [2, 5])
def test_they_have_the_greatest_chi_square(classes):
    generator = torch.Generator().manual_seed(classes)
    labels = torch.arange(800) % classes
    order, sets = sets_of(labels)
    rows = torch.randn(800, 40, generator=generator)
    rows[:, 30:] += 0.3 * torch.randn(classes, 10, generator=generator)[labels]
    rows[:, 39] = (labels == 0) & (rows[:, 38] > 2)
    rows = standardize(rows[order])
    kept = telling_columns([rows[:, :7], rows[:, 7:]], sets, 12)
    assert kept.shape == (FOLDS + 2, 12)
    levels = thresholds(rows).numpy()
    for place in range(FOLDS):
        mine = sets.fold != place
        expected = expected_columns(rows[mine].numpy(), sets.labels[mine].numpy(), levels, 12)
        assert kept[place].tolist() == expected.tolist()


def test_a_training_set_chooses_by_its_own_labels():
    labels = torch.arange(600) % 3
    _, sets = sets_of(labels)
    rows = standardize(torch.randn(600, 60, generator=torch.Generator().manual_seed(0)))
    mine = sets.fold == 1
    renamed = TrainingSets.make(sets.fold, FOLDS, torch.where(mine, (sets.labels + 1) % 3, sets.labels), 3)
    before, after = (telling_columns([rows[:, :7], rows[:, 7:]], each, 8) for each in (sets, renamed))
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0], after[0])


def test_rows_in_any_order_choose_the_same():
    labels = torch.arange(500) % 4
    _, sets = sets_of(labels)
    rows = standardize(torch.randn(500, 50, generator=torch.Generator().manual_seed(1)))
    mixed = torch.randperm(500, generator=torch.Generator().manual_seed(2))
    other = TrainingSets.make(sets.fold[mixed], FOLDS, sets.labels[mixed], 4)
    assert torch.equal(
        telling_columns([rows[:, :7], rows[:, 7:]], sets, 9), telling_columns([rows[mixed]], other, 9)
    )


def test_a_column_that_tells_only_beside_another_is_seen():
    """Which of two columns tells the label, a third one says, and nothing alone."""
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(1500, 200, generator=generator)
    labels = torch.where(rows[:, 10] > 0, rows[:, 20] > 0, rows[:, 30] > 0).long()
    order, sets = sets_of(labels)
    for kept in telling_columns([standardize(rows[order])], sets, 8).tolist():
        assert {10, 20, 30} <= set(kept)


@pytest.mark.parametrize("share", [0.03, 0.97])
def test_two_values_are_parted_and_a_mark_of_what_is_missing_hides_nothing(share):
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(2000, 30, generator=generator)
    rows[:, 0] = (torch.rand(2000, generator=generator) < share).float()
    rows[torch.rand(2000, generator=generator) < 0.2, 1] = -999.0
    rows = standardize(rows)
    levels = thresholds(rows)
    # Of two values one is positive.
    assert any(torch.equal(rows[:, 0] > level, rows[:, 0] > 0) for level in levels[:, 0])
    above = (rows[:, 1:2] > levels[:, 1]).float().mean(0)
    assert int(((above > 0.1) & (above < 0.75)).sum()) >= 3
