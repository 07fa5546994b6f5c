"""The solver's kernel: its certified interval holds the optimum, as the float64 reference finds it."""

import pytest
import torch
from ecsfusion_kernels import BrojaSolution, broja, reference

ROUNDING = 1e-9
SHAPES = [(1, 1, 1), (2, 2, 2), (3, 5, 7), (17, 16, 33), (1, 4, 3), (5, 33, 2)]


def marginals(tables):
    p = tables.double() / tables.double().sum((-3, -2, -1), keepdim=True)
    return p.sum(-2), p.sum(-3)


def random_tables(count, shape, samples=0, seed=0):
    """Dirichlet-like tables, or counts of samples from them: many cells, and some rows and columns, are empty."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    p = torch.rand(count, *shape, generator=generator, dtype=torch.float64) ** 8
    if samples == 0:
        return p
    drawn = torch.multinomial(p.flatten(1), samples, replacement=True, generator=generator)
    counts = torch.stack([torch.bincount(row, minlength=p[0].numel()) for row in drawn])
    return counts.reshape(p.shape).double()


def contains_the_optimum(solution, p1y, p2y):
    tight = reference.broja(p1y, p2y, tolerance=1e-7)
    low, high = tight.conditional_entropy, tight.conditional_entropy + tight.gap
    lower = solution.conditional_entropy.cpu()
    return bool(((lower <= high + ROUNDING) & (low <= lower + solution.gap.cpu() + ROUNDING)).all())


def on(device, tensors):
    return [tensor.to(device) for tensor in tensors]


@pytest.mark.parametrize("samples", [0, 30])
@pytest.mark.parametrize("shape", SHAPES)
def test_interval_contains_the_optimum(device, large, shape, samples):
    # Of large tables the interpreter solves one, and not as far: 5 to 15 iterations instead of up to 45.
    count, tolerance = (2, 2e-3) if large or max(shape) < 16 else (1, 2e-2)
    p1y, p2y = marginals(random_tables(count, shape, samples))
    solution = broja(*on(device, (p1y, p2y)), tolerance=tolerance)
    assert contains_the_optimum(solution, p1y, p2y)
    assert (solution.gap <= tolerance).all()
    # The reference stops by the gap in float64 and looks at the bounds of all its checks.
    known = reference.broja(p1y, p2y, tolerance=tolerance).iterations
    assert (solution.iterations.cpu() - known).abs().max() <= 5 + 0.2 * known.max()


def test_canonical_distributions(device):
    """(x1, x2, y) of redundant, unique, exclusive-or and "and": max H_Q(Y | X1, X2) in bits."""
    tables = torch.zeros(4, 2, 2, 2)
    for x1 in range(2):
        tables[0, x1, x1, x1] = 1
        for x2 in range(2):
            tables[1, x1, x2, x1] = tables[2, x1, x2, x1 ^ x2] = tables[3, x1, x2, x1 & x2] = 1
    solution = broja(*on(device, marginals(tables)), tolerance=1e-4)
    known = torch.tensor([0, 0, 1, 0.5], dtype=torch.float64)
    low = solution.conditional_entropy.cpu()
    assert (low <= known + ROUNDING).all()
    assert (known <= low + solution.gap.cpu() + ROUNDING).all()
    assert (solution.gap <= 1e-4).all()


def test_what_has_no_mass_changes_nothing(device):
    p1y, p2y = marginals(random_tables(1, (5, 4, 3), 40))
    wide1, wide2 = torch.zeros(1, 7, 5, dtype=torch.float64), torch.zeros(1, 18, 5, dtype=torch.float64)
    wide1[:, 1:6, 1:4], wide2[:, 2:6, 1:4] = p1y, p2y
    solution = broja(*on(device, (wide1, wide2)), tolerance=1e-4)
    assert solution.gap.item() <= 1e-4
    assert contains_the_optimum(solution, p1y, p2y)
    assert all(torch.isfinite(part).all() for part in solution)


def test_a_batch_of_different_tables(device):
    tables = random_tables(4, (4, 3, 2), 60).reshape(2, 2, 4, 3, 2)
    tables[0, 1] = 0
    tables[0, 1, 0, 0, 0] = 1
    p1y, p2y = marginals(tables)
    together = broja(*on(device, (p1y, p2y)), tolerance=5e-3)
    assert [tuple(part.shape) for part in together] == [(2, 2)] * 2 + [
        (2, 2, 4, 2),
        (2, 2, 3, 2),
        (2, 2, 4, 3),
        (2, 2),
    ]
    assert len(set(together.iterations.flatten().tolist())) > 1, "all tables stop together"
    assert contains_the_optimum(together, p1y, p2y)
    alone = broja(*on(device, (p1y[1, 1].clone(), p2y[1, 1].clone())), tolerance=5e-3)
    assert all(torch.equal(part, among[1, 1]) for part, among in zip(alone, together, strict=True))


@pytest.mark.parametrize("shape", [(65, 20, 3), (20, 65, 3), (65, 129, 3)])
def test_tiles_follow_the_reference(device, large, shape):
    """Several tiles of R and a block of classes that is not full: the same state after a few iterations."""
    if not large and min(shape[:2]) > 64:
        pytest.skip("the interpreter takes ten seconds for six tiles; it goes through two")
    # Tables near the uniform one, which few sweeps fit
    p1y, p2y = marginals(random_tables(1, shape) ** 0.25)
    iterations = 4 if large else 2
    solution = broja(*on(device, (p1y, p2y)), tolerance=2e-5, max_iterations=iterations)
    # In float64
    known = reference.broja(p1y, p2y, tolerance=1e-9, max_iterations=iterations)
    assert solution.iterations.item() == iterations
    torch.testing.assert_close(solution.coupling.cpu(), known.coupling, rtol=2e-3, atol=1e-8)
    torch.testing.assert_close(
        solution.conditional_entropy.cpu(), known.conditional_entropy, rtol=0, atol=1e-4
    )
    torch.testing.assert_close(solution.gap.cpu(), known.gap, rtol=2e-2, atol=1e-4)
    assert contains_the_optimum(solution, p1y, p2y)


def test_a_table_with_nan_ends(device):
    p1y, p2y = marginals(random_tables(2, (3, 4, 2)))
    p1y[0, 1, 1] = float("nan")
    solution = broja(*on(device, (p1y, p2y)), tolerance=1e-3)
    assert solution.iterations[0] == 1
    assert solution.gap[1] <= 1e-3
    assert not solution.gap[0] <= 1e-3


@pytest.mark.parametrize("tolerance", [1e-3, 1e-7])
def test_no_tables(device, tolerance):
    none = torch.zeros(0, 3, 2, device=device)
    assert [len(part) for part in broja(none, none, tolerance)] == [0] * 6


def test_broja_is_a_well_formed_op(device):
    p1y, p2y = on(device, marginals(random_tables(1, (2, 3, 2))))
    # It is called a dozen times: one iteration each.
    torch.library.opcheck(torch.ops.ecsfusion_kernels.broja, (p1y, p2y, 1e-3, 1))
    compiled = torch.compile(lambda a, b: broja(a, b, 1e-3, 1).gap * 2, fullgraph=True, backend="eager")
    assert torch.equal(compiled(p1y, p2y), broja(p1y, p2y, 1e-3, 1).gap * 2)
    p1y.requires_grad_()
    assert not any(part.requires_grad for part in broja(p1y, p2y, 1e-3))


def test_a_gpu_solves_as_the_processor_does(device, large):
    if not large:
        pytest.skip("the interpreter takes minutes for six tables to 1e-4 bits")
    p1y, p2y = marginals(random_tables(6, (20, 20, 6), 1280, seed=7))
    there, here = broja(*on(device, (p1y, p2y))), broja(p1y, p2y)
    assert all(part.device.type == device.type for part in there)
    assert (there.gap <= 1e-4).all()
    assert ((here.conditional_entropy - there.conditional_entropy.cpu()).abs() <= 1e-4).all()


def test_broja_needs_no_host(device, large):
    if not large:
        pytest.skip("a GPU is needed")
    p1y, p2y = on(device, marginals(random_tables(1024, (20, 20, 6), 1280)))
    expected = broja(p1y, p2y, tolerance=1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = broja(p1y, p2y, tolerance=1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = broja(p1y, p2y, tolerance=1e-3)
    graph.replay()
    for first, second, third in zip(expected, again, captured, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)
    assert (expected.gap <= 1e-3).all()
    assert contains_the_optimum(BrojaSolution(*(part[:8] for part in expected)), p1y[:8].cpu(), p2y[:8].cpu())


def test_a_table_with_a_nan_takes_nothing_from_those_beside_it():
    """Of the reference, whose iterations are those of all tables; a program of the kernel has one."""
    p1y, p2y = marginals(random_tables(2, (5, 4, 3), 1280))
    p1y[0, 0, 0] = torch.nan
    lower, gap = reference.broja(p1y, p2y, 1e-3)[:2]
    assert lower[0].isnan()
    alone = reference.broja(p1y[1:], p2y[1:], 1e-3).conditional_entropy
    assert gap[1] <= 1e-3
    torch.testing.assert_close(lower[1:], alone, rtol=0, atol=1e-3)
