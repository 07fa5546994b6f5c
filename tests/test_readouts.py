"""Readouts of what lines do not see: skewed columns, classes of other covariance, and islands of a few columns."""

import math

import pytest
import torch
from known_answers import values
from torch import Tensor

from ecsfusion import fast_pid
from ecsfusion.pid.landmarks import landmark_readouts
from ecsfusion.pid.linear import LinearSums, TrainingSets, standardize
from ecsfusion.pid.quadratic import MAX_VALUES, _log_densities, quadratic_readouts
from ecsfusion.pid.ranks import rank_readouts

ROWS = 2400


@pytest.fixture(params=[11, 12])
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    return torch.Generator().manual_seed(request.param)


def noise(columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(ROWS, columns, generator=generator)


def sets_of(labels: Tensor, classes: int) -> TrainingSets:
    """Labels that are sorted within six folds."""
    return TrainingSets.make(torch.arange(len(labels)) * 6 // len(labels), 6, labels, classes)


def sorted_labels(classes: int) -> Tensor:
    return (torch.arange(ROWS // 6) * classes // (ROWS // 6)).repeat(6)


def information(log_densities: Tensor, labels: Tensor) -> float:
    """Bits, of equally frequent classes, from the log densities (N, C) of rows under each."""
    told = torch.log_softmax(log_densities.double(), 1).gather(1, labels[:, None]).mean()
    return math.log2(log_densities.shape[1]) + float(told) / math.log(2)


def test_an_increasing_function_of_the_columns_costs_little(generator: torch.Generator) -> None:
    labels = torch.randint(5, (ROWS,), generator=generator)
    columns = torch.randn(5, 12, generator=generator)[labels] * 0.7 + noise(12, generator)
    other = noise(3, generator)
    plain, bent = (fast_pid([x, other], labels) for x in (columns, (2 * columns).exp()))
    assert float(plain.held_out.mutual_information[0]) > 1
    assert (values(plain) - values(bent)).abs().max() < 0.08


def test_a_heavy_tail_hides_little(generator: torch.Generator) -> None:
    """Of Cauchy noise in one column the densities are known."""
    labels = torch.randint(2, (ROWS,), generator=generator)
    centers = torch.tensor([[0.0, 0.0], [3.0, 2.0]])
    tails = (math.pi * (torch.rand(ROWS, 2, generator=generator) - 0.5)).tan()
    columns = centers[labels] + tails
    truth = information(-(1 + (columns[:, None] - centers).square()).log().sum(2), labels)
    found = fast_pid([columns, noise(2, generator)], labels)
    assert truth - 0.05 < float(found.mutual_information[0]) < truth + 0.05


def test_classes_that_differ_in_covariance_alone(generator: torch.Generator) -> None:
    labels = torch.randint(4, (ROWS,), generator=generator)
    maps = torch.eye(12) + torch.randn(4, 12, 12, generator=generator) / 6
    columns = (maps[labels] @ noise(12, generator)[..., None])[..., 0]
    inverse = torch.linalg.inv(maps.double())
    distance = torch.einsum("cij,nj->nci", inverse, columns.double()).square().sum(2)
    truth = information(-0.5 * distance + torch.linalg.slogdet(inverse).logabsdet, labels)
    found = fast_pid([columns, noise(3, generator)], labels)
    assert truth > 1
    assert abs(float(found.mutual_information[0]) - truth) < 0.05
    assert found.unique_interval[0, 0] <= truth <= found.unique_interval[0, 1]


def test_the_sign_of_a_correlation_across_modalities_is_synergy(generator: torch.Generator) -> None:
    labels = torch.randint(2, (ROWS,), generator=generator)
    first = noise(4, generator)
    sign = (2.0 * labels - 1)[:, None]
    second = 0.8 * sign * first + 0.6 * noise(4, generator)
    away = [(second - 0.8 * s * first).square().sum(1) / 0.72 for s in (-1, 1)]
    truth = information(-torch.stack(away, 1), labels)
    found = fast_pid([first, second], labels)
    assert abs(float(found.synergy) - truth) < 0.05
    assert float(found.mutual_information.max()) < 0.05


@pytest.mark.parametrize("across", [False, True])
def test_a_board_of_two_columns(generator: torch.Generator, across: bool) -> None:
    fields = torch.randint(4, (ROWS, 2), generator=generator)
    columns = fields + torch.rand(ROWS, 2, generator=generator)
    labels = fields.sum(1) % 2
    sides = columns.split(1, 1) if across else (columns, noise(2, generator))
    found = fast_pid(list(sides), labels)
    told = found.synergy if across else found.unique[0]
    # The edges of the fields are lost.
    assert 0.85 < float(told) <= 1.01


def test_spirals(generator: torch.Generator) -> None:
    labels = torch.randint(2, (ROWS,), generator=generator)
    turn = 4 * math.pi * torch.rand(ROWS, generator=generator)
    angle = turn + math.pi * labels
    columns = turn[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + 0.5 * noise(2, generator)
    found = fast_pid([columns, noise(2, generator)], labels)
    assert float(found.held_out.mutual_information[0]) > 0.8


def test_of_many_rows_few_are_under_all_classes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are C x D values for each: of 50 000 rows, 128 columns and 100 classes, gigabytes."""
    solve, largest = torch.linalg.solve_triangular, 0

    def counted(factor: Tensor, right: Tensor, *, upper: bool) -> Tensor:
        nonlocal largest
        largest = max(largest, right.numel())
        return solve(factor, right, upper=upper)

    generator = torch.Generator().manual_seed(13)
    mean, rows = torch.randn(10, 50, generator=generator), torch.randn(20_000, 50, generator=generator)
    spread = 0.5 + torch.rand(10, 50, generator=generator)
    monkeypatch.setattr(torch.linalg, "solve_triangular", counted)
    found = _log_densities(rows, mean, spread.diag_embed())
    assert 0 < largest <= MAX_VALUES < rows.numel() * 10
    exact = torch.distributions.Normal(mean, spread).log_prob(rows[:, None]).sum(2)
    assert (found - exact - 25 * math.log(2 * math.pi)).abs().max() < 1e-3


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_of_gaussian_classes_and_of_noise_hardly_ever_more_is_fitted(strength: float) -> None:
    labels = sorted_labels(4)
    sets, log_prior = sets_of(labels, 4), torch.full((4,), -math.log(4))
    fitted = torch.zeros(3)
    for seed in range(20, 32):
        generator = torch.Generator().manual_seed(seed)
        rows = standardize(strength * torch.randn(4, 10, generator=generator)[labels] + noise(10, generator))
        sums = LinearSums.make(rows, sets)
        known = [sums.read(*sums.discriminant(sums.factor(torch.tensor(0.03))))]
        ranks = rank_readouts(rows, sets, known, log_prior)
        quadratic = quadratic_readouts(sums, known, log_prior, seed)
        landmarks = landmark_readouts(rows, sets, known, log_prior, 0)
        fitted += torch.tensor([bool(found) for found in (ranks, quadratic, landmarks)])
    assert (fitted <= 5).all(), fitted


def test_they_are_not_read_by_rows_that_they_were_fitted_on(generator: torch.Generator) -> None:
    """Of labels that are drawn by lot, whatever the columns, nothing is told."""
    labels = torch.randint(3, (ROWS,), generator=generator)
    island = torch.randint(60, (ROWS,), generator=generator)
    columns = 5 * torch.randn(60, 3, generator=generator)[island] + 0.1 * noise(3, generator)
    found = fast_pid([columns, columns.exp()], labels)
    assert float(found.held_out.joint_mutual_information) < float(found.synergy_floor)
    assert float(values(found).abs().max()) < 0.02
