"""Folds from what the rows hold: groups, equal rows, classes, order."""

import pytest
import torch

from ecsfusion.pid import folds as folds_module
from ecsfusion.pid.folds import (
    HASHED_COLUMNS,
    KEY_BITS,
    logit_keys,
    make_folds,
    numbered_by_rows,
    row_keys,
)
from ecsfusion.pid.linear import TrainingSets

FOLDS = 6


def rows_of(number, columns=3, random_seed=0):
    return torch.randn(number, columns, generator=torch.Generator().manual_seed(random_seed))


def by_row(folds, values):
    """Values of the rows of `folds.order` in the order that the rows were given in."""
    return torch.empty_like(values).index_copy_(0, folds.order, values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_equal_rows_have_equal_keys_and_others_do_not(dtype):
    rows = rows_of(500).to(dtype).unique(dim=0)
    keys = row_keys([rows, -rows], 0)
    assert len(keys.unique()) == len(rows)
    assert ((keys >= 0) & (keys < 1 << KEY_BITS)).all()
    assert torch.equal(row_keys([rows.repeat(2, 1), -rows.repeat(2, 1)], 0), keys.repeat(2))
    assert not (row_keys([rows, -rows], 1) == keys).all()
    # One modality that differs is another row.
    assert (row_keys([rows, -rows.roll(1, 0)], 0) != keys).all()


def test_minus_zero_is_zero():
    zero = torch.zeros(1, 2)
    assert torch.equal(row_keys([zero], 0), row_keys([-zero], 0))


def test_swapped_columns_are_another_row():
    rows = rows_of(200)
    assert (row_keys([rows], 0) != row_keys([rows.flip(1)], 0)).all()


@pytest.mark.parametrize("classes", [HASHED_COLUMNS, HASHED_COLUMNS + 30])
def test_keys_of_heads_tell_rows_apart_by_any_class(classes):
    """By all columns, where those of embeddings are looked at only of rows that some columns do not tell apart."""
    logits = rows_of(50)[:, :1].repeat(1, classes)
    other = logits.clone()
    other[:, 1] += 1.0
    keys = logit_keys([logits, other], 3)
    assert torch.equal(keys, logit_keys([logits, other], 3))
    assert (keys != logit_keys([other, logits], 3)).all()
    assert (keys != logit_keys([logits, logits], 3)).all()
    assert int(keys.min()) >= 0
    assert int(keys.max()) < 2**KEY_BITS


def test_rows_in_another_order_get_the_same_folds():
    rows, labels = rows_of(997), torch.arange(997) % 7
    keys = row_keys([rows], 3)
    base = make_folds(keys, labels, None, FOLDS)
    place = torch.randperm(997, generator=torch.Generator().manual_seed(1))
    moved = make_folds(keys[place], labels[place], None, FOLDS)
    assert torch.equal(by_row(moved, moved.fold), by_row(base, base.fold)[place])
    assert torch.equal(moved.fold, base.fold)
    assert torch.equal(place[moved.order], base.order)


@pytest.mark.parametrize("classes", [2, 10, 28])
def test_every_fold_has_its_share_of_every_class(classes):
    labels = (torch.rand(2000, generator=torch.Generator().manual_seed(2)).square() * classes).long()
    folds = make_folds(row_keys([rows_of(2000)], 0), labels, None, FOLDS)
    for label in range(classes):
        counts = torch.bincount(folds.fold[labels[folds.order] == label], minlength=FOLDS)
        assert counts.max() - counts.min() <= 1
    assert folds.num_groups == 2000


def test_equal_rows_stand_in_one_fold_whatever_their_label():
    rows = rows_of(100).repeat(5, 1)
    labels = torch.arange(500) // 100
    folds = make_folds(row_keys([rows], 0), labels, None, FOLDS)
    assert folds.num_groups == 100
    place = by_row(folds, folds.fold).view(5, 100)
    assert (place == place[0]).all()
    assert len(place[0].unique()) == FOLDS


@pytest.mark.parametrize("sizes", ["even", "one large"])
def test_groups_lie_in_one_fold_as_a_whole(sizes):
    generator = torch.Generator().manual_seed(3)
    groups = torch.randint(80, (1000,), generator=generator)
    if sizes == "one large":
        groups[:600] = 0
    groups = groups.unique(return_inverse=True)[1]
    labels = torch.randint(4, (1000,), generator=generator)
    folds = make_folds(row_keys([rows_of(1000)], 0), labels, groups, FOLDS)
    assert folds.num_groups == len(groups.unique())
    fold = by_row(folds, folds.fold)
    for number in groups.unique():
        assert len(fold[groups == number].unique()) == 1
    # The group that comes back is the one that was given, under another number.
    pairs = torch.stack([groups, by_row(folds, folds.group)]).unique(dim=1)
    assert pairs.shape[1] == folds.num_groups
    assert len(fold.unique()) == FOLDS


def test_the_names_of_groups_and_the_order_of_their_rows_do_not_matter():
    keys, labels = row_keys([rows_of(600)], 0), torch.arange(600) % 3
    groups = torch.arange(600) // 4
    base = make_folds(keys, labels, groups, FOLDS)
    renamed = make_folds(keys, labels, 149 - groups, FOLDS)
    assert all(torch.equal(a, b) for a, b in zip(renamed, base, strict=True))
    place = torch.randperm(600, generator=torch.Generator().manual_seed(4))
    moved = make_folds(keys[place], labels[place], groups[place], FOLDS)
    assert torch.equal(moved.fold, base.fold)
    assert torch.equal(place[moved.order], base.order)


def test_a_row_is_judged_by_sets_that_it_is_not_in():
    fold = torch.arange(60) % FOLDS
    sets = TrainingSets.make(fold, FOLDS, torch.arange(60) % 4, 4)
    assert (sets.held_out(sets.member) == 0).all()
    # All but one fold, and half of the rows.
    assert sets.sizes.tolist() == [50.0] * FOLDS + [30.0, 30.0]
    assert torch.equal(sets.member[:, FOLDS] + sets.member[:, FOLDS + 1], torch.ones(60))


def test_groups_of_uneven_sizes_fill_the_folds_evenly():
    """Sixty sources; the largest alone is more than a fold."""
    sizes = (200 / torch.arange(1, 61)).long().clamp_min(5)
    groups = torch.arange(60).repeat_interleave(sizes)
    labels = torch.arange(60).remainder(3).repeat_interleave(sizes)
    folds = make_folds(row_keys([rows_of(len(groups))], 0), labels, groups, FOLDS)
    counts = torch.bincount(folds.fold, minlength=FOLDS)
    assert counts.max() < 1.5 * counts.min()


def test_rows_are_told_apart_by_any_column():
    """Also by one that is not hashed of every row."""
    rows = rows_of(40)[:, :1].expand(-1, 10 * HASHED_COLUMNS).clone()
    rows[20:] = rows[:20]
    assert len(row_keys([rows], 0).unique()) == 20
    rows[20:30, 7] += 1
    assert len(row_keys([rows], 0).unique()) == 30


@pytest.mark.parametrize("size", [2, 5])
def test_very_many_groups_fill_the_folds_evenly(monkeypatch, size):
    """A fold is chosen for few of them, and dealt for the others."""
    monkeypatch.setattr(folds_module, "MAX_CHOSEN", 40)
    generator = torch.Generator().manual_seed(size)
    groups = torch.randint(6000 // size, (6000,), generator=generator).unique(return_inverse=True)[1]
    labels = torch.randint(3, (6000,), generator=generator)
    folds = make_folds(row_keys([rows_of(6000)], 0), labels, groups, FOLDS)
    counts = torch.zeros(FOLDS, 3).index_put_(
        (folds.fold, labels[folds.order]), torch.ones(6000), accumulate=True
    )
    assert counts.sum(1).max() <= 1.02 * counts.sum(1).min()
    assert (counts.max(0).values <= 1.2 * counts.min(0).values).all()
    for fold in range(FOLDS):
        others = folds.group[folds.fold != fold]
        assert not torch.isin(folds.group[folds.fold == fold], others).any()


def test_classes_are_numbered_by_their_rows_also_where_they_share_the_first():
    """Rows of few values stand in several classes, the one with the smallest key, too."""
    generator = torch.Generator().manual_seed(3)
    keys = row_keys([torch.randint(0, 4, (300, 1), generator=generator).float()], 0)
    labels = torch.randint(0, 5, (300,), generator=generator)
    names = torch.tensor([11, 2, 7, 0, 5])
    classes, numbered = numbered_by_rows(keys, labels)
    renamed, same = numbered_by_rows(keys, names[labels])
    assert torch.equal(classes[numbered], labels)
    assert torch.equal(renamed, names[classes])
    assert torch.equal(same, numbered)
    place = torch.randperm(300, generator=generator)
    assert torch.equal(numbered_by_rows(keys[place], labels[place])[1], numbered[place])


def test_groups_that_share_rows_stay_whole():
    """Such as rows of zeros, which several subjects have: sorted by key alone, rows of both groups alternate."""
    generator = torch.Generator().manual_seed(4)
    keys = row_keys([torch.randint(0, 6, (240, 1), generator=generator).float()], 0)
    labels = torch.randint(0, 2, (240,), generator=generator)
    groups = torch.arange(240) // 8
    folds = make_folds(keys, labels, groups, FOLDS)
    assert int(folds.num_groups) == 30
    for number in range(30):
        assert len(folds.fold[groups[folds.order] == number].unique()) == 1
        assert len(folds.group[groups[folds.order] == number].unique()) == 1
