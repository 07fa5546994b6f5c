"""Pairs of columns that tell together what neither tells alone."""

import numpy as np
import pytest
import torch

from ecsfusion import fast_pid
from ecsfusion.pid.column_pairs import _bins, _gain, pair_readouts
from ecsfusion.pid.linear import TrainingSets, standardize

FOLDS = 6


def sets_of(labels, seed=0):
    """Training sets of rows that are sorted by fold and class, and the order of the rows."""
    generator = torch.Generator().manual_seed(seed)
    fold = torch.randint(FOLDS, labels.shape, generator=generator)
    order = (fold * (int(labels.max()) + 1) + labels).argsort(stable=True)
    return order, TrainingSets.make(fold[order], FOLDS, labels[order], int(labels.max()) + 1)


def board(rows, columns, seed, places=(1, 4)):
    """Columns of noise, two of which are the places on a board of 4 x 4 fields; the label is the colour."""
    generator = np.random.default_rng(seed)
    field = generator.integers(4, size=(rows, 2))
    values = generator.normal(size=(rows, columns))
    values[:, places] = field + generator.random((rows, 2))
    return torch.from_numpy(values).float(), torch.from_numpy(field.sum(1) % 2)


def gain_of(values, labels, number=4):
    order, sets = sets_of(labels)
    return _gain(_bins(standardize(values[order]), number), number, sets)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_pair_that_tells_is_found_among_noise(seed):
    gain = gain_of(*board(2000, 7, seed))
    assert gain.argmax() == 1 * 7 + 4
    assert 0.4 < float(gain.max()) <= np.log(2)
    gain[1, 4] = 0
    assert not gain.any()


def test_what_columns_tell_one_by_one_is_no_gain():
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(3, (3000,), generator=generator)
    values = torch.randn(3000, 5, generator=generator) + labels[:, None]
    values[:, 4] = values[:, 3] + 0.01 * values[:, 2]
    assert not gain_of(values, labels).any()


@pytest.mark.parametrize("seed", range(4))
def test_noise_has_no_pairs(seed):
    generator = torch.Generator().manual_seed(seed)
    assert not gain_of(torch.randn(1500, 12, generator=generator), torch.arange(1500) % 4).any()


@pytest.mark.parametrize("shape", [(400, 1), (20, 6), (400, 60)])
def test_what_cannot_be_judged_has_no_readout(shape):
    generator = torch.Generator().manual_seed(1)
    order, sets = sets_of(torch.arange(shape[0]) % 2)
    rows = standardize(torch.randn(shape, generator=generator)[order])
    assert pair_readouts(rows, sets, [torch.zeros(2, shape[0], 2)], torch.full((2,), -0.69)) == []


def test_constant_and_repeated_values_are_bins_too():
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(2, (1200, 3), generator=generator)
    values = torch.cat([bits.float(), torch.ones(1200, 1)], 1)
    gain = gain_of(values, bits[:, 0] ^ bits[:, 2])
    assert gain.argmax() == 2
    assert float(gain[0, 2]) == pytest.approx(np.log(2), abs=0.05)


@pytest.mark.parametrize("apart", [False, True])
def test_a_board_among_noise_is_told(apart):
    """Of 1 bit; classifiers of scikit-learn that search thresholds prove 0.73 to 0.9 of it."""
    values, labels = board(2500, 12, 7)
    sides = (
        [values[:, :4], values[:, 4:]]
        if apart
        else [values, torch.randn(2500, 2, generator=torch.Generator().manual_seed(0))]
    )
    pid = fast_pid(sides, labels)
    told = pid.held_out.synergy if apart else pid.held_out.mutual_information[0]
    assert 0.7 < float(told) <= 1.0
    assert float(pid.redundancy) < 0.05


def test_rows_in_another_order_have_the_same_answer():
    values, labels = board(1500, 8, 2)
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    one = fast_pid([values[:, :4], values[:, 4:]], labels)
    other = fast_pid([values[order, :4], values[order, 4:]], labels[order])
    torch.testing.assert_close(one.synergy, other.synergy, rtol=0, atol=1e-6)
