"""k-means++ seeding of many problems at once.

A problem is one set of points; restarts are problems on the same points, which an expanded tensor does not copy. The
host starts a number of launches that depends on shapes alone and reads nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from . import reference
from .kmeans import check
from .language import NAMESPACE, Variant, jit, options, padded, runs_kernels, signed, tl
from .random import uniform_at
from .reference.random import keys

MAX_SHARES = 1024  # blocks of one problem that draw a center; the next launch reads one candidate of each
ALONE = (
    8192  # points that one block draws all centers from; for more, every center is a launch of many blocks
)


@jit
def _seed(
    points_ptr,
    centres_ptr,
    weight_ptr,
    wait_ptr,
    where_ptr,
    number: tl.int64,
    dimension: tl.int32,
    clusters: tl.int32,
    first: tl.int32,
    last: tl.int32,
    share: tl.int64,
    shares: tl.int32,
    problems: tl.int32,
    key1: tl.int32,
    key2: tl.int32,
    step_problem: tl.int64,
    step_point: tl.int64,
    step_entry: tl.int64,
    SHARES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Step k: take center k - 1, the point with the least E / D^2; D^2 = min(D^2, |x - c|^2); draw for center k.

    Each block leaves the best of its share of the points, and in the next step every block compares all of these.
    Steps from `first` to `last`: one a launch, or all in one launch where a problem has one block only.
    """
    problem, part = tl.program_id(0) // shares, tl.program_id(0) % shares
    points_ptr += problem.to(tl.int64) * step_problem
    weight_ptr += problem.to(tl.int64) * number
    slot = tl.arange(0, SHARES)
    for k in range(first, last):
        chosen = tl.full((), 0, tl.int64)
        if k > 0:
            candidates = (((k - 1) % 2) * problems + problem).to(tl.int64) * shares + slot
            wait = tl.load(wait_ptr + candidates, slot < shares, other=float("inf"), cache_modifier=".cg")
            where = tl.load(where_ptr + candidates, slot < shares, other=number, cache_modifier=".cg")
            chosen = tl.min(tl.where(wait == tl.min(wait, 0), where, number), 0)
            if part == 0:
                for start in range(0, dimension, BLOCK_D):
                    entry = start + tl.arange(0, BLOCK_D)
                    center = tl.load(
                        points_ptr + chosen * step_point + entry * step_entry, entry < dimension, other=0.0
                    )
                    to = (problem.to(tl.int64) * clusters + k - 1) * dimension + entry
                    tl.store(centres_ptr + to, center, entry < dimension)
        if k < clusters:
            begin = part * share
            end = tl.minimum(begin + share, number)
            least = tl.full((BLOCK_N,), float("inf"), tl.float32)
            least_at = begin + tl.arange(0, BLOCK_N)
            for tile in range(begin, end, BLOCK_N):
                point = tile + tl.arange(0, BLOCK_N)
                inside = point < end
                length = tl.zeros((BLOCK_N,), tl.float32)
                distance = tl.zeros((BLOCK_N,), tl.float32)
                for start in range(0, dimension, BLOCK_D):
                    entry = start + tl.arange(0, BLOCK_D)
                    used = entry < dimension
                    at = points_ptr + point[:, None] * step_point + entry[None, :] * step_entry
                    x = tl.load(at, inside[:, None] & used[None, :], other=0.0)
                    center = tl.load(points_ptr + chosen * step_point + entry * step_entry, used, other=0.0)
                    away = tl.where(used[None, :], x - center[None, :], 0.0)
                    length += tl.sum(x * x, 1)
                    distance += tl.sum(away * away, 1)
                weight = distance
                if k == 0:
                    weight = tl.full((BLOCK_N,), 1.0, tl.float32)
                if k > 1:
                    weight = tl.minimum(distance, tl.load(weight_ptr + point, inside, other=0.0))
                if k > 0:
                    tl.store(weight_ptr + point, weight, inside)
                counter = point + number * (k + clusters * problem.to(tl.int64))
                wait = -tl.log(uniform_at(counter, key1, key2)) / weight
                # Whoever is a center waits as long as a number can tell, but not as long as a point left out.
                largest = 3.4028234663852886e38  # of float32
                wait = tl.where((weight > 0) & (wait < largest), wait, largest)
                wait = tl.where(inside & (length < float("inf")), wait, float("inf"))
                least_at = tl.where(wait < least, point, least_at)
                least = tl.minimum(least, wait)
            wait = tl.min(least, 0)
            where = tl.min(tl.where(least == wait, least_at, number), 0)
            mine = ((k % 2) * problems + problem).to(tl.int64) * shares + part
            tl.store(wait_ptr + mine, wait)
            tl.store(where_ptr + mine, where)
            tl.debug_barrier()  # one block alone goes on to read what it has just stored


def configuration(dimension: int) -> tuple[dict[str, int], int]:
    """Constants of `_seed` and warps: 8192 numbers a tile are 16 of the 128 registers of each of 512 threads.

    Several pieces of a point need more registers a thread, so fewer threads.
    """
    block_d = min(padded(dimension, 8), 32)
    return {"SHARES": MAX_SHARES, "BLOCK_N": 8192 // block_d, "BLOCK_D": block_d}, 16 if block_d < 32 else 8


def _launch_seed(points: Tensor, num_clusters: int, seed: int) -> Tensor:
    (problems, number, dimension), device = points.shape, points.device
    centers = torch.empty(problems, num_clusters, dimension, dtype=torch.float32, device=device)
    if centers.numel() == 0:
        return centers
    constants, num_warps = configuration(dimension)
    # One block keeps a problem for itself as long as that takes less time than a launch for each center.
    share = number if number <= ALONE else max(-(-number // MAX_SHARES), constants["BLOCK_N"])
    shares = -(-number // share)
    weight = torch.empty(problems, number, dtype=torch.float32, device=device)
    wait = torch.empty(2, problems, shares, dtype=torch.float32, device=device)
    where = torch.empty(2, problems, shares, dtype=torch.int64, device=device)
    key1, key2 = (signed(key) for key in keys(seed))
    steps = num_clusters + 1
    for first in range(0, steps, steps if shares == 1 else 1):
        last = steps if shares == 1 else first + 1
        # The last step only takes the last center, which needs one block of each problem; the others do nothing.
        _seed[(problems * shares,)](
            points,
            centers,
            weight,
            wait,
            where,
            number,
            dimension,
            num_clusters,
            first,
            last,
            share,
            shares,
            problems,
            key1,
            key2,
            *points.stride(),
            **constants,
            **options(num_warps),
        )
    return centers


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = dict.fromkeys(("points_ptr", "centres_ptr", "weight_ptr", "wait_ptr"), "*fp32")
    types |= {"where_ptr": "*i64", "number": "i64", "dimension": "i32", "clusters": "i32", "first": "i32"}
    types |= {"last": "i32", "share": "i64", "shares": "i32", "problems": "i32", "key1": "i32", "key2": "i32"}
    types |= dict.fromkeys(("step_problem", "step_point", "step_entry"), "i64")
    return [Variant(_seed, types, *configuration(dimension)) for dimension in (8, 16, 32)]


@custom_op(f"{NAMESPACE}::seed", mutates_args=())
def _seed_op(points: Tensor, num_clusters: int, seed: int) -> Tensor:
    launch = _launch_seed if runs_kernels(points) else reference.seed
    return launch(points, num_clusters, seed)


@_seed_op.register_fake
def _(points: Tensor, num_clusters: int, seed: int) -> Tensor:
    return points.new_empty(points.shape[0], num_clusters, points.shape[2])


def seed(points: Tensor, num_clusters: int, seed: int = 0) -> Tensor:
    """k-means++ seeding (Arthur and Vassilvitskii 2007): each center is a point, drawn with probability D^2.

    The draw is the Gumbel-max trick in its exponential form: the point with the least E / D^2 is taken, where E is
    -log of a hash of (seed, problem, center, point) and D^2 the squared distance to the nearest center so far. When
    all points coincide with a center already, the first point is repeated. Points with a NaN or an infinity are left
    out.

    Args:
        points: (B, N, d) float32, any strides, N at least 1; problems may share their points (`expand`).
        num_clusters: K.
        seed: any whole number; the result is the same for the same one, on every device up to rounding.

    Returns:
        (B, num_clusters, d) float32.

    Raises:
        TypeError, ValueError: for `points` of another dtype or shape.
    """
    check(points)
    if points.shape[1] == 0:
        raise ValueError("points has no rows to draw centers from")
    return _seed_op(points, num_clusters, seed)
