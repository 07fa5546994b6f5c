"""Principal directions: the reference's subspace, orthonormal, in order, and zeros where there is nothing."""

import importlib

import pytest
import torch
from ecsfusion_kernels import principal_directions, reference


def rows(batch, number, dimension, decay=1.0):
    """Centred rows whose standard deviations fall by 10^-decay from the first direction to the last."""
    turn = torch.linalg.qr(torch.randn(dimension, dimension)).Q
    deviation = torch.logspace(0, -decay, dimension)
    points = (torch.randn(batch, number, dimension) * deviation) @ turn
    return points - points.mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("batch", "number", "dimension", "directions"),
    [(1, 50, 1, 1), (2, 60, 7, 3), (1, 40, 33, 8), (1, 70, 65, 9), (1, 60, 96, 24)],
)
def test_directions_equal_their_reference(device, batch, number, dimension, directions):
    points = rows(batch, number, dimension)
    found = principal_directions(points.to(device), directions).cpu()
    expected = reference.principal_directions(points, directions)
    assert found.shape == expected.shape == (batch, dimension, directions)
    # The same variance, direction by direction, and the same subspace where it does not depend on the last digit.
    variances = [(points @ basis).square().sum(1) for basis in (found, expected)]
    torch.testing.assert_close(*variances, rtol=2e-3, atol=1e-4 * float(variances[1].max()))
    assert bool((variances[0].diff(dim=-1) <= 1e-3 * variances[0][:, :1]).all()), "largest first"
    rank = min(directions, dimension)
    identity = torch.eye(directions)
    identity[rank:] = 0
    torch.testing.assert_close(found.mT @ found, identity.expand(batch, -1, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("limit", ["MAX_PROBLEMS", "MAX_ROWS", "MAX_DIMS"])
def test_many_launches_find_the_directions_of_one(device, monkeypatch, limit):
    points = rows(1, 60, 33).to(device)
    expected = principal_directions(points, 3)
    monkeypatch.setattr(importlib.import_module("ecsfusion_kernels.ops.principal"), limit, 0)
    torch.testing.assert_close(principal_directions(points, 3), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dimension", [3, 20, 1100])
def test_the_largest_entry_is_positive_and_a_problem_keeps_its_bits(device, two_iterations, dimension):
    """Blocks of one tile of dimensions, and of two."""
    points = rows(1, 30, dimension) if dimension < 1000 else torch.randn(1, 30, dimension)
    points = torch.cat([torch.randn_like(points), points]).to(device)
    found = principal_directions(points, 3)
    largest = found.gather(1, found.abs().argmax(1, keepdim=True))
    assert bool((largest >= 0).all())
    assert torch.equal(principal_directions(points[1:], 3), found[1:])


def test_directions_are_those_of_the_exact_method(device):
    points = rows(1, 200, 40, decay=2.0)
    found = principal_directions(points.to(device), 4)[0].cpu()
    exact = torch.linalg.svd(points[0], full_matrices=False).Vh[:4].T
    overlap = torch.linalg.svdvals(found.T @ exact)
    assert float(overlap.min()) > 0.999
    assert float((found * exact).sum(0).abs().min()) > 0.99


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_directions_without_variance_are_zero(device, rank):
    points = torch.randn(1, 50, rank) @ torch.randn(rank, 20)
    points = points - points.mean(1, keepdim=True)
    found = principal_directions(points.to(device), 5)[0].cpu()
    torch.testing.assert_close(found[:, :rank].T @ found[:, :rank], torch.eye(rank), atol=1e-4, rtol=0)
    captured = (points[0] @ found).square().sum()
    torch.testing.assert_close(captured, points.square().sum(), rtol=1e-4, atol=1e-12)
    assert bool((found[:, rank:].square().sum(0) <= 1 + 1e-4).all())


@pytest.fixture
def two_iterations(monkeypatch):
    """Instead of ten, for what does not depend on their number."""
    monkeypatch.setattr(importlib.import_module("ecsfusion_kernels.ops.principal"), "ITERATIONS", 2)


def test_what_is_not_finite_stays_in_its_problem(device, two_iterations):
    points = rows(2, 30, 20)
    expected = principal_directions(points.to(device), 3)[0]
    points[1, 5, 5] = torch.nan
    assert torch.equal(principal_directions(points.to(device), 3)[0], expected)


def test_principal_directions_is_a_well_formed_op(device, two_iterations):
    points = rows(1, 30, 20).to(device)
    torch.library.opcheck(torch.ops.ecsfusion_kernels.principal_directions, (points, 3))
    compiled = torch.compile(lambda x: principal_directions(x, 3) + 1, fullgraph=True, backend="eager")
    assert torch.equal(compiled(points), principal_directions(points, 3) + 1)
