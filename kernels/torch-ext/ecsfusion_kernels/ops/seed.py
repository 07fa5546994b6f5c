"""k-means++ seeding of many problems at once.

A problem is one set of points; restarts are problems on the same points, which `points.expand(restarts, -1, -1)` of
one set does not copy. The host starts a number of launches that depends on shapes alone and reads nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..grid_barrier import resident_programs, wait_for_programs
from ..language import (
    Variant,
    jit,
    options,
    padded,
    runs_kernels,
    signed,
    skips_dispatch,
    tl,
    with_unaligned,
)
from ..reference.random import keys
from ..reference.seed import seed as reference_seed
from .nearest import check
from .random import uniform_at

__all__ = ["seed"]

# The most blocks of one problem that draw a center; the next launch reads one candidate of each.
MAX_BLOCKS = 1024
MAX_POINTS_AT_ONCE = 8192
"""Up to this number of points one launch draws all centers; for more, every center is a launch of many blocks."""


@jit(
    do_not_specialize=[
        "num_points",
        "num_dims",
        "num_clusters",
        "first_step",
        "last_step",
        "points_per_block",
        "num_blocks",
        "num_waiting",
        "num_problems",
        "key1",
        "key2",
        "problem_stride",
        "point_stride",
        "dim_stride",
    ]
)
def _seed(
    points_ptr,
    centers_ptr,
    weight_ptr,
    wait_ptr,
    index_ptr,
    arrivals_ptr,
    num_points: tl.int64,
    num_dims: tl.int32,
    num_clusters: tl.int32,
    first_step: tl.int32,
    last_step: tl.int32,
    points_per_block: tl.int64,
    num_blocks: tl.int32,
    num_waiting: tl.int32,
    num_problems: tl.int32,
    key1: tl.int32,
    key2: tl.int32,
    problem_stride: tl.int64,
    point_stride: tl.int64,
    dim_stride: tl.int64,
    MAX_BLOCKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Step k: take center k - 1, the point with the least E / D^2; D^2 = min(D^2, |x - c|^2); draw for center k.

    Each block leaves the best of its share of the points, and in the next step every block compares all of these.
    Steps from `first` to `last`: one per launch, or all in one launch, whose blocks of a problem wait for each other.
    """
    problem, part = tl.program_id(0) // num_blocks, tl.program_id(0) % num_blocks
    points_ptr += problem.to(tl.int64) * problem_stride
    weight_ptr += problem.to(tl.int64) * num_points
    slot = tl.arange(0, MAX_BLOCKS)
    for k in range(first_step, last_step):
        chosen = tl.full((), 0, tl.int64)
        if k > 0:
            candidates = (((k - 1) % 2) * num_problems + problem).to(tl.int64) * num_blocks + slot
            wait = tl.load(wait_ptr + candidates, slot < num_blocks, other=float("inf"), cache_modifier=".cg")
            winner = tl.load(
                index_ptr + candidates, slot < num_blocks, other=num_points, cache_modifier=".cg"
            )
            chosen = tl.min(tl.where(wait == tl.min(wait, 0), winner, num_points), 0)
            if part == 0:
                for start in range(0, num_dims, BLOCK_D):
                    entry = start + tl.arange(0, BLOCK_D)
                    center = tl.load(
                        points_ptr + chosen * point_stride + entry * dim_stride, entry < num_dims, other=0.0
                    )
                    target = (problem.to(tl.int64) * num_clusters + k - 1) * num_dims + entry
                    tl.store(centers_ptr + target, center, entry < num_dims)
        if k < num_clusters:
            begin = part * points_per_block
            end = tl.minimum(begin + points_per_block, num_points)
            shortest = tl.full((BLOCK_N,), float("inf"), tl.float32)
            shortest_index = begin + tl.arange(0, BLOCK_N)
            for tile in range(begin, end, BLOCK_N):
                point = tile + tl.arange(0, BLOCK_N)
                inside = point < end
                length = tl.zeros((BLOCK_N,), tl.float32)
                distance = tl.zeros((BLOCK_N,), tl.float32)
                for start in range(0, num_dims, BLOCK_D):
                    entry = start + tl.arange(0, BLOCK_D)
                    is_used = entry < num_dims
                    pointers = points_ptr + point[:, None] * point_stride + entry[None, :] * dim_stride
                    x = tl.load(pointers, inside[:, None] & is_used[None, :], other=0.0)
                    center = tl.load(
                        points_ptr + chosen * point_stride + entry * dim_stride, is_used, other=0.0
                    )
                    difference = tl.where(is_used[None, :], x - center[None, :], 0.0)
                    length += tl.sum(x * x, 1)
                    distance += tl.sum(difference * difference, 1)
                weight = distance
                if k == 0:
                    weight = tl.full((BLOCK_N,), 1.0, tl.float32)
                if k > 1:
                    weight = tl.minimum(distance, tl.load(weight_ptr + point, inside, other=0.0))
                if k > 0:
                    tl.store(weight_ptr + point, weight, inside)
                counter = point + num_points * (k + num_clusters * problem.to(tl.int64))
                wait = -tl.log(uniform_at(counter, key1, key2)) / weight
                # A center gets the largest float32 number and a point left out infinity, so that a center is drawn
                # again only if there is nothing else, and a point left out never.
                largest = 3.4028234663852886e38
                wait = tl.where((weight > 0) & (wait < largest), wait, largest)
                wait = tl.where(inside & (length < float("inf")), wait, float("inf"))
                shortest_index = tl.where(wait < shortest, point, shortest_index)
                shortest = tl.minimum(shortest, wait)
            wait = tl.min(shortest, 0)
            winner = tl.min(tl.where(shortest == wait, shortest_index, num_points), 0)
            own_slot = ((k % 2) * num_problems + problem).to(tl.int64) * num_blocks + part
            tl.store(wait_ptr + own_slot, wait)
            tl.store(index_ptr + own_slot, winner)
            wait_for_programs(arrivals_ptr + problem, k + 1, num_waiting)


def configuration(num_dims: int) -> tuple[dict[str, int], int]:
    """Constants of `_seed` and warps: 8192 numbers a tile are 16 of the 128 registers of each of 512 threads.

    Several pieces of a point need more registers a thread, so fewer threads.
    """
    block_d = min(padded(num_dims, 8), 32)
    return {
        "MAX_BLOCKS": MAX_BLOCKS,
        "BLOCK_N": 8192 // block_d,
        "BLOCK_D": block_d,
    }, 16 if block_d < 32 else 8


def _launch_seed(points: Tensor, num_clusters: int, seed: int) -> Tensor:
    (num_problems, num_points, num_dims), device = points.shape, points.device
    centers = torch.empty(num_problems, num_clusters, num_dims, dtype=torch.float32, device=device)
    if centers.numel() == 0:
        return centers
    constants, num_warps = configuration(num_dims)
    in_one_launch = num_points <= MAX_POINTS_AT_ONCE
    most_blocks = max(1, resident_programs(device) // num_problems) if in_one_launch else MAX_BLOCKS
    points_per_block = max(-(-num_points // most_blocks), constants["BLOCK_N"])
    num_blocks = -(-num_points // points_per_block)
    waits = in_one_launch and num_blocks > 1
    make_arrivals = torch.zeros if waits else torch.empty
    arrivals = make_arrivals(num_problems, dtype=torch.int32, device=device)
    weight = torch.empty(num_problems, num_points, dtype=torch.float32, device=device)
    wait = torch.empty(2, num_problems, num_blocks, dtype=torch.float32, device=device)
    winner = torch.empty(2, num_problems, num_blocks, dtype=torch.int64, device=device)
    key1, key2 = (signed(key) for key in keys(seed))
    steps = num_clusters + 1
    for first_step in range(0, steps, steps if in_one_launch else 1):
        last_step = steps if in_one_launch else first_step + 1
        # The last step only takes the last center, which needs one block of each problem; the others do nothing.
        _seed[(num_problems * num_blocks,)](
            points,
            centers,
            weight,
            wait,
            winner,
            arrivals,
            num_points,
            num_dims,
            num_clusters,
            first_step,
            last_step,
            points_per_block,
            num_blocks,
            num_blocks if waits else 1,
            num_problems,
            key1,
            key2,
            *points.stride(),
            **constants,
            **options(num_warps),
            launch_cooperative_grid=waits,
        )
    return centers


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = dict.fromkeys(("points_ptr", "centers_ptr", "weight_ptr", "wait_ptr"), "*fp32")
    types |= {
        "index_ptr": "*i64",
        "num_points": "i64",
        "num_dims": "i32",
        "num_clusters": "i32",
        "first_step": "i32",
    }
    types |= {
        "arrivals_ptr": "*i32",
        "num_waiting": "i32",
        "last_step": "i32",
        "points_per_block": "i64",
        "num_blocks": "i32",
        "num_problems": "i32",
        "key1": "i32",
        "key2": "i32",
    }
    types |= dict.fromkeys(("problem_stride", "point_stride", "dim_stride"), "i64")
    return [
        variant
        for num_dims in (8, 16, 32)
        for variant in with_unaligned(Variant(_seed, types, *configuration(num_dims)), ("points_ptr",))
    ]


@custom_op(add_op_namespace_prefix("seed"), mutates_args=())
def _seed_op(points: Tensor, num_clusters: int, seed: int) -> Tensor:
    launch = _launch_seed if runs_kernels(points) else reference_seed
    return launch(points, num_clusters, seed)


@_seed_op.register_fake
def _(points: Tensor, num_clusters: int, seed: int) -> Tensor:
    return points.new_empty(points.shape[0], num_clusters, points.shape[2])


def seed(points: Tensor, num_clusters: int, seed: int = 0) -> Tensor:
    """k-means++ seeding (Arthur and Vassilvitskii 2007): each center is a point, drawn with probability D^2.

    The draw is the Gumbel-max trick in its exponential form: the point with the least E / D^2 is taken, where E is
    -log of a hash of (seed, problem, center, point) and D^2 the squared distance to the nearest center so far. If
    all points coincide with a center already, the first point is repeated. Points with a NaN or an infinity are left
    out.

    Args:
        points: (B, N, d) float32, any strides, N at least 1; problems may share their points (`expand`).
        num_clusters: K, at least 1.
        seed: any whole number; the result is the same for the same one, on every device up to rounding.

    Returns:
        (B, num_clusters, d) float32.

    Raises:
        TypeError: for `points` of another dtype.
        ValueError: for `points` of another shape, and for less than one center.
    """
    check(points)
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
    if points.shape[1] == 0:
        raise ValueError("points has no rows to draw centers from")
    draw = reference_seed if skips_dispatch(points) else _seed_op
    return draw(points, num_clusters, seed)
