"""Which of many columns tell the label by a threshold."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency
from sorted_sets import FOLDS, sets_of

from ecsfusion.pid.linear import TrainingSets, standardize
from ecsfusion.pid.screening import MIN_ROWS, THRESHOLDS, telling_columns


def columns_of(rows, labels, number):
    """The columns of greatest chi-square, by SciPy."""
    told = np.zeros(rows.shape[1])
    for threshold in THRESHOLDS:
        for place, above in enumerate((rows > threshold).T):
            table = np.stack(
                [np.bincount(labels[side], minlength=labels.max() + 1) for side in (above, ~above)]
            )
            if table.sum(1).min() >= MIN_ROWS:
                told[place] = max(told[place], chi2_contingency(table, correction=False).statistic)
    return np.sort(np.argsort(-told)[:number])


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
    for place in range(FOLDS):
        mine = sets.fold != place
        expected = columns_of(rows[mine].numpy(), sets.labels[mine].numpy(), 12)
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
