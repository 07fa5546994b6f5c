"""Modalities of many columns whose covariance tells the label: pairs that belong together or not, and one alone."""

import math

import numpy as np
import pytest
import torch
from known_answers import assert_consistent, intervals
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.model_selection import cross_val_predict

from ecsfusion import fast_pid
from ecsfusion.pid.canonical import canonical_coordinates, largest_of_noise
from ecsfusion.pid.folds import make_folds, row_keys
from ecsfusion.pid.linear import LinearSums, TrainingSets, fold_products, standardize
from ecsfusion.pid.quadratic import classes_differ

CORRELATION = 0.9


def pairs(rows, latents, columns, generator, of_class=(CORRELATION, 0.0), power=0.0):
    """Two modalities, among other columns, of `latents` whose correlation is that of the class, and the exact synergy.

    The synergy is that of these very rows, from the exact likelihood ratio. The spread of the columns falls with that
    power of their place, that of the latents is the largest.
    """
    labels = torch.randint(2, (rows,), generator=generator)
    correlation = torch.tensor(of_class, dtype=torch.float64)
    a, noise = torch.randn(2, rows, latents, generator=generator).double()
    r = correlation[labels][:, None]
    b = r * a + (1 - r * r).sqrt() * noise
    r = correlation[:, None, None]
    each = -0.5 * (1 - r * r).log() - (r * r * (a * a + b * b) - 2 * r * a * b) / (2 * (1 - r * r))
    told = each.sum(2).log_softmax(0)[labels, torch.arange(rows)].mean() / math.log(2) + 1
    shown = []
    for signal in (a, b):
        others = torch.randn(rows, columns - latents, generator=generator)
        mixing = torch.linalg.qr(torch.randn(columns, columns, generator=generator)).Q
        spread = torch.arange(1, columns + 1).float() ** -power
        shown.append((torch.cat([signal.float(), others], 1) * spread) @ mixing)
    return *shown, labels, float(told)


@pytest.mark.parametrize(
    ("rows", "latents", "columns", "of_class", "power"),
    [
        (3000, 8, 64, (0.9, 0.0), 0.0),
        (4000, 16, 160, (0.9, 0.0), 0.0),
        (6000, 12, 48, (0.8, -0.8), 0.0),
        (1500, 12, 500, (0.9, 0.0), 0.7),
    ],
    ids=["some directions", "few rows", "by its sign", "a spectrum as embeddings have"],
)
def test_whether_two_modalities_belong_together_is_synergy(rows, latents, columns, of_class, power):
    generator = torch.Generator().manual_seed(columns)
    *modalities, labels, truth = pairs(rows, latents, columns, generator, of_class, power)
    pid = fast_pid(modalities, labels)
    assert_consistent(pid)
    assert float(pid.synergy) == pytest.approx(truth, abs=0.1)
    low, high = intervals(pid)[3]
    assert low - 0.05 <= truth <= high + 0.05
    assert float(pid.mutual_information.max()) < 0.02
    # The rows of one modality in another order belong to none of the other.
    apart = fast_pid([modalities[0], modalities[1][torch.randperm(rows, generator=generator)]], labels)
    assert float(apart.synergy) < 0.02


def test_covariances_of_classes_in_many_columns_tell_what_a_quadratic_classifier_proves():
    rng = np.random.default_rng(3)
    labels = rng.integers(3, size=4000)
    rows = np.empty((4000, 144))
    for number in range(3):
        basis = np.linalg.qr(rng.normal(size=(144, 144)))[0]
        chosen = labels == number
        width = np.exp(0.2 * rng.normal(size=144))
        rows[chosen] = (rng.normal(size=(chosen.sum(), 144)) * width) @ basis.T
    likelihood = cross_val_predict(
        QuadraticDiscriminantAnalysis(reg_param=0.1), rows, labels, method="decision_function"
    )
    # Its densities are too sure; the best power of them, with hindsight.
    told = max(
        torch.from_numpy(power * likelihood).log_softmax(1)[np.arange(4000), labels].mean() / math.log(2)
        for power in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    )
    proven = float(told) + math.log2(3)
    assert proven > 0.3
    pid = fast_pid([rows.astype(np.float32), rng.normal(size=(4000, 3)).astype(np.float32)], labels)
    assert float(pid.held_out.mutual_information[0]) > proven - 0.03
    assert float(pid.mutual_information[1]) < 0.02


def sums_of(modalities, labels):
    """The sums of sides, and the labels in their order."""
    number = int(labels.max()) + 1
    folds = make_folds(row_keys(modalities, 0), labels, None, 6)
    place = (folds.fold * number + labels[folds.order]).argsort(stable=True)
    order, fold = folds.order[place], folds.fold[place]
    sets = TrainingSets.make(fold, 6, labels[order], number)
    return [LinearSums.make(standardize(rows, order), sets) for rows in modalities]


def test_canonical_coordinates_are_the_directions_that_follow_each_other():
    generator = torch.Generator().manual_seed(1)
    first, second, labels, _ = pairs(4000, 5, 60, generator)
    sums = sums_of([first, second], labels)
    found = canonical_coordinates(*sums, fold_products(sums[0].rows, sums[1].rows, sums[0].sets))
    # Half of the pairs belong together.
    assert found.shape == (4000, 10)
    correlation = np.corrcoef(found.numpy().T)[:5, 5:]
    np.testing.assert_allclose(np.diagonal(correlation), CORRELATION / 2, atol=0.08)
    np.testing.assert_allclose(correlation - np.diag(np.diagonal(correlation)), 0, atol=0.08)


@pytest.mark.parametrize(("rows", "columns"), [(600, 40), (1000, 200), (300, 300)])
def test_noise_has_no_canonical_coordinates(rows, columns):
    generator = torch.Generator().manual_seed(rows)
    for _ in range(5):
        modalities = list(torch.randn(2, rows, columns, generator=generator))
        sums = sums_of(modalities, torch.randint(3, (rows,), generator=generator))
        products = fold_products(sums[0].rows, sums[1].rows, sums[0].sets)
        assert canonical_coordinates(*sums, products) is None


@pytest.mark.parametrize(("first", "second", "rows"), [(60, 30, 1000), (200, 200, 900), (400, 10, 1000)])
def test_the_largest_correlation_of_noise_is_that_of_a_simulation(first, second, rows):
    rng = np.random.default_rng(first)
    bases = [np.linalg.qr(rng.normal(size=(rows, number)))[0] for number in (first, second)]
    largest = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)[0]
    assert largest_of_noise(first, second, rows) == pytest.approx(largest, abs=0.04)


def test_classes_of_one_covariance_rarely_seem_to_differ():
    generator = torch.Generator().manual_seed(0)
    wrong = 0
    for number in range(12):
        labels = torch.randint(2 + number % 3, (1500,), generator=generator)
        # Rows of unequal length are no difference between classes, and neither are their means.
        rows = torch.randn(1500, 150, generator=generator) * (1 + torch.rand(1500, 1, generator=generator))
        rows += torch.randn(5, 150, generator=generator)[labels]
        (sums,) = sums_of([rows], labels)
        wrong += classes_differ(sums, sums, number)
    assert wrong <= 1


def test_classes_of_unlike_covariance_differ():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (3000,), generator=generator)
    rows = torch.randn(3000, 150, generator=generator)
    rows[labels == 1] *= 1 + 0.3 * torch.randn(150, generator=generator)
    other = torch.randn(3000, 20, generator=generator)
    first, second = sums_of([rows, other], labels)
    assert classes_differ(first, first, 0)
    assert not classes_differ(first, second, 0)
