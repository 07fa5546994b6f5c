"""The certified interval of the solver contains the optimum: known tables, an independent optimizer, hard inputs."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ecsfusion_kernels import BrojaSolution, broja
from ecsfusion_kernels.reference.broja import FLOAT32_ITERATIONS, _solve
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.optimize import minimize

from ecsfusion.pid.decomposition import decompose

ROUNDING = 1e-9


def marginals(table: np.ndarray | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    p = torch.as_tensor(table, dtype=torch.float64)
    p = p / p.sum((-3, -2, -1), keepdim=True)
    return p.sum(-2), p.sum(-3)


def random_tables(count: int, shape: tuple[int, int, int], samples: int, seed: int) -> torch.Tensor:
    """Histograms of `samples` draws from Dirichlet tables in which x1 and x2 depend on each other and on y."""
    generator = np.random.default_rng(seed)
    p = generator.dirichlet(np.full(math.prod(shape), 0.3), size=count)
    return torch.tensor(np.stack([generator.multinomial(samples, row) for row in p]).reshape(count, *shape))


def counts(largest: int = 5) -> st.SearchStrategy[np.ndarray]:
    """Small tables of counts, many of them zero, with at least one sample."""
    shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
    tables = npst.arrays(np.int64, shapes, elements=st.one_of(st.just(0), st.integers(0, largest)))
    return tables.filter(lambda table: table.sum() > 0)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_oracle_lies_in_the_certified_interval(shared_data: Path, tolerance: float) -> None:
    with np.load(shared_data / "pid_oracle.npz") as oracle:
        assert len(oracle["name"]) == 98
        for i, name in enumerate(oracle["name"]):
            pid = decompose(oracle[f"P_{i}"], tolerance=tolerance)
            gap, known = float(pid.gap), oracle["gap"][i] + ROUNDING
            assert gap <= tolerance, name
            for atom, low, truth in [
                ("R", float(pid.redundancy), oracle["R"][i]),
                ("S", float(pid.synergy), oracle["S"][i]),
                ("U1", float(pid.unique[0]) - gap, oracle["U1"][i]),
                ("U2", float(pid.unique[1]) - gap, oracle["U2"][i]),
            ]:
                assert low - known <= truth <= low + gap + known, (name, atom)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_an_independent_optimizer(classes: int, seed: int) -> None:
    """On 2 x 2 x C the distributions with P's pair marginals are a box, one number per class: search it directly."""
    p = np.random.default_rng(seed).dirichlet(np.full(4 * classes, 0.7)).reshape(2, 2, classes)
    direction = np.array([[1.0, -1.0], [-1.0, 1.0]])[..., None]
    box = [(-min(p[0, 0, y], p[1, 1, y]), min(p[0, 1, y], p[1, 0, y])) for y in range(classes)]

    def negative_entropy(t: np.ndarray) -> float:
        q = np.maximum(p + direction * t, 1e-300)
        return float((q * np.log2(q / q.sum(-1, keepdims=True))).sum())

    start = np.array([(low + high) / 2 for low, high in box])
    best = -minimize(negative_entropy, start, bounds=box, method="L-BFGS-B", options={"ftol": 1e-15}).fun
    solution = broja(*marginals(p), tolerance=1e-7)
    assert float(solution.conditional_entropy) - 1e-7 <= best
    assert best == pytest.approx(float(solution.conditional_entropy), abs=2e-6)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(counts(), st.sampled_from([1, 2, 5, 30]))
@example(np.eye(3, dtype=np.int64)[:, :, None] * np.eye(3, dtype=np.int64), 1)
def test_any_answer_contains_the_tight_one(table: np.ndarray, iterations: int) -> None:
    loose = broja(*marginals(table), tolerance=1e-12, max_iterations=iterations)
    tight = broja(*marginals(table), tolerance=1e-7)
    low, high = tight.conditional_entropy, tight.conditional_entropy + tight.gap
    assert loose.conditional_entropy <= high + ROUNDING
    assert low <= loose.conditional_entropy + loose.gap + ROUNDING
    assert int(loose.iterations) <= iterations


@settings(deadline=None, max_examples=40, derandomize=True)
@given(counts(largest=10**9), st.floats(0.0, 1.0))
def test_huge_and_steep_tables(table: np.ndarray, power: float) -> None:
    steep = np.where(table > 0, np.exp(-power * 80.0 * (table % 7) / 7.0) * table, 0.0)
    solution = broja(*marginals(steep), tolerance=1e-4)
    tight = broja(*marginals(steep), tolerance=1e-8)
    assert solution.gap <= 1e-4
    assert solution.conditional_entropy <= tight.conditional_entropy + tight.gap + ROUNDING
    assert tight.conditional_entropy <= solution.conditional_entropy + solution.gap + ROUNDING


def test_factors_reproduce_the_marginals() -> None:
    p1y, p2y = marginals(random_tables(5, (7, 6, 4), 400, seed=1))
    solution = broja(p1y, p2y, tolerance=1e-6)
    q1y = solution.factor1 * (solution.coupling @ solution.factor2)
    q2y = solution.factor2 * (solution.coupling.mT @ solution.factor1)
    torch.testing.assert_close(q1y, p1y, atol=1e-5, rtol=0)
    torch.testing.assert_close(q2y, p2y, atol=1e-5, rtol=0)


def test_batch_gives_what_each_table_gives_alone() -> None:
    tables = random_tables(12, (6, 5, 3), 300, seed=2).reshape(3, 4, 6, 5, 3)
    tables[1, 2] *= 0
    tables[1, 2, 0, 0, 0] = 1
    together = broja(*marginals(tables), tolerance=1e-5)
    assert together.gap.shape == together.iterations.shape == (3, 4)
    assert (together.gap <= 1e-5).all()
    for i in range(3):
        for j in range(4):
            alone = broja(*marginals(tables[i, j]), tolerance=1e-5)
            difference = (together.conditional_entropy[i, j] - alone.conditional_entropy).abs()
            assert difference <= torch.maximum(together.gap[i, j], alone.gap) + ROUNDING


def test_repeats_bit_for_bit() -> None:
    p1y, p2y = marginals(random_tables(8, (8, 8, 4), 200, seed=3))
    for first, second in zip(broja(p1y, p2y), broja(p1y, p2y), strict=True):
        assert torch.equal(first, second)


def test_iterates_in_float64_when_float32_does_not_suffice() -> None:
    """At 1e-9 bits the iterations must be float64; a table slower than the float32 budget goes on in float64."""
    p1y, p2y = marginals(random_tables(2, (6, 6, 3), 5000, seed=4))
    assert (broja(p1y, p2y, tolerance=1e-9).gap <= 1e-9).all()
    slow = marginals(random_tables(12, (12, 12, 4), 150, seed=4))
    budget = broja(*slow, tolerance=1e-6, max_iterations=FLOAT32_ITERATIONS)
    more = broja(*slow, tolerance=1e-6)
    assert (budget.gap > 1e-6).any()
    assert (more.gap <= 1e-6).all()
    assert int(more.iterations.max()) > FLOAT32_ITERATIONS


def test_arguments_stay_as_they_are_and_carry_no_graph() -> None:
    p1y, p2y = marginals(random_tables(2, (4, 3, 2), 100, seed=5))
    p1y.requires_grad_()
    before = p1y.detach().clone(), p2y.clone()
    solution = broja(p1y, p2y)
    assert torch.equal(p1y.detach(), before[0])
    assert torch.equal(p2y, before[1])
    assert not solution.factor1.requires_grad


def on_torch(p1y: torch.Tensor, p2y: torch.Tensor, tolerance: float) -> BrojaSolution:
    """What CUDA tensors go through: the same lines with torch in NumPy's place."""
    empty = BrojaSolution(*(torch.zeros_like(part) for part in broja(p1y, p2y, max_iterations=1)))
    _solve(torch, p1y, p2y, torch.arange(len(p1y)), empty, tolerance, 20_000)
    return empty


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
def test_torch_and_numpy_take_the_same_way(tolerance: float) -> None:
    p1y, p2y = marginals(random_tables(6, (7, 5, 4), 300, seed=6))
    numpy, by_torch = broja(p1y, p2y, tolerance=tolerance), on_torch(p1y, p2y, tolerance)
    assert (by_torch.gap <= tolerance).all()
    difference = (numpy.conditional_entropy - by_torch.conditional_entropy).abs()
    assert (difference <= tolerance + ROUNDING).all()
