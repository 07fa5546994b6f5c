"""Gradients of the atoms: against finite differences, without unrolling, and useful to an encoder."""

import numpy as np
import pytest
import torch
from ecsfusion_kernels import nearest
from torch import Tensor

from ecsfusion.pid import differentiable
from ecsfusion.pid.decomposition import decompose
from ecsfusion.pid.differentiable import cluster_centers, differentiable_pid, soft_assignments, soft_joint
from ecsfusion.pid.estimate import fast_pid


def soft_table(*shape: int, seed: int = 0) -> Tensor:
    cells = np.random.default_rng(seed).dirichlet(np.full(int(np.prod(shape)), 0.5)).reshape(shape)
    return torch.tensor(cells + 0.1 / cells.size)


def flat_atoms(joint: Tensor, tolerance: float) -> Tensor:
    atoms = differentiable_pid(joint, tolerance)
    return torch.cat([atoms.redundancy.reshape(-1), atoms.unique.reshape(-1), atoms.synergy.reshape(-1)])


def test_values_are_those_of_decompose() -> None:
    table = soft_table(5, 4, 3)
    pid, atoms = decompose(table, tolerance=1e-7), differentiable_pid(7 * table, 1e-7)
    assert float(atoms.redundancy) == pytest.approx(float(pid.redundancy), abs=2e-7)
    assert atoms.unique.tolist() == pytest.approx(pid.unique.tolist(), abs=2e-7)
    assert float(atoms.synergy) == pytest.approx(float(pid.synergy), abs=2e-7)
    for name in ("mutual_information", "joint_mutual_information", "conditional_mutual_information"):
        torch.testing.assert_close(getattr(atoms, name), getattr(pid, name), atol=1e-12, rtol=0)
    assert 0 <= float(atoms.gap) <= 1e-7


def test_gradcheck() -> None:
    tables = torch.stack(
        [40 * soft_table(3, 3, 2, seed=1), 90 * soft_table(3, 3, 2, seed=2)]
    ).requires_grad_()
    # The fields with gradients come first: the atoms, then the information of one, of both and given the label.
    assert torch.autograd.gradcheck(
        lambda joint: differentiable_pid(joint, 1e-11)[:6], (tables,), eps=1e-4, atol=1e-5, rtol=1e-3
    )


@pytest.mark.parametrize(("tolerance", "error"), [(1e-9, 2e-5), (1e-5, 2e-2)])
def test_finite_differences_along_directions_that_keep_the_sum(tolerance: float, error: float) -> None:
    """Also where a row, a column and a class are empty: the direction leaves empty cells empty."""
    table = torch.tensor(np.random.default_rng(3).dirichlet(np.full(320, 1.0)).reshape(8, 8, 5))
    table[2], table[:, 5], table[..., 1] = 0, 0, 0
    table = table / table.sum()
    generator = np.random.default_rng(4)
    point = table.clone().requires_grad_()
    values = flat_atoms(point, tolerance)
    for _ in range(3):
        direction = torch.tensor(generator.normal(size=table.shape)) * table
        direction -= table * direction.sum()
        step = 1e-3
        ahead, behind = (
            flat_atoms(table + step * direction, 1e-10),
            flat_atoms(table - step * direction, 1e-10),
        )
        expected = (ahead - behind) / (2 * step)
        for value, slope in zip(values, expected, strict=True):
            (grad,) = torch.autograd.grad(value, point, retain_graph=True)
            assert torch.isfinite(grad).all()
            assert float((grad * direction).sum()) == pytest.approx(float(slope), abs=error)


def test_scale_does_not_matter() -> None:
    table = (3 * soft_table(6, 5, 4)).requires_grad_()
    for value in flat_atoms(table, 1e-6):
        (grad,) = torch.autograd.grad(value, table, retain_graph=True)
        assert float((grad * table.detach()).sum()) == pytest.approx(0, abs=1e-12)


def test_nothing_is_kept_of_the_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that autograd saves are the same after few iterations and after many."""
    iterations = []
    solve = differentiable.broja

    def counting(*args: Tensor, **options: float) -> object:
        solution = solve(*args, **options)
        iterations.append(int(solution.iterations))
        return solution

    monkeypatch.setattr(differentiable, "broja", counting)
    saved = []
    for tolerance in (1e-1, 1e-9):
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            flat_atoms(soft_table(8, 8, 3).requires_grad_(), tolerance)
        saved.append(sum(kept))
    assert iterations[1] > 20 * iterations[0]
    assert saved[0] == saved[1] > 0


def test_soft_joint_of_hard_assignments_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second, labels = (torch.randint(0, k, (200,), generator=generator) for k in (4, 3, 5))
    one_hot = torch.nn.functional.one_hot
    joint = soft_joint(one_hot(first, 4).double(), one_hot(second, 3).double(), labels, num_classes=6)
    counted = torch.zeros(4, 3, 6, dtype=torch.float64)
    counted.index_put_((first, second, labels), torch.tensor(1 / 200, dtype=torch.float64), accumulate=True)
    torch.testing.assert_close(joint, counted)


def test_soft_assignments_follow_distances_not_units() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(60, 3, generator=generator)
    centers = cluster_centers(rows, 5)
    assert centers.shape == (5, 3)
    soft = soft_assignments(rows, centers)
    torch.testing.assert_close(soft.sum(-1), torch.ones(60))
    torch.testing.assert_close(soft, soft_assignments(100 * rows, 100 * centers), atol=1e-4, rtol=0)
    labels = nearest(rows.unsqueeze(0), centers.unsqueeze(0))[0][0]
    assert torch.equal(soft.argmax(-1), labels)
    assert soft_assignments(rows, centers, 1e-3).amax(-1).median() > 0.999


def test_gradients_reach_the_embeddings() -> None:
    generator = torch.Generator().manual_seed(2)
    first = torch.randn(40, 2, dtype=torch.float64, generator=generator).requires_grad_()
    second = torch.randn(40, 3, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.randint(0, 2, (40,), generator=generator)
    centers = cluster_centers(first, 4), cluster_centers(second, 3)

    def through(first: Tensor, second: Tensor) -> Tensor:
        soft = [soft_assignments(x, c) for x, c in zip((first, second), centers, strict=True)]
        return flat_atoms(soft_joint(*soft, labels), 1e-11)

    assert torch.autograd.gradcheck(through, (first, second), eps=1e-4, atol=1e-5, rtol=1e-2, fast_mode=True)


def two_modalities(number: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Label 2 u + (v xor w); x1 shows u and v, x2 shows u and w, in noise and behind a rotation."""
    generator = torch.Generator().manual_seed(seed)
    u, v, w = torch.randint(0, 2, (3, number), generator=generator)
    rotation = torch.linalg.qr(torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(99))).Q
    noise = 0.5 * torch.randn(2, number, 8, generator=generator)
    noise[..., :2] += 2 * torch.stack([torch.stack([u, v], -1), torch.stack([u, w], -1)]) - 1
    first, second = noise @ rotation
    return first, second, 2 * u + (v ^ w)


@pytest.mark.parametrize(("goal", "least"), [("synergy", 0.3), ("redundancy", -0.05)])
def test_ascent_on_soft_atoms_moves_the_hard_held_out_pid(goal: str, least: float) -> None:
    """Two linear encoders learn to raise the synergy, or to lower the redundancy, of what they show."""
    x1, x2, labels = two_modalities(1024, seed=0)
    held1, held2, held_labels = two_modalities(2048, seed=1)
    torch.manual_seed(0)
    encoder1, encoder2 = torch.nn.Linear(8, 2), torch.nn.Linear(8, 2)

    def held_out() -> float:
        with torch.no_grad():
            rows = {"first": encoder1(held1), "second": encoder2(held2)}
        return float(
            getattr(fast_pid(rows, held_labels, method="clusters", num_clusters=8, bootstrap=0), goal)
        )

    before = held_out()
    optimizer = torch.optim.Adam([*encoder1.parameters(), *encoder2.parameters()], lr=0.02)
    for step in range(40):
        h1, h2 = encoder1(x1), encoder2(x2)
        if step % 10 == 0:
            centres1, centres2 = cluster_centers(h1, 8), cluster_centers(h2, 8)
        joint = soft_joint(soft_assignments(h1, centres1), soft_assignments(h2, centres2), labels)
        atoms = differentiable_pid(joint, tolerance=1e-4)
        loss = -atoms.synergy if goal == "synergy" else atoms.redundancy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    change = held_out() - before
    assert change > least if goal == "synergy" else change < least


@pytest.mark.parametrize(
    ("joint", "error", "sentence"),
    [
        (np.ones((2, 2, 2)), TypeError, "joint must be a floating point tensor, got ndarray"),
        (
            torch.ones(2, 2, 2, dtype=torch.int64),
            TypeError,
            "joint must be a floating point tensor, got torch.int64",
        ),
        (torch.ones(2, 2), ValueError, "joint must have the shape"),
        (-torch.ones(2, 2, 2), ValueError, "joint must be finite and not negative"),
        (torch.full((2, 2, 2), torch.nan), ValueError, "joint must be finite and not negative"),
        (torch.zeros(2, 2, 2), ValueError, "joint has a table whose cells are all zero"),
    ],
)
def test_bad_tables_are_named(joint: Tensor, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        differentiable_pid(joint)


def test_bad_assignments_are_named() -> None:
    with pytest.raises(ValueError, match="one row per sample, got 3, 3 and 2 rows"):
        soft_joint(torch.ones(3, 2), torch.ones(3, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="temperature must be positive"):
        soft_assignments(torch.ones(3, 2), torch.ones(2, 2), temperature=0.0)
