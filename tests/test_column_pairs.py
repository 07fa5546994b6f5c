"""Pairs of columns that tell together what neither tells alone."""

import numpy as np
import pytest
import torch
from sorted_sets import sets_of
from torch.overrides import TorchFunctionMode

from ecsfusion import fast_pid
from ecsfusion.pid.column_pairs import COUNTS_PER_ROW, _edges, _gain, pair_readouts
from ecsfusion.pid.linear import standardize


def board(rows, columns, seed, places=(1, 4)):
    """Columns of noise, two of which are the places on a board of 4 x 4 fields; the label is the colour."""
    generator = np.random.default_rng(seed)
    field = generator.integers(4, size=(rows, 2))
    values = generator.normal(size=(rows, columns))
    values[:, places] = field + generator.random((rows, 2))
    return torch.from_numpy(values).float(), torch.from_numpy(field.sum(1) % 2)


def told_by_tables(bins, labels, half, number, classes):
    """The mean and the error of what tables of the first two columns tell more than the columns, table by table."""
    counts = np.zeros((2, classes, number, number))
    np.add.at(counts, (half, labels, bins[:, 0], bins[:, 1]), 1)
    prior = counts.sum((2, 3), keepdims=True) + 1e-3
    prior /= prior.sum(1, keepdims=True)

    def share(table):
        return (table + 2 * prior) / (table.sum(1, keepdims=True) + 2)

    first, second = share(counts.sum(3, keepdims=True)), share(counts.sum(2, keepdims=True))
    product, root = first * second / prior, np.sqrt(first * second)
    every = [first, second, product / product.sum(1, keepdims=True), root / root.sum(1, keepdims=True)]
    place = 1 - half, labels, bins[:, 0], bins[:, 1]
    shape = counts.shape
    told = np.log(share(counts))[place] - np.stack(
        [np.log(np.broadcast_to(one, shape))[place] for one in every]
    )
    return told.mean(1), told.std(1) / np.sqrt(len(labels))


def gain_of(values, labels, number=4):
    order, sets = sets_of(labels)
    columns = standardize(values[order]).T.contiguous()
    bins = torch.searchsorted(_edges(columns, [number])[0], columns, right=True).T
    return _gain(bins, number, sets.labels, sets.halves().reader[0], sets.num_classes)


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


@pytest.mark.parametrize("classes", [2, 5])
def test_the_gain_is_the_least_of_what_rows_are_told(classes):
    generator = np.random.default_rng(classes)
    bins, half = generator.integers(4, size=(900, 3)), generator.integers(2, size=900)
    labels = np.where(generator.random(900) < 0.7, bins.sum(1) - bins[:, 2], bins[:, 0]) % classes
    mean, error = told_by_tables(bins, labels, half, 4, classes)
    assert (mean > 4 * error).all()
    gain = _gain(torch.from_numpy(bins), 4, torch.from_numpy(labels), torch.from_numpy(half), classes)
    assert float(gain[0, 1]) == pytest.approx(mean.min(), rel=1e-3)
    assert not gain.tril().any()


def test_many_columns_and_classes_have_fewer_bins_or_none():
    """The counts of all tables of 48 columns of 8 bins, of 1000 classes, would need gigabytes."""
    values = torch.randn(4000, 48, generator=torch.Generator().manual_seed(3))
    order, sets = sets_of(torch.arange(4000) % 1000)
    counted = []

    class Counted(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                counted.append(found.numel())
            return found

    with Counted():
        pair_readouts(values[order], sets, [torch.zeros(2, 4000, 1000)], torch.full((1000,), -6.9))
    assert max(counted) <= COUNTS_PER_ROW * 4000


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


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_of_what_is_unique_knows_that_bins_are_coarse(seed):
    """The label is a function of the first side, one bit; bins of it tell 0.9 of that."""
    values, labels = board(1200, 2, seed, places=(0, 1))
    other = torch.randn(1200, 4, generator=torch.Generator().manual_seed(seed))
    pid = fast_pid([values, other], labels)
    low, high = pid.unique_interval[0].tolist()
    assert low <= 1.0 - 1e-3 <= high
    assert high - low < 0.3
