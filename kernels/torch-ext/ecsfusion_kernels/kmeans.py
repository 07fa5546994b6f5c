"""k-means of many problems at once: assignment and iterations.

A problem is one set of points with one set of centers; restarts are problems on the same points, which an expanded
tensor does not copy. The host starts a number of launches that depends on shapes alone and reads nothing: a problem
that has settled is marked on the device, and its blocks return at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from . import reference
from .language import NAMESPACE, Variant, jit, options, padded, runs_kernels, tl
from .reference import Clustering

MAX_GROUPS = 256  # blocks of one problem that sum up its clusters; the last reads one partial sum of each
ASSIGNERS = 1056  # blocks that share the points: 8 for each of the 132 multiprocessors of an H100 or H200


@jit
def _load_tile(ptr, row, rows, column, columns, step_row, step_column):
    """A tile (BLOCK_ROWS, BLOCK_COLUMNS) of a matrix, zero outside of it."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(ptr + row[:, None] * step_row + column[None, :] * step_column, mask, other=0.0)


@jit
def _first_minimum(scores, index, END: tl.constexpr):
    """The least score of each row and its index, the first among equals."""
    least = tl.min(scores, 1)
    return least, tl.min(tl.where(scores == least[:, None], index[None, :], END), 1)


@jit
def _store_nearest(labels_ptr, distance_ptr, point, number, least, label, length):
    known = length < float("inf")
    distance = tl.where(known, tl.maximum(least + length, 0.0), float("nan"))
    tl.store(labels_ptr + point, tl.where(known, label, -1).to(tl.int64), point < number)
    tl.store(distance_ptr + point, distance, point < number)


@jit
def _assign(
    points_ptr,
    centres_ptr,
    active_ptr,
    labels_ptr,
    distance_ptr,
    number: tl.int64,
    dimension: tl.int32,
    clusters: tl.int32,
    programs: tl.int32,
    asks: tl.int32,
    step_problem: tl.int64,
    step_point: tl.int64,
    step_entry: tl.int64,
    VECTOR: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """label = argmin_k |c_k|^2 - 2 <x, c_k>, distance = max(min_k (...) + |x|^2, 0); tile after tile of the points.

    With WHOLE one tile holds all centers: they stay in registers, and while one tile of points is compared the next
    ones are on their way. Else blocks of centers pass by, in pieces of BLOCK_D dimensions. If `asks`, a problem that
    is not active is left as it is.
    """
    problem, program = (tl.program_id(0) // programs).to(tl.int64), tl.program_id(0) % programs
    if asks != 0:  # noqa: SIM102 (no short circuit in a kernel)
        if tl.load(active_ptr + problem) == 0:
            return
    if VECTOR > 1:  # rows without gaps of 16-byte pieces; the same numbers, as the compiler can see
        dimension = dimension // VECTOR * VECTOR
        step_problem = step_problem // VECTOR * VECTOR
        step_point = step_point // VECTOR * VECTOR
        step_entry = 1
    points_ptr += problem * step_problem
    centres_ptr += problem * clusters * dimension
    labels_ptr += problem * number
    distance_ptr += problem * number
    tiles = tl.cdiv(number, BLOCK_N)
    index, entry = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    infinity = float("inf")
    if WHOLE:
        centers = _load_tile(centres_ptr, index, clusters, entry, dimension, dimension, 1)
        bias = tl.sum(centers * centers, 1)
        finite = (bias < infinity) & (index < clusters)  # no point goes to a center that is not
        bias = tl.where(finite, bias, infinity)
        turned = tl.trans(tl.where(finite[:, None], -2.0 * centers, 0.0))
        for tile in range(program, tiles, programs):
            point = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            x = _load_tile(points_ptr, point, number, entry, dimension, step_point, step_entry)
            scores = tl.dot(x, turned, input_precision="tf32x3") + bias[None, :]
            least, label = _first_minimum(scores, index, BLOCK_K)
            _store_nearest(labels_ptr, distance_ptr, point, number, least, label, tl.sum(x * x, 1))
    else:
        for tile in range(program, tiles, programs):
            point = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            best = tl.full((BLOCK_N,), infinity, tl.float32)
            label = tl.zeros((BLOCK_N,), tl.int32)
            length = tl.zeros((BLOCK_N,), tl.float32)
            for first in range(0, clusters, BLOCK_K):
                scores = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
                bias = tl.zeros((BLOCK_K,), tl.float32)
                length = tl.zeros((BLOCK_N,), tl.float32)
                for start in range(0, dimension, BLOCK_D):
                    x = _load_tile(
                        points_ptr, point, number, start + entry, dimension, step_point, step_entry
                    )
                    centers = _load_tile(
                        centres_ptr, first + index, clusters, start + entry, dimension, dimension, 1
                    )
                    scores = tl.dot(x, tl.trans(centers), scores, input_precision="tf32x3")
                    bias += tl.sum(centers * centers, 1)
                    length += tl.sum(x * x, 1)
                finite = (bias < infinity) & (first + index < clusters)
                scores = tl.where(finite[None, :], bias[None, :] - 2.0 * scores, infinity)
                least, here = _first_minimum(scores, index, BLOCK_K)
                label = tl.where(least < best, first + here, label)
                best = tl.minimum(best, least)
            _store_nearest(labels_ptr, distance_ptr, point, number, best, label, length)


@jit
def _update(
    points_ptr,
    labels_ptr,
    distance_ptr,
    centres_ptr,
    sizes_ptr,
    inertia_ptr,
    active_ptr,
    next_ptr,
    sums_ptr,
    counts_ptr,
    errors_ptr,
    arrived_ptr,
    number: tl.int64,
    dimension: tl.int32,
    clusters: tl.int32,
    share: tl.int64,
    groups: tl.int32,
    parts: tl.int32,
    tolerance: tl.float32,
    moves: tl.int32,
    step_problem: tl.int64,
    step_point: tl.int64,
    step_entry: tl.int64,
    VECTOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """c_k = mean of the points of label k; sizes, inertia, and whether the problem goes on; without `moves` c_k stays.

    A group of points and a part (BLOCK_K centers times BLOCK_D dimensions) make a block. It leaves its sums, the
    product of the one-hot labels with the points, and the last of a part's groups to arrive adds up those of all, in an
    order that does not depend on who is last. What it decides is for the next iteration, in a place of its own: blocks
    of other parts may not have looked yet whether they are active in this one.
    """
    problem = (tl.program_id(0) // groups).to(tl.int64)
    group, part = tl.program_id(0) % groups, tl.program_id(1)
    if moves != 0:  # noqa: SIM102
        if tl.load(active_ptr + problem) == 0:
            return
    if VECTOR > 1:  # rows without gaps of 16-byte pieces; the same numbers, as the compiler can see
        dimension = dimension // VECTOR * VECTOR
        step_problem = step_problem // VECTOR * VECTOR
        step_point = step_point // VECTOR * VECTOR
        step_entry = 1
    columns = tl.cdiv(dimension, BLOCK_D)
    index = (part // columns) * BLOCK_K + tl.arange(0, BLOCK_K)
    entry = (part % columns) * BLOCK_D + tl.arange(0, BLOCK_D)
    inner, outer = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    points_ptr += problem * step_problem
    labels_ptr += problem * number
    distance_ptr += problem * number

    sums = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    counts = tl.zeros((BLOCK_K, BLOCK_N), tl.int32)
    errors = tl.zeros((BLOCK_N,), tl.float32)
    begin = group * share
    end = tl.minimum(begin + share, number)
    for tile in range(begin, end, BLOCK_N):
        point = tile + tl.arange(0, BLOCK_N)
        label = tl.load(labels_ptr + point, point < end, other=-1).to(tl.int32)
        distance = tl.load(distance_ptr + point, point < end, other=0.0)
        x = _load_tile(points_ptr, point, end, entry, dimension, step_point, step_entry)
        here = label[None, :] == index[:, None]
        # A NaN times zero is NaN: points left out must not reach the product.
        x = tl.where((label >= 0)[:, None], x, 0.0)
        sums = tl.dot(here.to(tl.float32), x, sums, input_precision="tf32x3")
        counts += here.to(tl.int32)
        errors += tl.where(label >= 0, distance, 0.0)

    place = (problem * parts + part) * groups
    at = outer[:, None] * BLOCK_D + inner[None, :]
    tl.store(sums_ptr + (place + group) * (BLOCK_K * BLOCK_D) + at, sums)
    tl.store(counts_ptr + (place + group) * BLOCK_K + outer, tl.sum(counts, 1))
    tl.store(errors_ptr + place + group, tl.sum(errors, 0))
    # All threads have stored, then one of them tells: release. Who hears of all reads what they stored: acquire; .cg
    # goes to the L2 cache, where all blocks meet.
    tl.debug_barrier()
    arrived_ptr += problem * parts + part
    if tl.atomic_add(arrived_ptr, 1, sem="acq_rel", scope="gpu") == groups - 1:
        tl.store(arrived_ptr, 0)  # ready for the next launch
        total = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
        size = tl.zeros((BLOCK_K,), tl.int64)
        error = tl.zeros((BLOCK_G,), tl.float32)
        for first in range(0, groups, BLOCK_G):
            other = first + tl.arange(0, BLOCK_G)
            real = other < groups
            source = (place + other)[:, None, None] * (BLOCK_K * BLOCK_D) + at[None, :, :]
            total += tl.sum(
                tl.load(sums_ptr + source, real[:, None, None], other=0.0, cache_modifier=".cg"), 0
            )
            source = (place + other)[:, None] * BLOCK_K + outer[None, :]
            count = tl.load(counts_ptr + source, real[:, None], other=0, cache_modifier=".cg")
            size += tl.sum(count.to(tl.int64), 0)
            error += tl.load(errors_ptr + place + other, real, other=0.0, cache_modifier=".cg")
        target = (problem * clusters + index)[:, None] * dimension + entry[None, :]
        # An empty cluster keeps its center.
        real = ((index < clusters) & (size > 0))[:, None] & (entry < dimension)[None, :]
        if moves != 0:
            tl.store(centres_ptr + target, total / size.to(tl.float32)[:, None], real)
        if part % columns == 0:
            tl.store(sizes_ptr + problem * clusters + index, size, index < clusters)
        if part == 0:  # every part has seen all distances: the first one's sum is the inertia
            before, inertia = tl.load(inertia_ptr + problem), tl.sum(error, 0)
            tl.store(inertia_ptr + problem, inertia)
            if moves != 0:
                tl.store(next_ptr + problem, (before - inertia > tolerance * inertia).to(tl.int32))


def _vector(points: Tensor) -> int:
    """Numbers that are loaded at once: 4 where every point is a whole number of 16-byte pieces, else 1."""
    step_problem, step_point, step_entry = points.stride()
    steps = (points.shape[-1], step_problem, step_point)
    aligned = points.data_ptr() % 16 == 0 and all(step % 4 == 0 for step in steps)
    return 4 if aligned and step_entry == 1 else 1


def assign_configuration(clusters: int, dimension: int, vector: int) -> tuple[dict[str, int], int, int]:
    """Constants of `_assign`, warps and pipeline stages.

    Up to 32 centers of 16 dimensions stay in registers; 128 points are one tile for the 4 warps of a tensor core
    product. Beyond, up to 128 centers are compared at once (64 registers of each of 256 threads), so that the points
    come from the caches at most twice for 256 centers.
    """
    whole = clusters <= 32 and dimension <= 16
    block_k = min(
        padded(clusters, 32), 128 if vector > 1 else 64
    )  # an address for each number takes registers
    block_d = 16 if whole else 32
    blocks = {"BLOCK_N": 128 if whole else 64, "BLOCK_K": block_k, "BLOCK_D": block_d}
    return {"VECTOR": vector, "WHOLE": whole, **blocks}, 4 if whole else 8, 4 if whole else 3


def _launch_assign(
    points: Tensor, centers: Tensor, labels: Tensor, distance: Tensor, active: Tensor | None
) -> None:
    (problems, number, dimension), clusters = points.shape, centers.shape[1]
    if labels.numel() == 0:
        return
    constants, num_warps, num_stages = assign_configuration(clusters, dimension, _vector(points))
    programs = min(-(-number // constants["BLOCK_N"]), max(1, ASSIGNERS // problems))
    _assign[(problems * programs,)](
        points,
        centers,
        labels if active is None else active,
        labels,
        distance,
        number,
        dimension,
        clusters,
        programs,
        int(active is not None),
        *points.stride(),
        **constants,
        **options(num_warps, num_stages),
    )


def update_configuration(clusters: int, dimension: int, vector: int) -> tuple[dict[str, int], int, int]:
    """Constants of `_update`, warps and pipeline stages: at most 64 x 64 sums, 16 registers of each of 256 threads."""
    block_k, block_d = min(padded(clusters, 32), 64), min(padded(dimension), 64)
    blocks = {"BLOCK_N": 32 if block_k == block_d == 64 else 64, "BLOCK_K": block_k, "BLOCK_D": block_d}
    return {"VECTOR": vector, **blocks, "BLOCK_G": 4096 // (block_k * block_d)}, 8, 3


def _launch_lloyd(
    points: Tensor, centers: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (problems, number, dimension), clusters, device = points.shape, centers.shape[1], points.device
    centers = centers.clone(memory_format=torch.contiguous_format)
    labels = torch.empty(problems, number, dtype=torch.int64, device=device)
    distance = torch.empty(problems, number, dtype=torch.float32, device=device)
    inertia = torch.full((problems,), torch.inf, dtype=torch.float32, device=device)
    sizes = torch.empty(problems, clusters, dtype=torch.int64, device=device)
    if problems == 0:
        return centers, labels, inertia, sizes
    constants, num_warps, num_stages = update_configuration(clusters, dimension, _vector(points))
    block_n, block_k, block_d = (constants[name] for name in ("BLOCK_N", "BLOCK_K", "BLOCK_D"))
    # Of N alone: which points are added up first must not depend on the batch.
    tiles = max(1, -(-number // block_n))
    share = block_n * max(2, -(-tiles // MAX_GROUPS))
    groups = max(1, -(-number // share))
    parts = -(-clusters // block_k) * -(-dimension // block_d)
    sums = torch.empty(problems, parts, groups, block_k, block_d, dtype=torch.float32, device=device)
    counts = torch.empty(problems, parts, groups, block_k, dtype=torch.int32, device=device)
    errors = torch.empty(problems, parts, groups, dtype=torch.float32, device=device)
    arrived = torch.zeros(problems, parts, dtype=torch.int32, device=device)
    # Whether a problem is active in an iteration; who is not in one is in none after it.
    active = torch.zeros(max_iterations + 1, problems, dtype=torch.int32, device=device)
    active[0].fill_(1)

    def update(iteration: int, moves: bool) -> None:
        _update[(problems * groups, parts)](
            points,
            labels,
            distance,
            centers,
            sizes,
            inertia,
            active[iteration],
            active[iteration + moves],
            sums,
            counts,
            errors,
            arrived,
            number,
            dimension,
            clusters,
            share,
            groups,
            parts,
            tolerance,
            int(moves),
            *points.stride(),
            **constants,
            **options(num_warps, num_stages),
        )

    for iteration in range(max_iterations):
        _launch_assign(points, centers, labels, distance, active[iteration])
        update(iteration, moves=True)
    _launch_assign(points, centers, labels, distance, None)
    update(max_iterations, moves=False)
    return centers, labels, inertia, sizes


def variants() -> list[Variant]:
    """Every compilation that the launchers can ask for."""
    steps = dict.fromkeys(("step_problem", "step_point", "step_entry"), "i64")
    sizes = {"number": "i64", "dimension": "i32", "clusters": "i32"}
    assign_types = {"points_ptr": "*fp32", "centres_ptr": "*fp32", "active_ptr": "*i32", "labels_ptr": "*i64"}
    assign_types |= {"distance_ptr": "*fp32", **sizes, "programs": "i32", "asks": "i32", **steps}
    update_types = {
        "points_ptr": "*fp32",
        "labels_ptr": "*i64",
        "distance_ptr": "*fp32",
        "centres_ptr": "*fp32",
    }
    update_types |= {"sizes_ptr": "*i64", "inertia_ptr": "*fp32", "active_ptr": "*i32", "next_ptr": "*i32"}
    update_types |= {"sums_ptr": "*fp32", "counts_ptr": "*i32", "errors_ptr": "*fp32", "arrived_ptr": "*i32"}
    update_types |= {
        **sizes,
        "share": "i64",
        "groups": "i32",
        "parts": "i32",
        "tolerance": "fp32",
        "moves": "i32",
    }
    update_types |= steps
    found = []
    for vector in (4, 1):
        tiles = ((32, 16), (32, 32), (64, 32), (128, 32))
        for clusters, dimension in tiles if vector > 1 else tiles[:3]:
            found.append(Variant(_assign, assign_types, *assign_configuration(clusters, dimension, vector)))
        for clusters in (32, 64):
            for dimension in (16, 32, 64):
                found.append(
                    Variant(_update, update_types, *update_configuration(clusters, dimension, vector))
                )
    return found


@custom_op(f"{NAMESPACE}::nearest", mutates_args=())
def _nearest_op(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    if not runs_kernels(points):
        return reference.nearest(points, centers)
    labels = torch.empty(points.shape[:2], dtype=torch.int64, device=points.device)
    distance = torch.empty(points.shape[:2], dtype=torch.float32, device=points.device)
    _launch_assign(points, centers.contiguous(), labels, distance, None)
    return labels, distance


@_nearest_op.register_fake
def _(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    return points.new_empty(points.shape[:2], dtype=torch.int64), points.new_empty(points.shape[:2])


@custom_op(f"{NAMESPACE}::lloyd", mutates_args=())
def _lloyd_op(
    points: Tensor, centers: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if runs_kernels(points):
        return _launch_lloyd(points, centers, max_iterations, tolerance)
    found = reference.lloyd(points, centers, max_iterations, tolerance)
    # An op must not return what it was given.
    return found.centers.clone(), found.labels, found.inertia, found.sizes


@_lloyd_op.register_fake
def _(
    points: Tensor, centers: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (problems, number, dimension), clusters = points.shape, centers.shape[1]
    centers = points.new_empty(problems, clusters, dimension)
    labels = points.new_empty(problems, number, dtype=torch.int64)
    return (
        centers,
        labels,
        points.new_empty(problems),
        points.new_empty(problems, clusters, dtype=torch.int64),
    )


def nearest(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest center of each point, argmin_k |x - c_k|^2, and its squared distance.

    Args:
        points: (B, N, d) float32, any strides.
        centers: (B, K, d) float32, K at least 1.

    Returns:
        labels (B, N) int64, the first center among equals, and squared distances (B, N) float32. A point whose squared
        length is not finite in float32 (a NaN, an infinity, entries beyond 1e19) has label -1 and distance NaN.

    Raises:
        TypeError, ValueError: for arguments of another dtype or shape.
    """
    check(points, centers)
    return _nearest_op(points, centers)


def lloyd(points: Tensor, centers: Tensor, max_iterations: int = 30, tolerance: float = 1e-3) -> Clustering:
    """Lloyd's iterations until the inertia settles: assign each point to its nearest center, move centers to means.

    An empty cluster keeps its center. Points with label -1 (see `nearest`) take no part. Every problem stops by
    itself, so its result does not depend on what else is in the batch; equal inputs give equal bits.

    Args:
        points: (B, N, d) float32, any strides; problems may share their points (`expand`).
        centers: (B, K, d) float32, where to begin.
        max_iterations: of assignment and update.
        tolerance: a problem's iterations end when its inertia fell by no more than this share.

    Raises:
        TypeError, ValueError: for arguments of another dtype or shape.
    """
    check(points, centers)
    return Clustering(*_lloyd_op(points, centers, max_iterations, tolerance))


def check(points: Tensor, centers: Tensor | None = None) -> None:
    """Raise TypeError or ValueError where points (B, N, d) and centers (B, K, d) are not float32 or do not match."""
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
