"""Sums and screens of linear readouts: the fast ways give what the plain ones do."""

import math
from functools import partial

import pytest
import torch

from ecsfusion import fast_pid
from ecsfusion.pid import linear, mixtures, posteriors, soft_tables
from ecsfusion.pid.linear import (
    FEWEST_STEPS,
    MOST_STEPS,
    LinearSums,
    TrainingSets,
    are_dependent,
    class_mixing,
    fold_products,
    linear_readouts,
    mixed,
    products_of_slices,
    standardize,
    steps_for,
)
from ecsfusion.pid.pooling import pool

ROWS, FOLDS, CLASSES = 600, 6, 3


def drawn(columns, random_seed=0, strength=1.0):
    """Rows (N, D) around a mean for each class, sorted by fold and class, with folds and labels."""
    generator = torch.Generator().manual_seed(random_seed)
    cell = torch.arange(ROWS) % (FOLDS * CLASSES)
    fold, labels = cell.sort().values // CLASSES, cell.sort().values % CLASSES
    means = torch.randn(CLASSES, columns, generator=torch.Generator().manual_seed(1))
    return strength * means[labels] + torch.randn(ROWS, columns, generator=generator), fold, labels


def sums_of(rows, fold, labels):
    return LinearSums.make(standardize(rows), TrainingSets.make(fold, FOLDS, labels, CLASSES))


def test_rows_in_another_order_are_standardized_alike():
    rows = torch.randn(3000, 40, generator=torch.Generator().manual_seed(0)).exp() * 1e6
    rows[:, 3] = 7.0
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    found = standardize(rows, order)
    torch.testing.assert_close(found.mean(0), torch.zeros(40), rtol=0, atol=1e-2)
    spread = torch.ones(40).index_fill_(0, torch.tensor([3]), 0.0)
    torch.testing.assert_close(found.std(0), spread, rtol=0, atol=1e-2)
    assert (found[:, 3] == 0).all()
    assert (found[rows[order, 0].argsort(), 0].diff() >= 0).all()


@pytest.mark.parametrize("columns", [5, 300])
def test_slices_of_sorted_rows_give_the_sums_of_rows_in_any_order(columns):
    rows, fold, labels = drawn(columns)
    rows = standardize(rows)
    place = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))
    sorted_sets = TrainingSets.make(fold, FOLDS, labels, CLASSES)
    other_sets = TrainingSets.make(fold[place], FOLDS, labels[place], CLASSES)
    assert sorted_sets.cells is not None
    assert other_sets.cells is None
    one, other = LinearSums.make(rows, sorted_sets), LinearSums.make(rows[place], other_sets)
    for name in ("center", "deviation", "within"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-4)
    weights = torch.randn(FOLDS + 2, columns, CLASSES, generator=torch.Generator().manual_seed(3))
    offset = torch.randn(FOLDS + 2, CLASSES, generator=torch.Generator().manual_seed(4))
    read = one.read(weights, offset)
    torch.testing.assert_close(read[:, place], other.read(weights, offset), rtol=1e-4, atol=1e-3)
    products = fold_products(rows, rows.flip(1), sorted_sets)
    torch.testing.assert_close(products[0], rows[fold != 0].T @ rows[fold != 0].flip(1), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("place", [None, 0])
def test_differences_of_classes_by_rows_are_those_that_are_formed(monkeypatch, place):
    """Of both halves, and of one alone."""
    first, second = (sums_of(*drawn(columns, columns)).halves() for columns in (7, 9))
    if place is not None:
        first, second = first.one_set(place), second.one_set(place)
    formed = mixtures.class_products(first, second)
    monkeypatch.setattr(mixtures, "MAX_FORMED", 0)
    operator = mixtures.class_differences(first, second)
    monkeypatch.setattr(mixtures, "class_products", None)
    left = torch.randn(len(formed), 7, 2, generator=torch.Generator().manual_seed(5))
    right = torch.randn(len(formed), CLASSES, 9, 2, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(operator.from_left(left), formed.mT @ left.unsqueeze(1), rtol=1e-4, atol=1e-4)
    averaged = ((formed @ right) * first.share[..., None, None]).sum(1)
    torch.testing.assert_close(operator.from_right(right), averaged, rtol=1e-4, atol=1e-4)


def test_nothing_more_is_fitted_where_the_discriminant_analysis_tells_all():
    prior = torch.full((CLASSES,), 1 / CLASSES).log()
    certain = linear_readouts(sums_of(*drawn(8, strength=20.0)), prior)
    assert certain.tells_all
    assert len(certain.logits) == 1
    assert not linear_readouts(sums_of(*drawn(8, strength=0.3)), prior).tells_all


@pytest.mark.parametrize("random_seed", range(3))
def test_sides_are_dependent_where_one_tells_the_noise_of_the_other(random_seed):
    prior = torch.full((CLASSES,), 1 / CLASSES).log()
    rows, fold, labels = drawn(6, random_seed)
    noise = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(50 + random_seed))
    # The second side shows noise of the first, and nothing of the label.
    means = drawn(6, random_seed)[0]
    shown = rows - torch.stack([means[labels == c].mean(0) for c in range(CLASSES)])[labels] + 0.5 * noise
    first = sums_of(rows, fold, labels)
    for other, expected in ((shown, True), (noise, False)):
        second = sums_of(other, fold, labels)
        linear = linear_readouts(first, prior), linear_readouts(second, prior)
        assert are_dependent(first, second, linear) is expected


def test_an_estimate_that_does_not_know_where_the_folds_are_is_the_same(monkeypatch):
    """As on a GPU, whose host does not wait to know."""
    rows, _, labels = drawn(4, strength=0.8)
    others = drawn(3, 5, strength=0.5)[0]
    expected = fast_pid([rows, others], labels)
    make = TrainingSets.make
    monkeypatch.setattr(TrainingSets, "make", lambda *args: make(*args)._replace(cells=None))
    found = fast_pid([rows, others], labels)
    for name in ("mutual_information", "joint_mutual_information", "unique", "synergy"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0.03)


@pytest.mark.parametrize("together", [False, True])
def test_tables_counted_by_slices_are_those_counted_by_masks(together):
    """Of one clustering, and of the pairs of clusters of two sides."""
    _, fold, labels = drawn(2)
    sets = TrainingSets.make(fold, FOLDS, labels, CLASSES).folds()
    generator = torch.Generator().manual_seed(7)
    shares = [
        torch.rand(ROWS, FOLDS, size, generator=generator).softmax(-1) for size in (4, 5)[: 1 + together]
    ]
    log_prior = torch.full((CLASSES,), 1 / CLASSES).log()
    found = soft_tables.table_readout(shares, sets, log_prior)
    expected = soft_tables.table_readout(shares, sets._replace(cells=None), log_prior)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alone", [False, True])
def test_forms_read_by_slices_are_those_read_at_once(alone):
    """Of all sets, and of one half, which reads the other rows."""
    _, fold, labels = drawn(2)
    sets = TrainingSets.make(fold, FOLDS, labels, CLASSES)
    sets = sets._replace(folds_in=sets.folds_in[-1:], readers=()) if alone else sets.folds()
    number, generator = len(sets.folds_in), torch.Generator().manual_seed(8)
    left, right = (torch.randn(ROWS, number, 3, generator=generator) for _ in range(2))
    forms = torch.randn(number, CLASSES, 3, 3, generator=generator)
    found = mixtures._told_by_cell(left, right, forms, sets)
    torch.testing.assert_close(found, mixtures._told(left, right, forms, sets), rtol=1e-4, atol=1e-4)


def test_scores_of_blocks_of_rows_are_those_of_all(monkeypatch):
    sums = sums_of(*drawn(5))
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(FOLDS + 2, 5, CLASSES, generator=generator)
    offset = torch.randn(FOLDS + 2, CLASSES, generator=generator)
    truth = torch.einsum("nd,tdc->tcn", sums.rows, weights) + offset[..., None]
    for values_at_once in (linear.SCORED_VALUES, 7 * 5):
        monkeypatch.setattr(linear, "SCORED_VALUES", values_at_once)
        torch.testing.assert_close(sums.scores_by_class(weights, offset), truth, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums.scores(weights, offset), truth.permute(2, 0, 1), rtol=1e-4, atol=1e-4)


def test_the_product_of_independent_sides_is_fitted_once(monkeypatch):
    (one, fold, labels), (other, _, _) = drawn(5), drawn(4, random_seed=9)
    sets = TrainingSets.make(fold, FOLDS, labels, CLASSES)
    log_prior = sets.one_hot.mean(0).log()
    first, second = (posteriors.read_side(standardize(rows), sets, log_prior, 0) for rows in (one, other))
    fits = []

    def counted(fit, *options, **named):
        fits.append(fit)
        return fit(*options, **named)

    for name in ("pool", "pool_with_part"):
        monkeypatch.setattr(posteriors, name, partial(counted, getattr(posteriors, name)))
    pair = posteriors.read_pair(first, second, log_prior, 0)
    product = pool(
        torch.stack([s.log_posterior[0] - log_prior for s in (first, second)])[None], labels, log_prior
    )
    torch.testing.assert_close(pair.product, product.log_posterior[0], rtol=0, atol=1e-3)
    # One by halves and one by folds.
    assert len(fits) == 2


def test_what_many_wide_directions_hide_is_found_with_few_rows():
    """Only the least shrinkage finds it, and what is tried first tells nothing."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1200) % 2
    rows = torch.randn(1200, 400, generator=generator)
    rows[:, 0] += 8.0 * labels
    rows[:, 1:300] *= 100.0
    rows = rows @ torch.linalg.qr(torch.randn(400, 400, generator=generator)).Q
    noise = torch.randn(1200, 400, generator=generator)
    pid = fast_pid([rows, noise], labels)
    assert float(pid.held_out.mutual_information[0]) > 0.9
    assert float(pid.held_out.mutual_information[1]) < 0.01


def test_means_without_noise_are_those_of_shrunk_singular_values():
    """By mixing the logits, and by the means themselves; in slices, and of rows in any order."""
    rows, fold, labels = drawn(12, strength=0.4)
    sums = sums_of(rows, fold, labels)
    shrinkage = torch.tensor(0.2)
    factor = sums.factor(shrinkage)
    weights, offset = sums.discriminant(factor)
    mixing, shift = class_mixing(sums.deviation @ weights, sums.sets, 12, shrinkage)
    found = mixed(sums.read(weights, offset), mixing, shift, sums.sets)

    root = sums.share.sqrt().double()
    metric = torch.linalg.solve_triangular(factor.double(), sums.deviation.double().mT, upper=False)
    left, values, right = torch.linalg.svd(metric * root[:, None], full_matrices=False)
    sizes = sums.sets.sizes.double()[:, None]
    size = values * (sizes * (1 - 0.8 * 12 / sizes) / 12).sqrt()
    ratio = (CLASSES - 1) / 12
    shrunk = ((size.square() - ratio - 1).square() - 4 * ratio).clamp_min(0).sqrt() / size
    shrunk = torch.where(size > 1 + ratio**0.5, shrunk, 0.0)
    kept = (left * (values * shrunk / size)[:, None]) @ right / root[:, None]
    assert (shrunk == 0).any()
    assert (shrunk > 0).any()
    means = torch.linalg.solve_triangular(factor.double().mT, kept, upper=True).float()
    plain = -0.5 * kept.square().sum(1).float() - (sums.center[:, None] @ means)[:, 0]
    torch.testing.assert_close(found, sums.read(means, plain), rtol=1e-3, atol=1e-3)

    unsorted = sums.sets._replace(cells=None)
    torch.testing.assert_close(mixed(sums.read(weights, offset), mixing, shift, unsorted), found)


def test_many_classes_along_a_few_directions_are_told_with_few_rows():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4000) % 40
    means = torch.zeros(40, 200)
    means[:, :2] = 4.0 * torch.randn(40, 2, generator=generator)
    sides = [
        (means[labels] + torch.randn(4000, 200, generator=generator))
        @ torch.linalg.qr(torch.randn(200, 200, generator=generator)).Q
        for _ in range(2)
    ]
    points = torch.randn(20000, 2, generator=generator) + means[torch.arange(20000) % 40, :2]
    log_posterior = torch.log_softmax(-0.5 * torch.cdist(points, means[:, :2]).square(), 1)
    told = log_posterior.gather(1, (torch.arange(20000) % 40)[:, None]).mean()
    truth = float(told) / math.log(2) + math.log2(40)
    pid = fast_pid(sides, labels)
    assert float(pid.held_out.mutual_information.min()) > 0.95 * truth
    assert float(pid.mutual_information.max()) < 1.05 * truth


@pytest.mark.parametrize("columns", [1, 255, 256, 257, 300, 900])
def test_products_of_a_matrix_with_itself_are_exact(columns):
    """Of many columns half is computed, by blocks."""
    rows = torch.randn(40, columns, generator=torch.Generator().manual_seed(columns))
    slices = [slice(0, 13), slice(13, 13), slice(13, 40)]
    found = products_of_slices(rows, rows, slices)
    expected = torch.stack([rows[part].double().T @ rows[part].double() for part in slices])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_of_few_classes_logistic_regression_takes_few_steps_and_of_many_more():
    assert [steps_for(classes) for classes in (2, 10, 38, 1000)] == [
        FEWEST_STEPS,
        FEWEST_STEPS,
        10,
        MOST_STEPS,
    ]


def test_more_steps_tell_more_of_many_classes(monkeypatch):
    """Of classes that are no normal distributions; here each is four of them."""
    generator = torch.Generator().manual_seed(0)
    labels, part = (
        torch.randint(40, (2500,), generator=generator),
        torch.randint(4, (2500,), generator=generator),
    )
    rows = torch.randn(40, 4, 60, generator=generator)[labels, part]
    rows = rows + 1.2 * torch.randn(2500, 60, generator=generator)
    sides = [rows, torch.randn(2500, 2, generator=generator)]
    found = float(fast_pid(sides, labels).held_out.mutual_information[0])
    monkeypatch.setattr(linear, "steps_for", lambda classes: FEWEST_STEPS)
    assert found > float(fast_pid(sides, labels).held_out.mutual_information[0]) + 0.05
