"""Tables of categories: what cells tell, what copies of rows must not tell, and the warning where neither is known."""

import warnings

import numpy as np
import pytest
import torch
from known_answers import assert_consistent, intervals
from sorted_sets import sets_of

from ecsfusion import RepeatedRowsWarning, decompose, fast_pid
from ecsfusion.pid.cells import cell_readouts
from ecsfusion.pid.folds import copies_of_rows, has_sparse_cells, row_keys


def codes(sizes, rows, random_seed, classes=3, spread=1.5):
    """Two codes without an order, a label that each pair of them has shares of its own of, and these, (K, L, C)."""
    generator = np.random.default_rng(random_seed)
    shares = generator.normal(scale=spread, size=(*sizes, classes))
    shares = np.exp(shares) / np.exp(shares).sum(2, keepdims=True)
    first, second = (generator.integers(size, size=rows) for size in sizes)
    of_row = shares[first, second].cumsum(1)
    labels = (generator.random(rows)[:, None] > of_row).sum(1).clip(max=classes - 1)
    return first, second, labels, shares


def coded(code, size, how):
    """The columns of codes (N,): one of their names each, one number, or a vector for each name."""
    if how == "numbers":
        return code[:, None].astype(np.float32)
    if how == "one-hot":
        return np.eye(size, dtype=np.float32)[code]
    return np.random.default_rng(size).normal(size=(size, 8)).astype(np.float32)[code]


@pytest.mark.parametrize("how", ["numbers", "one-hot", "vectors"])
@pytest.mark.parametrize(("sizes", "rows"), [((12, 15), 4000), ((25, 30), 12_000)])
def test_what_only_the_cells_tell_is_found(how, sizes, rows):
    first, second, labels, shares = codes(sizes, rows, 3)
    found = fast_pid([coded(first, sizes[0], how), coded(second, sizes[1], how)], labels)
    truth = decompose(torch.from_numpy(shares))
    right = float(truth.joint_mutual_information)
    assert right > 0.5
    assert float(found.joint_mutual_information) == pytest.approx(right, abs=0.08)
    assert float(found.held_out.joint_mutual_information) <= right + 0.02
    assert_consistent(found)
    low, high = intervals(found).T
    atoms = torch.stack([truth.redundancy, *truth.unique, truth.synergy])
    assert (low - 0.02 <= atoms).all()
    assert (atoms <= high + 0.02).all()


@pytest.mark.parametrize("random_seed", range(3))
@pytest.mark.parametrize(
    ("sizes", "rows"), [((10, 12), 200), ((20, 20), 400), ((30, 40), 1500), ((9, 9), 1500)]
)
@pytest.mark.parametrize("copies", [2, 3])
def test_rows_of_noise_that_are_there_several_times_know_nothing(sizes, rows, copies, random_seed):
    generator = np.random.default_rng(random_seed)
    columns = [coded(generator.integers(size, size=rows), size, "vectors") for size in sizes]
    labels = generator.integers(2, size=rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fast_pid([np.tile(part, (copies, 1)) for part in columns], np.tile(labels, copies))
    assert float(found.held_out.joint_mutual_information) < 0.03
    assert (intervals(found)[:, 0] < 0.01).all()


def test_a_rare_class_that_was_drawn_again_knows_nothing():
    generator = np.random.default_rng(0)
    first, second = generator.integers(4, size=(3000, 4)), generator.integers(3, size=(3000, 4))
    labels = (generator.random(3000) < 0.08).astype(int)
    rare = np.flatnonzero(labels)
    drawn = np.concatenate([np.arange(3000), generator.choice(rare, 3000 - 2 * len(rare))])
    with pytest.warns(RepeatedRowsWarning, match=r"few rows that are equal in all of them.*groups=range"):
        found = fast_pid([first[drawn], second[drawn]], labels[drawn])
    assert (intervals(found)[:, 0] < 0.01).all()


def test_cells_of_few_rows_are_read_where_the_rows_are_said_to_be_their_own():
    generator = np.random.default_rng(5)
    labels = np.arange(4000) % 2
    first = generator.integers(50, size=4000)
    second = np.where(labels == 1, first, generator.integers(50, size=4000))
    columns = [coded(first, 50, "one-hot"), coded(second, 50, "one-hot")]
    with pytest.warns(RepeatedRowsWarning, match="are read as copies"):
        fast_pid(columns, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RepeatedRowsWarning)
        found = fast_pid(columns, labels, groups=range(len(labels)))
    # Only 1 in 50 of the others is the same by chance.
    assert float(found.synergy) > 0.75


def test_rows_of_a_dense_table_are_no_copies():
    first, second, labels, _ = codes((8, 9), 2000, 1)
    keys = row_keys([torch.from_numpy(part)[:, None].float() for part in (first, second)], 0)
    of_row = torch.from_numpy(labels)
    assert copies_of_rows(keys, of_row) == 1
    assert copies_of_rows(keys.repeat(3), of_row.repeat(3)) == 3
    assert not has_sparse_cells(keys, 1)
    assert has_sparse_cells(keys[:200], 1)
    assert has_sparse_cells(keys[:200].repeat(3), 3)
    # Four numbers of rows that have a common divisor.
    few = torch.arange(800) % 4
    assert copies_of_rows(few, few % 2) == 1


def test_rows_of_other_folds_are_counted():
    """The posterior of a cell is that of its rows in the training set, drawn towards the sides."""
    first, second, labels, _ = codes((5, 6), 1200, 2, classes=2, spread=3.0)
    order, sets = sets_of(torch.from_numpy(labels), seed=9)
    columns = [torch.from_numpy(part)[:, None].float()[order] for part in (first, second)]
    log_prior = sets.one_hot.mean(0).log()
    nothing = torch.zeros(2, len(labels), 2)
    found = cell_readouts(*columns, sets, [nothing, nothing], log_prior)
    cell = (columns[0] * 6 + columns[1])[:, 0]
    for row in (0, 500, 1199):
        others = (cell == cell[row]) & (sets.fold != sets.fold[row])
        counts = sets.one_hot[others].sum(0)
        for rows_alone, logits in zip((1.0, 8.0), found, strict=True):
            right = (counts + rows_alone * log_prior.exp()) / (counts.sum() + rows_alone)
            torch.testing.assert_close((logits[0, row] + log_prior).exp(), right, rtol=0, atol=1e-5)


def test_rows_that_are_no_categories_have_no_cells():
    _, sets = sets_of(torch.arange(600) % 2, seed=9)
    rows = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(2, 600, 2)
    assert cell_readouts(rows, rows.round(), sets, [nothing, nothing], torch.full((2,), 0.5).log()) == []
