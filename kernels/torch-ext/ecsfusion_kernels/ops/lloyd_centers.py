"""The centers of k-means of few points: all iterations in one launch, whose programs share the points."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..grid_barrier import resident_programs, wait_for_programs
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.lloyd_centers import Centers
from ..reference.lloyd_centers import lloyd_centers as reference_lloyd_centers
from ..reference.lloyd_centers import lloyd_inertia as reference_lloyd_inertia
from .kmeans import _launch_lloyd
from .nearest import check

__all__ = ["lloyd_centers", "lloyd_inertia"]

MAX_POINTS = 8192
"""With more of them, many blocks and a launch an iteration are faster."""

TILES = ((32, 16), (64, 32))
"""The most centers and dimensions of each compilation, which stay in registers."""
NUM_WARPS = 16
POINTS = 64
"""Of a tile."""
MAX_PARTS = 32
"""Of the points of a problem: every program adds up the sums of all parts."""
MAX_TILES_ALONE = 2
"""So few are sooner compared than another program is waited for."""


@jit
def _sums_of_members(
    points_ptr,
    begin,
    end,
    centers,
    inside,
    num_dims,
    POINTS: tl.constexpr,
    CENTERS: tl.constexpr,
    DIMS: tl.constexpr,
):
    """Sums (CENTERS, DIMS) and sizes (CENTERS,) of the clusters of the points from `begin` to `end`, and their inertia.

    The cluster of a point is argmin_k |c_k|^2 - 2 <x, c_k>.
    """
    index, entry = tl.arange(0, CENTERS), tl.arange(0, DIMS)
    bias = tl.sum(centers * centers, 1)
    # No point is assigned to a center that is not finite.
    finite = (bias < float("inf")) & inside
    bias = tl.where(finite, bias, float("inf"))
    transposed = tl.trans(tl.where(finite[:, None], -2.0 * centers, 0.0))
    sums, sizes = tl.zeros((CENTERS, DIMS), tl.float32), tl.zeros((CENTERS,), tl.float32)
    errors = tl.zeros((POINTS,), tl.float32)
    for first in range(begin, end, POINTS):
        point = first + tl.arange(0, POINTS)
        here = (point < end)[:, None] & (entry < num_dims)[None, :]
        x = tl.load(points_ptr + point[:, None] * num_dims + entry[None, :], here, other=0.0)
        length = tl.sum(x * x, 1)
        counted = (point < end) & (length < float("inf"))
        # A NaN times zero is NaN: points left out must not reach the products.
        x = tl.where(counted[:, None], x, 0.0)
        scores = tl.dot(x, transposed, input_precision="ieee") + bias[None, :]
        lowest = tl.min(scores, 1)
        label = tl.min(tl.where(scores == lowest[:, None], index[None, :], CENTERS), 1)
        is_member = ((label[None, :] == index[:, None]) & counted[None, :]).to(tl.float32)
        sums = tl.dot(is_member, x, sums, input_precision="ieee")
        sizes += tl.sum(is_member, 1)
        errors += tl.where(counted, tl.maximum(lowest + length, 0.0), 0.0)
    return sums, sizes, tl.sum(errors, 0)


@jit
def _sums_of_parts(
    sums_ptr,
    sizes_ptr,
    errors_ptr,
    inside,
    num_parts,
    PARTS: tl.constexpr,
    CENTERS: tl.constexpr,
    DIMS: tl.constexpr,
):
    """Those of all parts, in an order that does not depend on who has stored them."""
    part, index, entry = tl.arange(0, PARTS), tl.arange(0, CENTERS), tl.arange(0, DIMS)
    there = part < num_parts
    place = part[:, None] * CENTERS + index[None, :]
    sizes = tl.load(sizes_ptr + place, there[:, None] & inside[None, :], other=0.0, cache_modifier=".cg")
    errors = tl.load(errors_ptr + part, there, other=0.0, cache_modifier=".cg")
    sums = tl.zeros((CENTERS, DIMS), tl.float32)
    # A thread has the same entries of all parts, so that these sums need no other thread.
    of_part_ptr = sums_ptr + index[:, None] * DIMS + entry[None, :]
    for i in tl.static_range(PARTS):
        # A tensor, which the interpreter needs.
        stored = inside & (index * 0 + i < num_parts)
        sums += tl.load(of_part_ptr + i * CENTERS * DIMS, stored[:, None], other=0.0, cache_modifier=".cg")
    return sums, tl.sum(sizes, 0), tl.sum(errors, 0)


@jit(
    do_not_specialize=[
        "num_points",
        "num_dims",
        "num_clusters",
        "points_of_part",
        "num_parts",
        "num_programs",
        "max_iterations",
        "measured",
    ]
)
def _lloyd_centers(
    points_ptr,
    start_ptr,
    centers_ptr,
    inertia_ptr,
    found_sizes_ptr,
    sums_ptr,
    arrivals_ptr,
    num_points: tl.int32,
    num_dims: tl.int32,
    num_clusters: tl.int32,
    points_of_part: tl.int32,
    num_parts: tl.int32,
    num_programs: tl.int32,
    max_iterations: tl.int32,
    measured: tl.int32,
    tolerance: tl.float32,
    POINTS: tl.constexpr,
    CENTERS: tl.constexpr,
    DIMS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """c_k = mean of the points that are nearest to it, until the inertia hardly changes.

    The programs of a problem share the parts of its points. Each adds up the sums of all parts, and moves the centers
    alike. If `measured`, the points are assigned once more, for the inertia and the sizes of the clusters found.
    """
    problem, program = (tl.program_id(0) // num_programs).to(tl.int64), tl.program_id(0) % num_programs
    points_ptr += problem * num_points * num_dims
    arrivals_ptr += problem
    # Of the parts, by turns in two places, so that a program that is ahead does not change what another still reads.
    sums_ptr += problem * 2 * num_parts * (CENTERS * DIMS + CENTERS + 1)
    sizes_ptr = sums_ptr + 2 * num_parts * (CENTERS * DIMS)
    errors_ptr = sizes_ptr + 2 * num_parts * CENTERS
    index, entry = tl.arange(0, CENTERS), tl.arange(0, DIMS)
    inside = index < num_clusters
    place = (problem * num_clusters + index)[:, None] * num_dims + entry[None, :]
    stored = inside[:, None] & (entry < num_dims)[None, :]
    centers = tl.load(start_ptr + place, stored, other=0.0)
    inertia = tl.full((), float("inf"), tl.float32)
    # How often the programs have waited, which tells the two places apart.
    iteration, turn = 0, 0
    while iteration < max_iterations + measured:
        sums, sizes = tl.zeros((CENTERS, DIMS), tl.float32), tl.zeros((CENTERS,), tl.float32)
        error = tl.zeros((), tl.float32)
        first = turn % 2 * num_parts
        for part in range(program, num_parts, num_programs):
            begin = part * points_of_part
            end = tl.minimum(begin + points_of_part, num_points)
            sums, sizes, error = _sums_of_members(
                points_ptr, begin, end, centers, inside, num_dims, POINTS, CENTERS, DIMS
            )
            if num_parts > 1:
                now = first + part
                tl.store(sums_ptr + (now * CENTERS + index)[:, None] * DIMS + entry[None, :], sums)
                tl.store(sizes_ptr + now * CENTERS + index, sizes)
                tl.store(errors_ptr + now, error)
        if num_parts > 1:
            wait_for_programs(arrivals_ptr, turn + 1, num_programs)
            sums, sizes, error = _sums_of_parts(
                sums_ptr + first * CENTERS * DIMS,
                sizes_ptr + first * CENTERS,
                errors_ptr + first,
                inside,
                num_parts,
                PARTS,
                CENTERS,
                DIMS,
            )
        turn += 1
        left = max_iterations - iteration
        # An empty cluster keeps its center, and all do when their points are assigned once more.
        means = sums / tl.maximum(sizes, 1.0)[:, None]
        centers = tl.where(((sizes > 0) & (index * 0 + left > 0))[:, None], means, centers)
        if program + left == 0:
            tl.store(inertia_ptr + problem, error)
            # Numbers under 2^24 are exact in float32.
            tl.store(found_sizes_ptr + problem * num_clusters + index, sizes.to(tl.int64), inside)
        goes_on = (inertia - error > tolerance * error) | (left == 0)
        inertia = error
        iteration = tl.where(goes_on, iteration + 1, max_iterations)
    if program == 0:
        tl.store(centers_ptr + place, centers, stored)


def configuration(num_clusters: int, num_dims: int) -> tuple[dict[str, int], int] | None:
    """The tile for so many centers and dimensions, and its warps; None where none is as large."""
    for centers, dims in TILES:
        if num_clusters <= centers and num_dims <= dims:
            return {"POINTS": POINTS, "CENTERS": centers, "DIMS": dims, "PARTS": MAX_PARTS}, NUM_WARPS
    return None


def _launch_lloyd_centers(points: Tensor, centers: Tensor, max_iterations: int, tolerance: float) -> Tensor:
    return _launch(points, centers, max_iterations, tolerance, False)[0]


def _launch_lloyd_inertia(
    points: Tensor, centers: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _launch(points, centers, max_iterations, tolerance, True)


def _launch(
    points: Tensor, centers: Tensor, max_iterations: int, tolerance: float, measured: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The centers and, if `measured`, the inertia and the sizes."""
    (num_problems, num_points, num_dims), num_clusters = points.shape, centers.shape[1]
    tile = configuration(num_clusters, num_dims)
    if tile is None or num_points > MAX_POINTS:
        found, _, inertia, sizes = _launch_lloyd(points, centers, max_iterations, tolerance)
        return found, inertia, sizes
    constants, num_warps = tile
    found, inertia, sizes = _results(points, centers)
    if not num_problems:
        return found, inertia, sizes
    # A function of the shape of a problem alone: the order of the sums must not depend on the batch.
    tiles = -(-num_points // POINTS)
    points_of_part = POINTS * (MAX_TILES_ALONE if tiles <= MAX_TILES_ALONE else -(-tiles // MAX_PARTS))
    num_parts = -(-num_points // points_of_part)
    num_programs = max(1, min(num_parts, resident_programs(points.device) // num_problems))
    numbers = constants["CENTERS"] * (constants["DIMS"] + 1) + 1
    make_arrivals = torch.zeros if num_programs > 1 else torch.empty
    _lloyd_centers[(num_problems * num_programs,)](
        aligned(points),
        aligned(centers),
        found,
        inertia,
        sizes,
        found.new_empty(num_problems, 2 * num_parts * numbers),
        make_arrivals(num_problems, dtype=torch.int32, device=points.device),
        num_points,
        num_dims,
        num_clusters,
        points_of_part,
        num_parts,
        num_programs,
        max_iterations,
        int(measured),
        tolerance,
        **constants,
        **options(num_warps),
        launch_cooperative_grid=num_programs > 1,
    )
    return found, inertia, sizes


def _results(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found = torch.empty(centers.shape, dtype=torch.float32, device=points.device)
    return found, found.new_empty(len(found)), found.new_empty(found.shape[:2], dtype=torch.int64)


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = dict.fromkeys(("points_ptr", "start_ptr", "centers_ptr", "inertia_ptr", "sums_ptr"), "*fp32")
    types |= {"found_sizes_ptr": "*i64", "arrivals_ptr": "*i32", "tolerance": "fp32"}
    sizes = ("num_points", "num_dims", "num_clusters", "points_of_part", "num_parts", "num_programs")
    types |= dict.fromkeys((*sizes, "max_iterations", "measured"), "i32")
    tiles = (configuration(*tile) for tile in TILES)
    return [Variant(_lloyd_centers, types, *tile) for tile in tiles if tile is not None]


@custom_op(add_op_namespace_prefix("lloyd_centers"), mutates_args=())
def _lloyd_centers_op(points: Tensor, centers: Tensor, max_iterations: int, tolerance: float) -> Tensor:
    if runs_kernels(points):
        return _launch_lloyd_centers(points, centers, max_iterations, tolerance)
    # An op must not return its own arguments.
    found = reference_lloyd_centers(points, centers, max_iterations, tolerance)
    return found.clone(memory_format=torch.contiguous_format)


@_lloyd_centers_op.register_fake
def _(points: Tensor, centers: Tensor, max_iterations: int, tolerance: float) -> Tensor:
    return points.new_empty(centers.shape)


@custom_op(add_op_namespace_prefix("lloyd_inertia"), mutates_args=())
def _lloyd_inertia_op(
    points: Tensor, centers: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    if runs_kernels(points):
        return _launch_lloyd_inertia(points, centers, max_iterations, tolerance)
    found, inertia, sizes = reference_lloyd_inertia(points, centers, max_iterations, tolerance)
    return found.clone(memory_format=torch.contiguous_format), inertia, sizes


@_lloyd_inertia_op.register_fake
def _(
    points: Tensor, centers: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _results(points, centers)


def lloyd_inertia(
    points: Tensor, centers: Tensor, max_iterations: int = 30, tolerance: float = 1e-3
) -> Centers:
    """`lloyd` without the labels of the points: `lloyd_centers` with the inertia of each problem, by which to choose.

    Args:
        points: (B, N, d) float32.
        centers: (B, K, d) float32, the start.
        max_iterations: as in `lloyd_centers`.
        tolerance: as in `lloyd_centers`.

    Raises:
        TypeError: for arguments of another dtype.
        ValueError: for arguments of another shape.
    """
    check(points, centers)
    function = reference_lloyd_inertia if skips_dispatch(points, centers) else _lloyd_inertia_op
    return Centers(*function(points, centers, max_iterations, tolerance))


def lloyd_centers(
    points: Tensor, centers: Tensor, max_iterations: int = 30, tolerance: float = 1e-3
) -> Tensor:
    """The centers that `lloyd` finds, without the labels of the points.

    On a GPU all iterations of problems of up to 8 192 points, 64 centers and 32 dimensions are one launch, whose
    programs share the points and wait for each other; larger ones are those of `lloyd`.

    Args:
        points: (B, N, d) float32.
        centers: (B, K, d) float32, the start.
        max_iterations: the most iterations of assignment and update.
        tolerance: a problem's iterations end when its inertia decreased by no more than this share.

    Returns:
        (B, K, d) float32.

    Raises:
        TypeError: for arguments of another dtype.
        ValueError: for arguments of another shape.
    """
    check(points, centers)
    function = reference_lloyd_centers if skips_dispatch(points, centers) else _lloyd_centers_op
    return function(points, centers, max_iterations, tolerance)
