"""The centers of k-means of few points, one program a problem: all iterations in one launch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.lloyd_centers import lloyd_centers as reference_lloyd_centers
from .kmeans import _launch_lloyd, check

__all__ = ["lloyd_centers"]

MAX_POINTS = 4096
"""With more of them, many blocks and a launch an iteration are faster."""
TILES = ((32, 16, 64, 4), (64, 32, 32, 8))
"""The most centers and dimensions of each compilation, which stay in registers; points at a time, and warps."""


@jit(do_not_specialize=["num_points", "num_dims", "num_clusters", "max_iterations"])
def _lloyd_centers(
    points_ptr,
    start_ptr,
    centers_ptr,
    num_points: tl.int32,
    num_dims: tl.int32,
    num_clusters: tl.int32,
    max_iterations: tl.int32,
    tolerance: tl.float32,
    POINTS: tl.constexpr,
    CENTERS: tl.constexpr,
    DIMS: tl.constexpr,
):
    """c_k = mean of the points whose argmin_k |c_k|^2 - 2 <x, c_k> it is, until the inertia hardly changes."""
    problem = tl.program_id(0).to(tl.int64)
    points_ptr += problem * num_points * num_dims
    index, entry = tl.arange(0, CENTERS), tl.arange(0, DIMS)
    place = (problem * num_clusters + index)[:, None] * num_dims + entry[None, :]
    inside = (index < num_clusters)[:, None] & (entry < num_dims)[None, :]
    centers = tl.load(start_ptr + place, inside, other=0.0)
    inertia = tl.full((), float("inf"), tl.float32)
    iteration = 0
    while iteration < max_iterations:
        bias = tl.sum(centers * centers, 1)
        # No point is assigned to a center that is not finite.
        finite = (bias < float("inf")) & (index < num_clusters)
        bias = tl.where(finite, bias, float("inf"))
        transposed = tl.trans(tl.where(finite[:, None], -2.0 * centers, 0.0))
        sums = tl.zeros((CENTERS, DIMS), tl.float32)
        sizes = tl.zeros((CENTERS,), tl.int32)
        errors = tl.zeros((POINTS,), tl.float32)
        for first in range(0, num_points, POINTS):
            point = first + tl.arange(0, POINTS)
            here = (point < num_points)[:, None] & (entry < num_dims)[None, :]
            x = tl.load(points_ptr + point[:, None] * num_dims + entry[None, :], here, other=0.0)
            length = tl.sum(x * x, 1)
            counted = (point < num_points) & (length < float("inf"))
            # A NaN times zero is NaN: points left out must not reach the products.
            x = tl.where(counted[:, None], x, 0.0)
            scores = tl.dot(x, transposed, input_precision="tf32x3") + bias[None, :]
            lowest = tl.min(scores, 1)
            label = tl.min(tl.where(scores == lowest[:, None], index[None, :], CENTERS), 1)
            is_member = (label[None, :] == index[:, None]) & counted[None, :]
            sums += tl.dot(is_member.to(tl.float32), x, input_precision="tf32x3")
            sizes += tl.sum(is_member.to(tl.int32), 1)
            errors += tl.where(counted, tl.maximum(lowest + length, 0.0), 0.0)
        # An empty cluster keeps its center.
        means = sums / tl.maximum(sizes, 1).to(tl.float32)[:, None]
        centers = tl.where((sizes > 0)[:, None], means, centers)
        previous, inertia = inertia, tl.sum(errors, 0)
        goes_on = previous - inertia > tolerance * inertia
        iteration = tl.where(goes_on, iteration + 1, max_iterations)
    tl.store(centers_ptr + place, centers, inside)


def configuration(num_clusters: int, num_dims: int) -> tuple[dict[str, int], int] | None:
    """The tile for so many centers and dimensions, and its warps; None where none is as large."""
    for centers, dims, points, num_warps in TILES:
        if num_clusters <= centers and num_dims <= dims:
            return {"POINTS": points, "CENTERS": centers, "DIMS": dims}, num_warps
    return None


def _launch_lloyd_centers(points: Tensor, centers: Tensor, max_iterations: int, tolerance: float) -> Tensor:
    (num_problems, num_points, num_dims), num_clusters = points.shape, centers.shape[1]
    tile = configuration(num_clusters, num_dims)
    if tile is None or num_points > MAX_POINTS:
        return _launch_lloyd(points, centers, max_iterations, tolerance)[0]
    constants, num_warps = tile
    found = torch.empty(centers.shape, dtype=torch.float32, device=points.device)
    if num_problems:
        sizes = (num_points, num_dims, num_clusters, max_iterations)
        _lloyd_centers[(num_problems,)](
            aligned(points), aligned(centers), found, *sizes, tolerance, **constants, **options(num_warps)
        )
    return found


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = dict.fromkeys(("points_ptr", "start_ptr", "centers_ptr"), "*fp32") | {"tolerance": "fp32"}
    types |= dict.fromkeys(("num_points", "num_dims", "num_clusters", "max_iterations"), "i32")
    tiles = (configuration(centers, dims) for centers, dims, _, _ in TILES)
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


def lloyd_centers(
    points: Tensor, centers: Tensor, max_iterations: int = 30, tolerance: float = 1e-3
) -> Tensor:
    """The centers that `lloyd` finds, without the labels of the points.

    On a GPU a problem of up to 4 096 points, 64 centers and 32 dimensions is one program, and all its iterations one
    launch; larger ones are those of `lloyd`.

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
