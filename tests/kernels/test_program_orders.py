"""Programs in any order give the same bits, whatever was in the memory that they work in."""

import math

import pytest
import torch
from ecsfusion_kernels import language, ops
from ecsfusion_kernels.language import jit, tl
from ecsfusion_kernels.ops import kmeans, lloyd_centers, match_prior, pool_weights, principal
from ecsfusion_kernels.ops import nearest as nearest_module
from ecsfusion_kernels.ops import seed as seed_module
from uninitialized import filled

if not language.INTERPRETED:
    pytest.skip("a GPU chooses the order of programs itself", allow_module_level=True)

# Not imported on a GPU, whose interpreter nobody has started.
from program_orders import Interleaved, program_order, reverse, shuffled

ORDERS = {
    "reversed": lambda: reverse,
    "shuffled": lambda: shuffled(1),
    "interleaved": lambda: Interleaved(2),
}


def make(*shape, random_seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(random_seed))


def tables():
    p = torch.rand(3, 5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 4
    return p / p.sum((1, 2, 3), keepdim=True)


def project():
    return ops.project.project(make(150, 70).bfloat16(), make(70, 8, random_seed=1), make(8))


def project_nearest():
    rows, basis, centers = make(150, 70).bfloat16(), make(70, 8, random_seed=1), make(40, 8, random_seed=2)
    return ops.project_nearest.project_nearest(rows, basis, make(8), 1.0, centers)


def nearest():
    return nearest_module.nearest(make(2, 150, 20), make(2, 40, 20, random_seed=1))


def lloyd():
    """Several groups and parts: the last to arrive sums up."""
    return kmeans.lloyd(make(2, 300, 20), make(2, 70, 20, random_seed=1), 2)


def lloyd_by_runs():
    """One point is left out, one problem has settled, and one cluster is empty."""
    points, start = make(2, 300, 20), make(2, 9, 20, random_seed=1)
    points[0, 7, 3], points[1], start[0, 4] = torch.nan, points[1, :1], 90.0
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MIN_CLUSTERS_TO_SORT", "MIN_SUMS_TO_SORT", "MIN_POINTS_TO_SORT"):
            patch.setattr(kmeans, name, 0)
        patch.setattr(kmeans, "POINTS_OF_PIECE", 16)
        return kmeans.lloyd(points, start, 3)


def seed():
    return seed_module.seed(make(2, 2100, 9), 3, 1)


def histogram():
    indices = [torch.randint(-1, 5, (2, 2500), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    return ops.histogram.histogram(*indices, 5, 4, 3)


def random_numbers():
    return ops.random.uniform(torch.arange(2500), 1), ops.poisson.poisson(make(200).double().exp(), 3, 1)


def orthonormalize():
    return ops.principal._launch_orthonormalize(make(3, 40, 10), False)


def loglinear():
    p = tables()
    return ops.loglinear.loglinear(p.sum(3), p.sum(2), p.sum(1), 2)


def broja():
    p = tables()
    return ops.broja.broja(p.sum(2), p.sum(1), 1e-3, 2)


CALLS = (
    project,
    project_nearest,
    nearest,
    lloyd,
    lloyd_by_runs,
    seed,
    histogram,
    random_numbers,
    orthonormalize,
    loglinear,
    broja,
)


def parts(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_the_order_of_programs_changes_no_bit(monkeypatch, call):
    monkeypatch.setattr(seed_module, "MAX_POINTS_AT_ONCE", 0)
    expected = parts(call())
    assert not any(part.isnan().any() for part in expected)
    for name, make_order in ORDERS.items():
        with filled(), program_order(monkeypatch, make_order()):
            found = parts(call())
        for part, other in zip(expected, found, strict=True):
            assert torch.equal(part, other), name


def matched():
    """Five parts, as in the next."""
    prior = make(20, random_seed=1).double().softmax(-1)
    return match_prior.match_prior(make(2, 150, 20).double().softmax(-1), prior, 0.0, 3)


def centers():
    return lloyd_centers.lloyd_inertia(make(2, 300, 5), make(2, 9, 5, random_seed=1), 4, 0.0)


def seeded():
    return seed_module.seed(make(2, 2100, 9), 5, 1)


def directions():
    return principal.principal_directions(make(2, 200, 40), 3)


@pytest.mark.parametrize(
    ("module", "call"),
    [(match_prior, matched), (lloyd_centers, centers), (principal, directions), (seed_module, seeded)],
)
def test_programs_that_wait_for_each_other_give_the_bits_of_one(monkeypatch, module, call):
    """Parts that are shared evenly and unevenly, in several orders; the launch is cooperative on a GPU."""
    monkeypatch.setattr(match_prior, "TILES_OF_PART", 1)
    monkeypatch.setattr(principal, "ITERATIONS", 2)
    expected = parts(call())
    for programs in (10, 6):
        monkeypatch.setattr(module, "resident_programs", lambda *_, programs=programs: programs)
        for random_seed in range(3):
            order = Interleaved(random_seed)
            with filled(), program_order(monkeypatch, order):
                found = parts(call())
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
            assert order.switches > 20


def test_programs_that_share_a_pool_give_the_bits_of_one(monkeypatch):
    """Three parts of two sets of rows, of which the second has rows for one; shared evenly and unevenly."""
    generator = torch.Generator().manual_seed(0)
    rows, bounds = torch.randperm(390, generator=generator), torch.tensor([0, 300, 390])
    labels = torch.randint(3, (390,), generator=generator)
    given = make(1, 2, 390, 3) + torch.eye(3)[labels], labels, torch.zeros(3), rows, bounds, 300, 3
    expected = pool_weights.pool_weights(*given)
    for programs in (6, 4):
        monkeypatch.setattr(pool_weights, "resident_programs", lambda *_, programs=programs: programs)
        for random_seed in range(3):
            order = Interleaved(random_seed)
            with filled(), program_order(monkeypatch, order):
                assert torch.equal(pool_weights.pool_weights(*given), expected)
            assert order.switches > 20


@jit
def _sum(values_ptr, arrivals_ptr, total_ptr, BY_NUMBER: tl.constexpr, SIZE: tl.constexpr):
    """Each program stores its number; the one that arrives last, or that of the highest number, sums up."""
    number = tl.program_id(0)
    tl.store(values_ptr + number, number.to(tl.float32))
    arrived = tl.atomic_add(arrivals_ptr, 1)
    if BY_NUMBER:
        arrived = number
    if arrived == SIZE - 1:
        tl.store(total_ptr, tl.sum(tl.load(values_ptr + tl.arange(0, SIZE)), 0))


def sum_of_programs(monkeypatch, order, by_number):
    with filled(), program_order(monkeypatch, order):
        values, total = torch.empty(8), torch.empty(1)
        _sum[(8,)](values, torch.zeros(1, dtype=torch.int32), total, by_number, 8)
    return float(total)


def test_a_kernel_that_relies_on_the_order_is_found(monkeypatch):
    """What the others have not stored yet is NaN."""
    for make_order in ORDERS.values():
        assert sum_of_programs(monkeypatch, make_order(), by_number=False) == 28
    assert math.isnan(sum_of_programs(monkeypatch, reverse, by_number=True))
    for kind in (shuffled, Interleaved):
        assert any(math.isnan(sum_of_programs(monkeypatch, kind(i), by_number=True)) for i in range(4))


@jit
def _two_steps(state_ptr, out_ptr):
    """Wrong: what a program reads is what the others have left."""
    number = tl.program_id(0)
    tl.store(state_ptr, number)
    tl.store(out_ptr + number, tl.load(state_ptr))


def test_programs_take_turns_within_a_kernel(monkeypatch):
    state, out = torch.zeros(1, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    with program_order(monkeypatch, shuffled(1)):
        _two_steps[(8,)](state, out)
    assert torch.equal(out, torch.arange(8, dtype=torch.int32))
    order = Interleaved(2)
    with program_order(monkeypatch, order):
        _two_steps[(8,)](state, out)
    assert order.switches > 4
    assert not torch.equal(out, torch.arange(8, dtype=torch.int32))


def test_an_error_in_a_program_ends_the_launch(monkeypatch):
    with program_order(monkeypatch, Interleaved(1)), pytest.raises(Exception, match="out_ptr"):
        _two_steps[(8,)](torch.zeros(1, dtype=torch.int32), out_pointer=None)
