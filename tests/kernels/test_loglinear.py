"""The fit without three-way interaction: its kernel against the reference in float64, and what the fit promises."""

import math

import pytest
import torch
from ecsfusion_kernels import loglinear, reference

SHAPES = [
    (1, 1, 1, 1),
    (3, 2, 2, 2),
    (2, 3, 5, 7),
    (2, 17, 16, 33),
    (1, 20, 20, 6),
    (1, 5, 70, 3),
    (1, 67, 66, 2),
]


def pair_tables(count, num1, num2, num_classes, samples=0, seed=0):
    """The three pair tables of Dirichlet tables, or of samples from them: float64, each of sum 1."""
    generator = torch.Generator().manual_seed(seed + num1 + num2 + num_classes)
    p = torch.rand(count, num1, num2, num_classes, generator=generator, dtype=torch.float64) ** 3 + 1e-9
    if samples:
        drawn = torch.multinomial(p.flatten(1), samples, replacement=True, generator=generator)
        p = (
            torch.zeros_like(p)
            .flatten(1)
            .scatter_add_(1, drawn, torch.ones_like(drawn, dtype=p.dtype))
            .reshape(p.shape)
        )
    p = p / p.sum((1, 2, 3), keepdim=True)
    return p.sum(3), p.sum(2), p.sum(1)


def information(table):
    """I(X1, X2; Y) in bits, (B,)."""
    independent = table.sum(3, keepdim=True) * table.sum((1, 2), keepdim=True)
    return torch.special.xlogy(table, table / independent.clamp_min(1e-300)).sum((1, 2, 3)) / math.log(2)


@pytest.mark.parametrize("samples", [0, 40])
@pytest.mark.parametrize("shape", SHAPES)
def test_loglinear_equals_its_reference(device, large, shape, samples):
    tables = pair_tables(*shape, samples)
    # Every sweep is the same code: the interpreter need not repeat it as often as a fit does.
    sweeps = 30 if large and max(shape) <= 20 else 3
    expected = reference.loglinear(*tables, sweeps)
    found = loglinear(*(t.to(device) for t in tables), sweeps).cpu()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-8)
    torch.testing.assert_close(information(found), information(expected), rtol=0, atol=1e-6)


def test_loglinear_fits_all_three_pair_tables(device):
    tables = [t.to(device) for t in pair_tables(2, 4, 5, 3)]
    found = loglinear(*tables, 30)
    for dim, table in zip((3, 2, 1), tables, strict=True):
        torch.testing.assert_close(found.sum(dim), table, rtol=0, atol=2e-7)


def test_what_has_no_mass_stays_without(device):
    p12, first, second = pair_tables(1, 6, 5, 4, samples=30)
    p12[:, 2], first[:, 2] = 0, 0
    p12[:, :, 4], second[:, 4] = 0, 0
    first[:, :, 1], second[:, :, 1] = 0, 0
    found = loglinear(p12.to(device), first.to(device), second.to(device))
    assert torch.isfinite(found).all()
    assert not found[:, 2].any()
    assert not found[:, :, 4].any()
    assert not found[..., 1].any()


@pytest.mark.parametrize("seed", [10, 12])
def test_pair_tables_that_contradict_each_other_give_a_finite_table(device, seed):
    """The label is known from x2 for certain, and p(x1, y) is smoothed: a class has mass where no x2 allows it."""
    generator = torch.Generator().manual_seed(seed)
    x1, x2 = torch.randint(6, (2, 20 if seed == 10 else 40), generator=generator)
    counts = torch.zeros(6, 6, 3, dtype=torch.float64)
    counts.index_put_((x1, x2, x2 % 3), torch.ones(len(x1), dtype=torch.float64), accumulate=True)
    p = counts[None] / len(x1)
    first = 0.1 * p.sum(2) + 0.9 * p.sum((2, 3)).unsqueeze(2) * p.sum((1, 2)).unsqueeze(1)
    found = loglinear(p.sum(3).to(device), first.to(device), p.sum(1).to(device)).cpu()
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum(3), p.sum(3), rtol=0, atol=1e-6)
    assert not found.sum(1)[p.sum(1) == 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loglinear_of_strided_tables_and_of_none(device, dtype):
    p12, first, second = (t.to(device, dtype) for t in pair_tables(2, 4, 4, 3))
    expected = loglinear(p12, first, second, 4)
    strided = p12.mT.contiguous().mT, first.mT.contiguous().mT, second.flip(0).flip(0)
    found = loglinear(*strided, 4)
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    assert loglinear(p12[:0], first[:0], second[:0]).shape == (0, 4, 4, 3)


def test_loglinear_is_a_well_formed_op(device):
    tables = tuple(t.to(device) for t in pair_tables(2, 3, 4, 2))
    torch.library.opcheck(torch.ops.ecsfusion_kernels.loglinear, (*tables, 2))
    compiled = torch.compile(lambda *t: loglinear(*t, 2) * 2, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*tables), loglinear(*tables, 2) * 2)


def test_loglinear_needs_no_host(device, large):
    if not large:
        pytest.skip("a GPU is needed")
    tables = [t.to(device) for t in pair_tables(33, 20, 20, 10, samples=2000)]
    expected = loglinear(*tables)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = loglinear(*tables)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loglinear(*tables)
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, expected)
