"""The nearest center of each point, of many problems at once.

A problem is one set of points with one set of centers.
"""

# Tuples grow in kernels, where an annotation of their type means something else.
# mypy: disable-error-code="assignment"

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .. import nearest_by_halves
from .._ops import add_op_namespace_prefix
from ..language import Variant, jit, options, padded, runs_kernels, skips_dispatch, tl, with_unaligned
from ..reference.kmeans import nearest as reference_nearest
from ..tiles import STEPS, first_minimum, in_pieces, load_tile, store_nearest, vector_of

__all__ = ["nearest"]

# The most blocks that share the points and keep the centers: 4 for each of the 132 multiprocessors of an H200.
MAX_ASSIGN_BLOCKS = 528

POINTS_BY_THREAD, WARPS_BY_THREAD = 1024, 2
"""Of the tiles whose points are compared by one thread each: 16 points of up to 8 dimensions stay in its registers."""
MIN_POINTS_BY_THREAD = 100_000
"""With fewer, tiles of so many points leave multiprocessors without work."""


@jit
def _leading(x):
    """Rounded to 11 bits: what is left has 12 bits and a sign."""
    return ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)


@jit
def three_products(x, y, total):
    """The products of rows of x with rows of y, added to a total: three products of TF32 numbers.

    So does `input_precision="tf32x3"`, which looks for NaNs as well.
    """
    x_leading, y_leading = _leading(x), _leading(y)
    x_rest, y_rest = x - x_leading, y - y_leading
    total = tl.dot(x_rest, tl.trans(y_leading), total, input_precision="tf32")
    total = tl.dot(x_leading, tl.trans(y_rest), total, input_precision="tf32")
    return tl.dot(x_leading, tl.trans(y_leading), total, input_precision="tf32")


@jit(
    do_not_specialize=[
        "num_points",
        "num_dims",
        "num_clusters",
        "num_programs",
        "skip_inactive",
        "problem_stride",
        "point_stride",
        "dim_stride",
    ]
)
def _assign(
    points_ptr,
    centers_ptr,
    active_ptr,
    labels_ptr,
    distance_ptr,
    num_points: tl.int64,
    num_dims: tl.int32,
    num_clusters: tl.int32,
    num_programs: tl.int32,
    skip_inactive: tl.int32,
    problem_stride: tl.int64,
    point_stride: tl.int64,
    dim_stride: tl.int64,
    VECTOR: tl.constexpr,
    SINGLE_TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Stores label = argmin_k |c_k|^2 - 2 <x, c_k> and distance = max(min_k (...) + |x|^2, 0), tile after tile.

    With SINGLE_TILE one tile holds all centers: they stay in registers, and while one tile of points is compared the
    next ones are loaded. Otherwise blocks of centers are loaded in turn, in pieces of BLOCK_D dimensions. If
    `skip_inactive`, problems that are not active are left as they are.
    """
    problem, program = (tl.program_id(0) // num_programs).to(tl.int64), tl.program_id(0) % num_programs
    if skip_inactive != 0:  # noqa: SIM102 (no short circuit in a kernel)
        if tl.load(active_ptr + problem) == 0:
            return
    num_dims, problem_stride, point_stride, dim_stride = in_pieces(
        num_dims, problem_stride, point_stride, dim_stride, VECTOR
    )
    points_ptr += problem * problem_stride
    centers_ptr += problem * num_clusters * num_dims
    labels_ptr += problem * num_points
    distance_ptr += problem * num_points
    tiles = tl.cdiv(num_points, BLOCK_N)
    index, entry = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    infinity = float("inf")
    if SINGLE_TILE:
        centers = load_tile(centers_ptr, index, num_clusters, entry, num_dims, num_dims, 1)
        bias = 0.5 * tl.sum(centers * centers, 1)
        # No point is assigned to a center that is not finite.
        finite = (bias < infinity) & (index < num_clusters)
        bias = tl.where(finite, bias, infinity)
        centers = tl.where(finite[:, None], centers, 0.0)
        nothing = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for tile in range(program, tiles, num_programs):
            point = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            x = load_tile(points_ptr, point, num_points, entry, num_dims, point_stride, dim_stride)
            scores = bias[None, :] - three_products(x, centers, nothing)
            lowest, label = first_minimum(scores, index, BLOCK_K)
            store_nearest(labels_ptr, distance_ptr, point, num_points, 2.0 * lowest, label, tl.sum(x * x, 1))
    else:
        for tile in range(program, tiles, num_programs):
            point = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            best = tl.full((BLOCK_N,), infinity, tl.float32)
            label = tl.zeros((BLOCK_N,), tl.int32)
            length = tl.zeros((BLOCK_N,), tl.float32)
            for first in range(0, num_clusters, BLOCK_K):
                scores = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
                bias = tl.zeros((BLOCK_K,), tl.float32)
                length = tl.zeros((BLOCK_N,), tl.float32)
                for start in range(0, num_dims, BLOCK_D):
                    x = load_tile(
                        points_ptr, point, num_points, start + entry, num_dims, point_stride, dim_stride
                    )
                    centers = load_tile(
                        centers_ptr, first + index, num_clusters, start + entry, num_dims, num_dims, 1
                    )
                    # Tensor cores cut off what they add, but registers for a second tile of scores are few.
                    if VECTOR > 1:
                        scores = three_products(x, centers, scores)
                    else:
                        scores += three_products(x, centers, tl.zeros((BLOCK_N, BLOCK_K), tl.float32))
                    bias += tl.sum(centers * centers, 1)
                    length += tl.sum(x * x, 1)
                finite = (bias < infinity) & (first + index < num_clusters)
                scores = tl.where(finite[None, :], 0.5 * bias[None, :] - scores, infinity)
                lowest, is_member = first_minimum(scores, index, BLOCK_K)
                label = tl.where(lowest < best, first + is_member, label)
                best = tl.minimum(best, lowest)
            store_nearest(labels_ptr, distance_ptr, point, num_points, 2.0 * best, label, length)


@jit
def _pair(pointer):
    """Two numbers that lie side by side, loaded at once."""
    both = tl.load(pointer.to(tl.pointer_type(tl.int64)))
    return both.to(tl.int32).to(tl.float32, bitcast=True), (both >> 32).to(tl.int32).to(
        tl.float32, bitcast=True
    )


@jit
def _center(pointer, DIMS: tl.constexpr):
    """A tuple of the numbers of one center, which all threads load."""
    found = ()
    for j in tl.static_range(0, DIMS, 2):
        first, second = _pair(pointer + j)
        found += (first, second)
    return found


@jit
def _coordinates(pointer, BLOCK_N: tl.constexpr, DIMS: tl.constexpr):
    """A tuple of the numbers that lie at each of BLOCK_N pointers and behind it; a thread loads four at once."""
    found = ()
    for j in tl.static_range(0, DIMS, 4):
        four = tl.load(pointer[:, None] + (j + tl.arange(0, 4))[None, :])
        even, odd = tl.split(tl.reshape(four, (BLOCK_N, 2, 2)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        found += (first, second, third, fourth)
    return found


@jit
def _squares(x, DIMS: tl.constexpr):
    total = x[0] * x[0]
    for j in tl.static_range(1, DIMS):
        total += x[j] * x[j]
    return total


@jit(
    do_not_specialize=[
        "num_points",
        "num_clusters",
        "num_programs",
        "skip_inactive",
        "problem_stride",
        "point_stride",
    ]
)
def _assign_by_thread(
    points_ptr,
    centers_ptr,
    active_ptr,
    labels_ptr,
    distance_ptr,
    num_points: tl.int64,
    num_clusters: tl.int32,
    num_programs: tl.int32,
    skip_inactive: tl.int32,
    problem_stride: tl.int64,
    point_stride: tl.int64,
    BLOCK_N: tl.constexpr,
    DIMS: tl.constexpr,
):
    """The same of few dimensions that lie side by side, in float32: a thread compares its points with each center.

    It finds the largest <x, c_k> - |c_k|^2 / 2, and needs no other thread.
    """
    problem, program = (tl.program_id(0) // num_programs).to(tl.int64), tl.program_id(0) % num_programs
    if skip_inactive != 0:  # noqa: SIM102
        if tl.load(active_ptr + problem) == 0:
            return
    # Pieces of 16 bytes, as the compiler is to know.
    problem_stride = problem_stride // 4 * 4
    point_stride = point_stride // 4 * 4
    points_ptr += problem * problem_stride
    centers_ptr += problem * num_clusters * DIMS
    labels_ptr += problem * num_points
    distance_ptr += problem * num_points
    infinity = float("inf")
    for tile in range(program, tl.cdiv(num_points, BLOCK_N), num_programs):
        point = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        # Those beyond the last are the last again; nothing is stored for them.
        x = _coordinates(points_ptr + tl.minimum(point, num_points - 1) * point_stride, BLOCK_N, DIMS)
        best, label = tl.full((BLOCK_N,), -infinity, tl.float32), tl.zeros((BLOCK_N,), tl.int32)
        for k in tl.range(0, num_clusters, loop_unroll_factor=4):
            center = _center(centers_ptr + k * DIMS, DIMS)
            bias = _squares(center, DIMS)
            # No point is assigned to a center that is not finite: neither -inf nor a NaN is above -inf.
            score = tl.zeros((BLOCK_N,), tl.float32) + tl.where(bias < infinity, -0.5 * bias, -infinity)
            for j in tl.static_range(DIMS):
                score += x[j] * center[j]
            label = tl.where(score > best, k, label)
            best = tl.maximum(best, score)
        store_nearest(labels_ptr, distance_ptr, point, num_points, -2.0 * best, label, _squares(x, DIMS))


def assign_configuration(num_clusters: int, num_dims: int, vector: int) -> tuple[dict[str, int], int, int]:
    """Constants of `_assign`, warps and pipeline stages.

    Centers of up to 32 dimensions and 2048 numbers, or 16 dimensions and 4096, are one tile, which stays with the
    program. A thread has up to 64 scores, as far as the centers leave registers. Otherwise 128 points of more than 128
    dimensions are compared with up to 128 centers at once, so that they come from the caches at most twice for 256.
    Without vector loads every number needs an address in registers, and tiles are smaller.
    """
    block_k, block_d = padded(num_clusters, 32), padded(num_dims)
    numbers = block_k * block_d
    single_tile = num_dims <= 32 and numbers <= (512 if vector == 1 else 4096 if block_d == 16 else 2048)
    if single_tile:
        block_n, num_warps = 64 if block_k == 256 else 128, 4 if block_k == 32 else 8
    else:
        block_n, block_k, block_d = (128, min(block_k, 128), 32) if vector > 1 else (64, 32, 32)
        num_warps = 8
    blocks = {"BLOCK_N": block_n, "BLOCK_K": block_k, "BLOCK_D": block_d}
    return {"VECTOR": vector, "SINGLE_TILE": single_tile, **blocks}, num_warps, 4 if single_tile else 3


def _launch_assign(
    points: Tensor, centers: Tensor, labels: Tensor, distance: Tensor, active: Tensor | None
) -> None:
    (num_problems, num_points, num_dims), num_clusters = points.shape, centers.shape[1]
    if labels.numel() == 0:
        return
    # By the points of a problem: how one is compared must not depend on the batch.
    vector = vector_of(points)
    by_thread = num_points >= MIN_POINTS_BY_THREAD and num_dims in (4, 8) and vector > 1
    constants, num_warps, num_stages = assign_configuration(num_clusters, num_dims, vector)
    is_single = by_thread or constants["SINGLE_TILE"]
    if vector > 1 and num_dims <= nearest_by_halves.MAX_DIMS and not is_single:
        nearest_by_halves.launch(points, centers, labels, distance, active)
        return
    if by_thread:
        num_programs = -(-num_points // POINTS_BY_THREAD)
    else:
        num_programs = min(-(-num_points // constants["BLOCK_N"]), max(1, MAX_ASSIGN_BLOCKS // num_problems))
    grid = (num_problems * num_programs,)
    # Without flags they are not read, but are of the type that the kernel is compiled for.
    tensors = (points, centers, labels.view(torch.int32) if active is None else active, labels, distance)
    skip_inactive = int(active is not None)
    if by_thread:
        sizes = (num_points, num_clusters, num_programs, skip_inactive, *points.stride()[:2])
        constants = {"BLOCK_N": POINTS_BY_THREAD, "DIMS": num_dims}
        _assign_by_thread[grid](*tensors, *sizes, **constants, **options(WARPS_BY_THREAD))
    else:
        sizes = (num_points, num_dims, num_clusters, num_programs, skip_inactive, *points.stride())
        _assign[grid](*tensors, *sizes, **constants, **options(num_warps, num_stages))


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = {"points_ptr": "*fp32", "centers_ptr": "*fp32", "active_ptr": "*i32", "labels_ptr": "*i64"}
    types |= {"distance_ptr": "*fp32", "num_points": "i64", "num_dims": "i32", "num_clusters": "i32"}
    types |= {"num_programs": "i32", "skip_inactive": "i32", **STEPS}
    by_thread = {name: type_ for name, type_ in types.items() if name not in ("num_dims", "dim_stride")}
    configurations = [
        Variant(_assign_by_thread, by_thread, {"BLOCK_N": POINTS_BY_THREAD, "DIMS": dims}, WARPS_BY_THREAD)
        for dims in (4, 8)
    ]
    for vector in (4, 1):
        # Points that are loaded by 16 bytes begin at a multiple of them.
        unaligned = () if vector > 1 else ("points_ptr",)
        tiles = [(32, 16), (32, 256)]
        if vector > 1:
            tiles += [(64, 256), (128, 256), (32, 32), (64, 16), (64, 32), (128, 16), (256, 16)]
        for num_clusters, num_dims in tiles:
            variant = Variant(_assign, types, *assign_configuration(num_clusters, num_dims, vector))
            configurations += with_unaligned(variant, unaligned)
    return configurations + nearest_by_halves.variants()


@custom_op(add_op_namespace_prefix("nearest"), mutates_args=())
def _nearest_op(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    if not runs_kernels(points):
        return reference_nearest(points, centers)
    labels = torch.empty(points.shape[:2], dtype=torch.int64, device=points.device)
    distance = torch.empty(points.shape[:2], dtype=torch.float32, device=points.device)
    centers = centers.contiguous()
    if centers.data_ptr() % 16:
        # Sooner copied than compiled for.
        centers = centers.clone()
    _launch_assign(points, centers, labels, distance, None)
    return labels, distance


@_nearest_op.register_fake
def _(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    return points.new_empty(points.shape[:2], dtype=torch.int64), points.new_empty(points.shape[:2])


def nearest(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest center of each point, argmin_k |x - c_k|^2, and its squared distance.

    Args:
        points: (B, N, d) float32, any strides.
        centers: (B, K, d) float32, K at least 1.

    Returns:
        labels (B, N) int64, the first center among equals, and squared distances (B, N) float32, which are differences
        of numbers as large as |x|^2: off by about 2^-26 d |x|^2 (2^-21 |x|^2 below 32 dimensions), so center points
        that are far from the origin. A point whose squared length is not finite in float32 (a NaN, an infinity,
        entries beyond 1e19) has label -1 and distance NaN.

    Raises:
        TypeError: for arguments of another dtype.
        ValueError: for arguments of another shape.
    """
    check(points, centers)
    assign = reference_nearest if skips_dispatch(points, centers) else _nearest_op
    return assign(points, centers)


def check(points: Tensor, centers: Tensor | None = None) -> None:
    """Check that points (B, N, d) and centers (B, K, d) are float32 and match.

    Raises:
        TypeError: for another dtype.
        ValueError: for shapes that do not match.
    """
    for name, tensor in (("points", points), ("centers", centers)):
        if tensor is None:
            continue
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name} must be float32, got {tensor.dtype}; convert with .float()")
        if tensor.ndim != 3 or tensor.shape[2] == 0:
            raise ValueError(f"{name} must be (B, rows, d) with d at least 1, got {tuple(tensor.shape)}")
    if centers is not None and (centers.shape[::2] != points.shape[::2] or not centers.shape[1]):
        raise ValueError(
            "centers must be (B, K, d) with the B and d of points and K at least 1, "
            f"got {tuple(centers.shape)} for points {tuple(points.shape)}"
        )
