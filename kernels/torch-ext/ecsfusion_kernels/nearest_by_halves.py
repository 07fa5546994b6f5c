"""The nearest center of each point of up to 128 dimensions, by products of float16 numbers.

A number of float32 is a float16 number, what it leaves, and 2^-24 of it, if it is of a size that float16 has. So every
point and every center is first divided by a power of two. Three products of such halves are as exact as three products
of TF32 numbers and take half of the time, and the halves of the centers are made once, not for each tile of points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .language import Variant, jit, options, padded, tl
from .tiles import STEPS, first_minimum, in_pieces, load_tile, store_nearest, vector_of

MAX_DIMS = 128
"""The halves of a tile of points stay in shared memory, in as many dimensions."""
MAX_BLOCKS = 2112
"""The most blocks that share the points: 16 for each of the 132 multiprocessors of an H100."""
BLOCK_N, BLOCK_K, WARPS = 64, 64, 4
"""Of 15 shapes of tiles the fastest or nearly so, from 20 to 256 centers of 32 to 128 dimensions."""
ROWS_OF_SPLIT = 16
"""Centers of a program that makes halves."""


@jit
def _power_of_two(largest):
    """The power of two 2^e of each number from 2^e to 2^(e + 1), and 2^-e; 1 for 0 and for what is not finite."""
    bits = largest.to(tl.int32, bitcast=True) & 0x7F800000
    bits = tl.where((bits > 0) & (bits < 0x7F800000), bits, 127 << 23)
    return bits.to(tl.float32, bitcast=True), ((254 << 23) - bits).to(tl.float32, bitcast=True)


@jit
def _halves(x):
    """Two tiles of float16 whose sum, times the last result for each row, is the tile x of float32."""
    scale, inverse = _power_of_two(tl.max(tl.abs(x), 1))
    x = x * inverse[:, None]
    leading = x.to(tl.float16)
    return leading, (x - leading.to(tl.float32)).to(tl.float16), scale


@jit(do_not_specialize=["num_dims", "num_clusters", "padded_clusters", "skip_inactive"])
def _split_centers(
    centers_ptr,
    active_ptr,
    halves_ptr,
    bias_ptr,
    scale_ptr,
    num_dims: tl.int32,
    num_clusters: tl.int32,
    padded_clusters: tl.int32,
    skip_inactive: tl.int32,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Stores the halves of each center side by side, half of its square, and its power of two.

    The square is infinite for centers that are not finite, and for those that only fill up the last block.
    """
    tiles = padded_clusters // ROWS
    problem, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    if skip_inactive != 0:  # noqa: SIM102 (no short circuit in a kernel)
        if tl.load(active_ptr + problem) == 0:
            return
    index, entry = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    centers_ptr += problem * num_clusters * num_dims
    centers = load_tile(centers_ptr, index, num_clusters, entry, num_dims, num_dims, 1)
    bias = 0.5 * tl.sum(centers * centers, 1)
    # No point is assigned to a center that is not finite.
    finite = (bias < float("inf")) & (index < num_clusters)
    leading, rest, scale = _halves(tl.where(finite[:, None], centers, 0.0))
    row = problem * padded_clusters + index
    place = halves_ptr + row[:, None] * (2 * BLOCK_D) + entry[None, :]
    tl.store(place, leading)
    tl.store(place + BLOCK_D, rest)
    tl.store(bias_ptr + row, tl.where(finite, bias, float("inf")))
    tl.store(scale_ptr + row, scale)


@jit(
    do_not_specialize=[
        "num_points",
        "num_dims",
        "padded_clusters",
        "num_programs",
        "skip_inactive",
        "problem_stride",
        "point_stride",
        "dim_stride",
    ]
)
def _assign_by_halves(
    points_ptr,
    active_ptr,
    halves_ptr,
    bias_ptr,
    scale_ptr,
    labels_ptr,
    distance_ptr,
    num_points: tl.int64,
    num_dims: tl.int32,
    padded_clusters: tl.int32,
    num_programs: tl.int32,
    skip_inactive: tl.int32,
    problem_stride: tl.int64,
    point_stride: tl.int64,
    dim_stride: tl.int64,
    VECTOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Stores label = argmin_k |c_k|^2 - 2 <x, c_k> and distance = max(min_k (...) + |x|^2, 0), tile after tile."""
    problem, program = (tl.program_id(0) // num_programs).to(tl.int64), tl.program_id(0) % num_programs
    if skip_inactive != 0:  # noqa: SIM102
        if tl.load(active_ptr + problem) == 0:
            return
    num_dims, problem_stride, point_stride, dim_stride = in_pieces(
        num_dims, problem_stride, point_stride, dim_stride, VECTOR
    )
    points_ptr += problem * problem_stride
    labels_ptr += problem * num_points
    distance_ptr += problem * num_points
    first_row = problem * padded_clusters
    index, entry = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    for tile in range(program, tl.cdiv(num_points, BLOCK_N), num_programs):
        point = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        x = load_tile(points_ptr, point, num_points, entry, num_dims, point_stride, dim_stride)
        length = tl.sum(x * x, 1)
        leading, rest, scale = _halves(x)
        best = tl.full((BLOCK_N,), float("inf"), tl.float32)
        label = tl.zeros((BLOCK_N,), tl.int32)
        # One tile of scores at a time: with several, threads of a B200 have too few registers (Triton 3.6).
        for first in tl.range(0, padded_clusters, BLOCK_K, disallow_acc_multi_buffer=True):
            row = first_row + first + index
            place = halves_ptr + row[:, None] * (2 * BLOCK_D) + entry[None, :]
            center_leading, center_rest = tl.load(place), tl.load(place + BLOCK_D)
            # The small products first: a sum cuts off what is small beside it.
            total = tl.dot(rest, tl.trans(center_leading))
            total = tl.dot(leading, tl.trans(center_rest), total)
            total = tl.dot(leading, tl.trans(center_leading), total)
            total = total * scale[:, None] * tl.load(scale_ptr + row)[None, :]
            lowest, member = first_minimum(tl.load(bias_ptr + row)[None, :] - total, index, BLOCK_K)
            label = tl.where(lowest < best, first + member, label)
            best = tl.minimum(best, lowest)
        store_nearest(labels_ptr, distance_ptr, point, num_points, 2.0 * best, label, length)


def stages(block_d: int) -> int:
    """Pipeline stages, as many as let two blocks of 128 dimensions share a multiprocessor."""
    return 2 if block_d == MAX_DIMS else 3


def launch(points: Tensor, centers: Tensor, labels: Tensor, distance: Tensor, active: Tensor | None) -> None:
    """Fill labels (B, N) and distances (B, N) of points (B, N, d) and centers (B, K, d), d at most `MAX_DIMS`.

    Problems that are not active, (B,) int32, are left as they are.
    """
    (num_problems, num_points, num_dims), num_clusters = points.shape, centers.shape[1]
    padded_clusters, block_d = -(-num_clusters // BLOCK_K) * BLOCK_K, padded(num_dims)
    device = points.device
    halves = torch.empty(num_problems, padded_clusters, 2, block_d, dtype=torch.float16, device=device)
    bias = torch.empty(num_problems, padded_clusters, dtype=torch.float32, device=device)
    scale = torch.empty_like(bias)
    # Without flags they are not read, but are of the type that the kernels are compiled for.
    flags = labels.view(torch.int32) if active is None else active
    split, skip_inactive = (flags, halves, bias, scale), int(active is not None)
    _split_centers[(num_problems * padded_clusters // ROWS_OF_SPLIT,)](
        centers,
        *split,
        num_dims,
        num_clusters,
        padded_clusters,
        skip_inactive,
        ROWS=ROWS_OF_SPLIT,
        BLOCK_D=block_d,
        **options(WARPS),
    )
    num_programs = min(-(-num_points // BLOCK_N), max(1, MAX_BLOCKS // num_problems))
    _assign_by_halves[(num_problems * num_programs,)](
        points,
        *split,
        labels,
        distance,
        num_points,
        num_dims,
        padded_clusters,
        num_programs,
        skip_inactive,
        *points.stride(),
        VECTOR=vector_of(points),
        BLOCK_N=BLOCK_N,
        BLOCK_K=BLOCK_K,
        BLOCK_D=block_d,
        **options(WARPS, stages(block_d)),
    )


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    halves = {"active_ptr": "*i32", "halves_ptr": "*fp16", "bias_ptr": "*fp32", "scale_ptr": "*fp32"}
    split = {"centers_ptr": "*fp32", **halves, "num_dims": "i32", "num_clusters": "i32"}
    split |= {"padded_clusters": "i32", "skip_inactive": "i32"}
    assign = {"points_ptr": "*fp32", **halves, "labels_ptr": "*i64", "distance_ptr": "*fp32"}
    assign |= {"num_points": "i64", "num_dims": "i32", "padded_clusters": "i32", "num_programs": "i32"}
    assign |= {"skip_inactive": "i32", **STEPS}
    configurations = []
    for block_d in (16, 32, 64, 128):
        configurations.append(
            Variant(_split_centers, split, {"ROWS": ROWS_OF_SPLIT, "BLOCK_D": block_d}, WARPS)
        )
        constants = {"VECTOR": 4, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K, "BLOCK_D": block_d}
        configurations.append(Variant(_assign_by_halves, assign, constants, WARPS, stages(block_d)))
    return configurations
