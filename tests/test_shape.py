"""What the rows look like whatever the label: directions that are no Gaussian, and what only they tell."""

import numpy as np
import pytest
import torch

from benchmarks.known_truth.problems import from_states
from ecsfusion.pid.estimate import fast_pid
from ecsfusion.pid.linear import standardize
from ecsfusion.pid.shape import leading_directions, shape_of

CIRCLE = 2 * np.pi * np.arange(16) / 16


def rows_of(signal, columns, spread, random_seed):
    """Rows (N, D) of a signal (N, d) and unit noise beside it, mixed by a matrix of singular values 1 to `spread`."""
    generator = np.random.default_rng(random_seed)
    rows = np.concatenate([signal, generator.normal(size=(len(signal), columns - signal.shape[1]))], 1)
    left, right = (np.linalg.qr(generator.normal(size=(columns, columns)))[0] for _ in range(2))
    mixed = rows @ (left * np.linspace(1, spread, columns)) @ right
    return torch.from_numpy(mixed.astype(np.float32))


def bits_of(number, how_many, random_seed):
    """Signs (N, n) shown at 2 with unit noise, and the signs."""
    generator = np.random.default_rng(random_seed)
    signs = generator.choice([-1.0, 1.0], (number, how_many))
    return 2 * signs + generator.normal(size=signs.shape), signs


def explained(found, signal):
    """The share of the variance of each column of the signal (N, d) that a line of coordinates (N, q) explains."""
    found, signal = (
        torch.as_tensor(x).double() - torch.as_tensor(x).double().mean(0) for x in (found, signal)
    )
    rest = signal - found @ torch.linalg.lstsq(found, signal).solution
    return 1 - rest.square().sum(0) / signal.square().sum(0)


def labels_at_random(number, classes=2):
    return torch.eye(classes)[torch.arange(number) % classes]


@pytest.mark.parametrize(
    ("number", "columns", "spread"), [(4000, 24, 5.0), (20_000, 48, 5.0), (4000, 64, 1.0)], ids=str
)
def test_bits_are_found_however_the_columns_mix_them(number, columns, spread):
    """With few rows a column they are found where they vary most."""
    signal, _ = bits_of(number, 4, 11)
    (found,) = shape_of(standardize(rows_of(signal, columns, spread, 12)), labels_at_random(number)).sources
    assert found.shape == (number, 1, 4)
    assert (explained(found[:, 0], signal) > 0.9).all()


@pytest.mark.parametrize("more", ["constant", "copies"])
def test_columns_that_add_nothing_hide_no_sources(more):
    generator = np.random.default_rng(13)
    board = generator.random((1000, 2))
    rows = torch.from_numpy(np.concatenate([board, generator.normal(size=(1000, 2))], 1).astype(np.float32))
    added = rows if more == "copies" else torch.full((1000, 4), 7.0)
    (found,) = shape_of(standardize(torch.cat([rows, added], 1)), labels_at_random(1000)).sources
    assert (found[:, 0].var(0) > 0.5).all()
    assert (explained(found[:, 0], board) > 0.9).all()


def test_among_many_columns_sources_are_those_of_large_variance():
    generator = np.random.default_rng(21)
    place = generator.integers(16, size=6000)
    signal = 4 * np.stack([np.cos(CIRCLE[place]), np.sin(CIRCLE[place])], 1) + generator.normal(
        size=(6000, 2)
    )
    (found,) = shape_of(standardize(rows_of(signal, 300, 1.0, 22)), labels_at_random(6000)).sources
    assert (explained(found[:, 0], signal) > 0.85).all()


@pytest.mark.parametrize(("number", "columns"), [(300, 40), (2000, 16), (2000, 64), (5000, 200)])
def test_gaussian_rows_have_no_sources(number, columns):
    rows = rows_of(np.random.default_rng(31).normal(size=(number, columns)), columns, 9.0, 32)
    shape = shape_of(standardize(rows), labels_at_random(number))
    assert shape.sources == ()
    assert shape.leading.shape == (number, 1, 4)


def test_classes_that_are_all_there_is_to_see_are_no_sources():
    """Else what every discriminant analysis knows would be read again by tables."""
    generator = np.random.default_rng(41)
    labels = generator.integers(3, size=3000)
    rows = rows_of(6 * np.eye(3)[labels][:, :2] + generator.normal(size=(3000, 2)), 12, 3.0, 42)
    assert shape_of(standardize(rows), torch.eye(3)[labels]).sources == ()
    assert len(shape_of(standardize(rows), labels_at_random(3000)).sources) == 1


@pytest.mark.parametrize(
    "rows", [torch.zeros(50, 3), torch.randn(6, 2), torch.ones(1, 1)], ids=["0", "6", "1"]
)
def test_tiny_and_constant_rows_have_a_shape(rows):
    shape = shape_of(standardize(rows), labels_at_random(len(rows)))
    assert shape.leading.isfinite().all()
    assert all(found.isfinite().all() for found in shape.sources)


def test_columns_that_are_sums_of_others_hide_no_source():
    signal, _ = bits_of(3000, 2, 45)
    rows = rows_of(signal, 4, 3.0, 46)
    (found,) = shape_of(
        standardize(rows @ torch.randn(4, 12, generator=torch.Generator().manual_seed(47))),
        labels_at_random(3000),
    ).sources
    assert found.shape[2] == 2
    assert (explained(found[:, 0], signal) > 0.95).all()


def test_leading_directions_hold_the_largest_variance():
    generator = np.random.default_rng(51)
    rows = rows_of(5 * generator.normal(size=(800, 4)), 30, 1.0, 52)
    variance = torch.linalg.svdvals(rows.double()).square()
    for number in (4, 16, 30):
        found = leading_directions(rows, number)
        torch.testing.assert_close(found.T @ found, torch.eye(number), atol=1e-4, rtol=0)
        along = (rows @ found).square().sum(0).double()
        assert (along.diff() <= 1e-3 * along[:-1]).all()
        torch.testing.assert_close(along[:4], variance[:4], rtol=0.01, atol=0)


def test_the_parity_of_three_bits_is_known():
    """No mean and no covariance tells it."""
    signal, signs = bits_of(3000, 3, 61)
    labels = (signs.prod(1) > 0).astype(np.int64)
    other = torch.from_numpy(np.random.default_rng(62).normal(size=(3000, 6)).astype(np.float32))
    pid = fast_pid([rows_of(signal, 16, 4.0, 63), other], labels)
    many, _ = bits_of(400_000, 3, 64)
    share = (1 + np.tanh(2 * many).prod(1)) / 2
    unsure = -(share * np.log2(share.clip(1e-12)) + (1 - share) * np.log2((1 - share).clip(1e-12)))
    assert float(pid.mutual_information[0]) == pytest.approx(1 - unsure.mean(), abs=0.06)
    assert float(pid.unique[0]) == pytest.approx(1 - unsure.mean(), abs=0.06)


def angles(name, width, flips=0.0):
    """The label tells whether two angles are close: neither modality knows anything alone."""
    first, second = (grid.ravel() for grid in np.meshgrid(np.arange(16), np.arange(16), indexing="ij"))
    labels = np.eye(2)[((first - second) % 16 < width).astype(int)] * (1 - 2 * flips) + flips
    circle = 4 * np.stack([np.cos(CIRCLE), np.sin(CIRCLE)], 1)
    nuisance = ((6, 3.0),)
    return from_states(
        name,
        "angles",
        (20, 12),
        labels,
        (circle[first], circle[second]),
        nuisance=(nuisance, ()),
        closed_form="zero",
    )


@pytest.mark.parametrize("width", [8, 4])
def test_angles_of_two_modalities_are_compared(width):
    problem = angles(f"angles-{width}", width)
    truth = problem.truth(50_000)
    first, second, labels = problem.draw(4000, 71)
    pid = fast_pid([first, second], labels)
    assert float(pid.synergy) == pytest.approx(truth.S, abs=truth.tolerance + 0.02)
    low, high = pid.synergy_interval.tolist()
    assert low <= truth.S <= high
    assert float(pid.redundancy) < 0.03
    assert float(pid.unique.max()) < 0.03


def test_the_interval_knows_that_tables_across_are_coarse():
    """Few rows: tables miss a fifth of a narrow band of angles. Where nothing is left to tell, nothing is missed."""
    problem = angles("angles-2", 2)
    truth = problem.truth(50_000)
    found = []
    for seed in range(71, 79):
        first, second, labels = problem.draw(1500, seed)
        found.append(fast_pid([first, second], labels))
    assert float(torch.stack([pid.synergy for pid in found]).mean()) < truth.S - 0.03
    held = [pid.synergy_interval[0] <= truth.S <= pid.synergy_interval[1] for pid in found]
    assert sum(map(bool, held)) >= len(found) - 1
    (one, first_signs), (two, second_signs) = bits_of(1500, 1, 73), bits_of(1500, 1, 74)
    labels = (first_signs * second_signs > 0)[:, 0].astype(np.int64)
    clear = [rows_of(2 * signal, 6, 2.0, 75) for signal in (one, two)]
    assert float(fast_pid(clear, labels).synergy_interval[1]) < 1.15


def test_what_no_label_depends_on_tells_nothing():
    problem = angles("angles-of-no-label", 8)
    for seed in range(3):
        first, second, _ = problem.draw(1500, 80 + seed)
        labels = np.random.default_rng(90 + seed).integers(2, size=1500)
        pid = fast_pid([first, second], labels)
        for ends in (pid.redundancy_interval, *pid.unique_interval, pid.synergy_interval):
            assert float(ends[0]) == 0
        assert float(pid.held_out.joint_mutual_information) < 0.01
