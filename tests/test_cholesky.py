"""Factors of covariances, as they are on a CPU and as their inverses, which a GPU keeps."""

import pytest
import torch

from ecsfusion import fast_pid
from ecsfusion.pid import cholesky, linear, quadratic
from ecsfusion.pid.cholesky import (
    FLAT,
    _cholesky,
    factored,
    half_solved,
    inverted,
    log_diagonal,
    solved,
    transposed_solved,
)
from ecsfusion.pid.linear import (
    LinearSums,
    TrainingSets,
    choose_shrinkage,
    logistic_path,
    standardize,
)
from ecsfusion.pid.mixtures import class_products, discriminant_coordinates


def positive(columns, seed, batch=3):
    rows = torch.randn(batch, 2 * columns + 3, columns, generator=torch.Generator().manual_seed(seed))
    return rows.mT @ rows / rows.shape[1] + 0.05 * torch.eye(columns)


@pytest.mark.parametrize("columns", [1, 2, 63, 64, 65, 127, 129, 200, 300])
def test_the_inverse_by_blocks_is_the_inverse(columns):
    factor = torch.linalg.cholesky(positive(columns, columns).double())
    found = inverted(factor)
    assert found.shape == factor.shape
    assert not found.triu(1).any()
    torch.testing.assert_close(found @ factor, torch.eye(columns).double().expand(3, -1, -1))


@pytest.mark.parametrize("columns", [95, 96, 97, 192, 193, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_by_blocks_keep_their_precision(dtype, columns):
    matrices = positive(columns, 5).to(dtype)
    factor = factored(matrices.clone())
    assert factor.dtype == dtype
    assert not factor.triu(1).any()
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(factor @ factor.mT, matrices, rtol=tolerance, atol=tolerance)


def test_factors_without_values_have_inverses():
    assert inverted(torch.zeros(0, 5, 5)).shape == (0, 5, 5)


@pytest.mark.parametrize("keeps_inverse", [False, True])
@pytest.mark.parametrize("columns", [1, 5, 150])
def test_what_factors_make_of_vectors(monkeypatch, keeps_inverse, columns):
    monkeypatch.setattr(cholesky, "keeps_inverse", lambda tensor: keeps_inverse)
    matrices, right = (
        positive(columns, 3),
        torch.randn(3, columns, 4, generator=torch.Generator().manual_seed(8)),
    )
    factor = factored(matrices.clone())
    tolerance = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(matrices @ solved(factor, right), right, **tolerance)
    lower = torch.linalg.cholesky(matrices)
    torch.testing.assert_close(lower @ half_solved(factor, right), right, **tolerance)
    torch.testing.assert_close(lower.mT @ transposed_solved(factor, right), right, **tolerance)
    torch.testing.assert_close(
        2 * log_diagonal(factor), torch.linalg.eigvalsh(matrices).log().sum(-1), **tolerance
    )


@pytest.mark.parametrize("keeps_inverse", [False, True])
def test_what_has_no_factor_divides_to_nearly_nothing(monkeypatch, keeps_inverse):
    monkeypatch.setattr(cholesky, "keeps_inverse", lambda tensor: keeps_inverse)
    factor = factored(torch.stack([torch.eye(70), -torch.eye(70)]))
    found = half_solved(factor, torch.ones(2, 70, 1))
    torch.testing.assert_close(found[0], torch.ones(70, 1))
    torch.testing.assert_close(found[1], torch.ones(70, 1) / FLAT)


def test_large_matrices_without_a_factor_are_found_and_the_others_factored():
    rows = torch.randn(400, 300, generator=torch.Generator().manual_seed(9))
    matrix = rows.T @ rows / 400 + 0.1 * torch.eye(300)
    factor, failed = _cholesky(torch.stack([matrix, -matrix]))
    assert failed.bool().tolist() == [False, True]
    torch.testing.assert_close(factor[0] @ factor[0].T, matrix, rtol=1e-4, atol=1e-4)
    assert (factor[0].triu(1) == 0).all()


def as_a_gpu(monkeypatch):
    """With inverses for factors, and rows that are read at once and not piece by piece."""
    monkeypatch.setattr(cholesky, "keeps_inverse", lambda tensor: True)
    monkeypatch.setattr(linear.TrainingSets, "is_in_pieces", property(lambda sets: False))


@pytest.mark.parametrize("columns", [5, 70, 140])
def test_readouts_as_a_gpu_makes_them_are_those_of_a_cpu(monkeypatch, columns):
    generator = torch.Generator().manual_seed(columns)
    cell = (torch.arange(900) * 18 // 900).sort().values
    fold, labels = cell // 3, cell % 3
    rows = torch.randn(900, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    rows[:, 0] += 30 * labels
    log_prior = torch.full((3,), 1 / 3).log()

    def made():
        sums = LinearSums.make(standardize(rows), TrainingSets.make(fold, 6, labels, 3))
        factor = sums.factor(torch.tensor(0.03))
        halves = sums.halves()
        readouts = [sums.read(*sums.discriminant(factor)), logistic_path([halves], [factor[6:]])]
        readouts.append(quadratic._read(sums, class_products(sums, sums), 3.0))
        losses = choose_shrinkage(sums, torch.tensor(linear.SHRINKAGE), log_prior)[1]
        # The signs of directions are arbitrary.
        along = discriminant_coordinates(halves, factor[6:], 2).abs()
        return [*readouts, along, torch.tensor(losses)]

    expected = made()
    as_a_gpu(monkeypatch)
    for ours, theirs in zip(made(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["gaussian", "wide", "parity across", "noise"])
def test_an_estimate_as_a_gpu_makes_it_is_that_of_a_cpu(monkeypatch, kind):
    """Up to rounding, which may turn a choice between readouts that tell as much."""
    generator = torch.Generator().manual_seed(9)
    labels = torch.randint(3, (1200,), generator=generator)
    columns = 140 if kind == "wide" else 6
    bits = torch.randint(2, (1200, 2), generator=generator)
    if kind == "parity across":
        labels = bits.sum(1) % 2
    told = bits.float() if kind == "parity across" else torch.stack([labels == 0, labels != 1], 1).float()
    strength = 0.0 if kind == "noise" else 3.0
    sides = [
        strength * told[:, [m]] * torch.eye(columns)[0] + torch.randn(1200, columns, generator=generator)
        for m in (0, 1)
    ]
    expected = fast_pid(sides, labels)
    as_a_gpu(monkeypatch)
    found = fast_pid(sides, labels)
    for name in ("redundancy", "synergy", "unique"):
        width = getattr(expected, f"{name}_interval").diff(dim=-1).squeeze(-1)
        assert ((getattr(found, name) - getattr(expected, name)).abs() <= 0.25 * width).all(), name
