"""Lloyd's iterations of many problems at once.

A problem is one set of points with one set of centers; restarts are problems on the same points, which
`points.expand(restarts, -1, -1)` of one set does not copy. The number of launches depends on shapes alone and the host
reads nothing: a problem that has converged is marked on the device, and its blocks return at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, jit, options, padded, runs_kernels, skips_dispatch, tl, with_unaligned
from ..reference.kmeans import Clustering
from ..reference.kmeans import lloyd as reference_lloyd
from ..tiles import STEPS, in_pieces, load_tile, vector_of
from .nearest import _launch_assign, check

__all__ = ["lloyd"]

# The most blocks of one problem that sum up its clusters; the last reads one partial sum of each.
MAX_GROUPS = 256


@jit(
    do_not_specialize=[
        "num_points",
        "num_dims",
        "num_clusters",
        "points_per_group",
        "num_groups",
        "num_parts",
        "move_centers",
        "problem_stride",
        "point_stride",
        "dim_stride",
    ]
)
def _update(
    points_ptr,
    labels_ptr,
    distance_ptr,
    centers_ptr,
    sizes_ptr,
    inertia_ptr,
    active_ptr,
    next_ptr,
    sums_ptr,
    counts_ptr,
    errors_ptr,
    arrivals_ptr,
    num_points: tl.int64,
    num_dims: tl.int32,
    num_clusters: tl.int32,
    points_per_group: tl.int64,
    num_groups: tl.int32,
    num_parts: tl.int32,
    tolerance: tl.float32,
    move_centers: tl.int32,
    problem_stride: tl.int64,
    point_stride: tl.int64,
    dim_stride: tl.int64,
    VECTOR: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Stores c_k = mean of the points of label k (if `move_centers`), sizes, inertia, and whether the problem goes on.

    One block handles a group of points and a part (BLOCK_K centers times BLOCK_D dimensions). It stores its sums, the
    product of the one-hot labels with the points, of which each warp has a share. The last block of a part to finish
    adds up the sums of all groups, in an order that does not depend on which block is last. Whether the problem goes on
    is stored for the next iteration in a separate array, because blocks of other parts may still have to read whether
    they are active in this one.
    """
    # All in one axis of the grid: the others end at 65 535. The parts of a group read the same points.
    part, of_part = tl.program_id(0) % num_parts, tl.program_id(0) // num_parts
    problem, group = (of_part // num_groups).to(tl.int64), of_part % num_groups
    if move_centers != 0:  # noqa: SIM102
        if tl.load(active_ptr + problem) == 0:
            return
    num_dims, problem_stride, point_stride, dim_stride = in_pieces(
        num_dims, problem_stride, point_stride, dim_stride, VECTOR
    )
    num_columns = tl.cdiv(num_dims, BLOCK_D)
    index = (part // num_columns) * BLOCK_K + tl.arange(0, BLOCK_K)
    entry = (part % num_columns) * BLOCK_D + tl.arange(0, BLOCK_D)
    inner, outer = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    points_ptr += problem * problem_stride
    labels_ptr += problem * num_points
    distance_ptr += problem * num_points

    NUMBER: tl.constexpr = BLOCK_N // WARPS
    sums = tl.zeros((WARPS, BLOCK_K, BLOCK_D), tl.float32)
    counts = tl.zeros((WARPS, BLOCK_K), tl.int32)
    errors = tl.zeros((WARPS, NUMBER), tl.float32)
    begin = group * points_per_group
    end = tl.minimum(begin + points_per_group, num_points)
    for tile in range(begin, end, BLOCK_N):
        point = tile + tl.arange(0, WARPS)[:, None] * NUMBER + tl.arange(0, NUMBER)[None, :]
        label = tl.load(labels_ptr + point, point < end, other=-1).to(tl.int32)
        distance = tl.load(distance_ptr + point, point < end, other=0.0)
        inside = (point < end)[:, :, None] & (entry < num_dims)[None, None, :]
        place = points_ptr + point[:, :, None] * point_stride + entry[None, None, :] * dim_stride
        x = tl.load(place, inside, other=0.0)
        is_member = label[:, None, :] == index[None, :, None]
        # A NaN times zero is NaN: points left out must not reach the product.
        x = tl.where((label >= 0)[:, :, None], x, 0.0)
        # A number rounded to 11 bits, and what is left, of 12 bits and a sign: two products of TF32 numbers.
        leading = ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
        member = is_member.to(tl.float32)
        # Of these points alone at first: a sum of many has fewer roundings so.
        of_tile = tl.dot(member, x - leading, input_precision="tf32")
        sums += tl.dot(member, leading, of_tile, input_precision="tf32")
        counts += tl.sum(is_member.to(tl.int32), 2)
        errors += tl.where(label >= 0, distance, 0.0)

    first_group = (problem * num_parts + part) * num_groups
    offsets = outer[:, None] * BLOCK_D + inner[None, :]
    tl.store(sums_ptr + (first_group + group) * (BLOCK_K * BLOCK_D) + offsets, tl.sum(sums, 0))
    tl.store(counts_ptr + (first_group + group) * BLOCK_K + outer, tl.sum(counts, 0))
    tl.store(errors_ptr + first_group + group, tl.sum(tl.sum(errors, 1), 0))
    # After the barrier all threads have stored, and one of them announces it (release). The block that sees all
    # announcements reads what was stored (acquire); .cg reads from the L2 cache, which all blocks share.
    tl.debug_barrier()
    arrivals_ptr += problem * num_parts + part
    if tl.atomic_add(arrivals_ptr, 1, sem="acq_rel", scope="gpu") == num_groups - 1:
        # Ready for the next launch.
        tl.store(arrivals_ptr, 0)
        total = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
        size = tl.zeros((BLOCK_K,), tl.int64)
        error = tl.zeros((BLOCK_G,), tl.float32)
        for first in tl.range(0, num_groups, BLOCK_G, loop_unroll_factor=2):
            other = first + tl.arange(0, BLOCK_G)
            valid = other < num_groups
            source = (first_group + other)[:, None, None] * (BLOCK_K * BLOCK_D) + offsets[None, :, :]
            total += tl.sum(
                tl.load(sums_ptr + source, valid[:, None, None], other=0.0, cache_modifier=".cg"), 0
            )
            source = (first_group + other)[:, None] * BLOCK_K + outer[None, :]
            count = tl.load(counts_ptr + source, valid[:, None], other=0, cache_modifier=".cg")
            size += tl.sum(count.to(tl.int64), 0)
            error += tl.load(errors_ptr + first_group + other, valid, other=0.0, cache_modifier=".cg")
        target = (problem * num_clusters + index)[:, None] * num_dims + entry[None, :]
        # An empty cluster keeps its center.
        valid = ((index < num_clusters) & (size > 0))[:, None] & (entry < num_dims)[None, :]
        if move_centers != 0:
            tl.store(centers_ptr + target, total / size.to(tl.float32)[:, None], valid)
        if part % num_columns == 0:
            tl.store(sizes_ptr + problem * num_clusters + index, size, index < num_clusters)
        # Every part has summed all distances; the first part stores the inertia.
        if part == 0:
            previous, inertia = tl.load(inertia_ptr + problem), tl.sum(error, 0)
            # All threads load the inertia, one stores the next.
            tl.debug_barrier()
            tl.store(inertia_ptr + problem, inertia)
            if move_centers != 0:
                tl.store(next_ptr + problem, (previous - inertia > tolerance * inertia).to(tl.int32))


@jit(
    do_not_specialize=[
        "num_points",
        "num_dims",
        "num_clusters",
        "num_pieces",
        "move_centers",
        "problem_stride",
        "point_stride",
        "dim_stride",
    ]
)
def _sum_runs(
    points_ptr,
    distance_ptr,
    order_ptr,
    begins_ptr,
    active_ptr,
    sums_ptr,
    errors_ptr,
    num_points: tl.int64,
    num_dims: tl.int32,
    num_clusters: tl.int32,
    num_pieces: tl.int32,
    move_centers: tl.int32,
    problem_stride: tl.int64,
    point_stride: tl.int64,
    dim_stride: tl.int64,
    VECTOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Stores the sums and the errors of the points of a cluster, which lie side by side in the order, by pieces."""
    num_columns = tl.cdiv(num_dims, BLOCK_D)
    column, place = tl.program_id(0) % num_columns, tl.program_id(0) // num_columns
    # The first pieces of all clusters, then the second ones: those that run at the same time read points that lie near
    # each other, each of which is in one of them.
    in_problem = place % (num_clusters * num_pieces)
    problem = (place // (num_clusters * num_pieces)).to(tl.int64)
    run = problem * num_clusters + in_problem % num_clusters
    part = in_problem // num_clusters
    if move_centers != 0:  # noqa: SIM102
        if tl.load(active_ptr + problem) == 0:
            return
    num_dims, problem_stride, point_stride, dim_stride = in_pieces(
        num_dims, problem_stride, point_stride, dim_stride, VECTOR
    )
    first = tl.load(begins_ptr + run + problem)
    last = tl.load(begins_ptr + run + problem + 1)
    share = tl.cdiv(last - first, num_pieces)
    begin = first + part * share
    end = tl.minimum(begin + share, last)
    points_ptr += problem * problem_stride
    distance_ptr += problem * num_points
    order_ptr += problem * num_points
    entry = column * BLOCK_D + tl.arange(0, BLOCK_D)
    sums = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    errors = tl.zeros((BLOCK_N,), tl.float32)
    for tile in range(begin, end, BLOCK_N):
        member = tile + tl.arange(0, BLOCK_N)
        point = tl.load(order_ptr + member, member < end, other=0)
        # Those beyond the end are beyond the last point.
        point = tl.where(member < end, point, num_points)
        sums += load_tile(points_ptr, point, num_points, entry, num_dims, point_stride, dim_stride)
        errors += tl.load(distance_ptr + point, member < end, other=0.0)
    piece = run * num_pieces + part
    tl.store(sums_ptr + piece * num_dims + entry, tl.sum(sums, 0), entry < num_dims)
    if column == 0:
        tl.store(errors_ptr + piece, tl.sum(errors, 0))


@jit(do_not_specialize=["num_dims", "num_clusters", "num_pieces", "move_centers"])
def _move_centers(
    begins_ptr,
    sums_ptr,
    errors_ptr,
    centers_ptr,
    sizes_ptr,
    inertia_ptr,
    active_ptr,
    next_ptr,
    num_dims: tl.int32,
    num_clusters: tl.int32,
    num_pieces: tl.int32,
    tolerance: tl.float32,
    move_centers: tl.int32,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """The same results as those of `_update`, from the sums of `_sum_runs`: a program for each cluster."""
    run = tl.program_id(0).to(tl.int64)
    problem, cluster = run // num_clusters, run % num_clusters
    if move_centers != 0:  # noqa: SIM102
        if tl.load(active_ptr + problem) == 0:
            return
    size = tl.load(begins_ptr + run + problem + 1) - tl.load(begins_ptr + run + problem)
    tl.store(sizes_ptr + run, size)
    # An empty cluster keeps its center.
    if (move_centers != 0) & (size > 0):
        piece = tl.arange(0, BLOCK_P)
        for start in range(0, num_dims, BLOCK_D):
            entry = start + tl.arange(0, BLOCK_D)
            pieces = load_tile(
                sums_ptr + run * num_pieces * num_dims, piece, num_pieces, entry, num_dims, num_dims, 1
            )
            center = tl.sum(pieces, 0) / size.to(tl.float32)
            tl.store(centers_ptr + run * num_dims + entry, center, entry < num_dims)
    if cluster == 0:
        errors = tl.zeros((BLOCK_E,), tl.float32)
        number = num_clusters * num_pieces
        for start in range(0, number, BLOCK_E):
            place = start + tl.arange(0, BLOCK_E)
            errors += tl.load(errors_ptr + run * num_pieces + place, place < number, other=0.0)
        previous, inertia = tl.load(inertia_ptr + problem), tl.sum(errors, 0)
        tl.debug_barrier()
        tl.store(inertia_ptr + problem, inertia)
        if move_centers != 0:
            tl.store(next_ptr + problem, (previous - inertia > tolerance * inertia).to(tl.int32))


WARPS_OF_UPDATE = 4
"""Each multiplies points by itself: shared by the warps, so small a product would be computed several times."""
STAGES_OF_UPDATE = 3
"""While the points of one tile are added up, those of the next two are loaded."""


def update_configuration(num_clusters: int, num_dims: int, vector: int) -> dict[str, int]:
    """Constants of `_update`: a warp has at most 64 x 32 sums, 64 registers of each thread, and then fewer points."""
    block_k, block_d = min(padded(num_clusters, 32), 64), min(padded(num_dims), 32)
    points = (16 if block_k == 2 * block_d == 64 else 32) * WARPS_OF_UPDATE
    blocks = {"BLOCK_N": points, "BLOCK_K": block_k, "BLOCK_D": block_d}
    return {"VECTOR": vector, "WARPS": WARPS_OF_UPDATE, **blocks, "BLOCK_G": 4096 // (block_k * block_d)}


MIN_CLUSTERS_TO_SORT, MIN_SUMS_TO_SORT = 33, 2048
"""With so many clusters, and sums K x d, sorting the points by labels takes less time than products with the labels."""
MIN_POINTS_TO_SORT = 100_000
MAX_POINTS_TO_SORT = 2**31 - 1
"""PyTorch sorts no more on a GPU."""
POINTS_OF_PIECE = 256
"""Of a run, on average, as long as it has no more than 64 pieces."""


def sorted_configuration(num_dims: int, vector: int) -> dict[str, int]:
    """Constants of `_sum_runs`: a thread has 32 sums."""
    block_d = min(padded(num_dims), 128)
    return {"VECTOR": vector, "BLOCK_N": 4096 // block_d, "BLOCK_D": block_d}


MOVE = {"BLOCK_P": 64, "BLOCK_D": 32, "BLOCK_E": 1024}


def _launch_lloyd(
    points: Tensor, centers: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (num_problems, num_points, num_dims), num_clusters, device = points.shape, centers.shape[1], points.device
    centers = centers.clone(memory_format=torch.contiguous_format)
    labels = torch.empty(num_problems, num_points, dtype=torch.int64, device=device)
    distance = torch.empty(num_problems, num_points, dtype=torch.float32, device=device)
    inertia = torch.full((num_problems,), torch.inf, dtype=torch.float32, device=device)
    sizes = torch.empty(num_problems, num_clusters, dtype=torch.int64, device=device)
    if num_problems == 0:
        return centers, labels, inertia, sizes
    constants = update_configuration(num_clusters, num_dims, vector_of(points))
    block_n, block_k, block_d = (constants[name] for name in ("BLOCK_N", "BLOCK_K", "BLOCK_D"))
    # A function of N alone: the order of the sums must not depend on the batch.
    tiles = max(1, -(-num_points // block_n))
    points_per_group = block_n * -(-tiles // MAX_GROUPS)
    num_groups = max(1, -(-num_points // points_per_group))
    num_parts = -(-num_clusters // block_k) * -(-num_dims // block_d)
    many = num_clusters >= MIN_CLUSTERS_TO_SORT and num_clusters * num_dims >= MIN_SUMS_TO_SORT
    by_runs = many and MIN_POINTS_TO_SORT <= num_points <= MAX_POINTS_TO_SORT
    scratch = (num_problems, 0 if by_runs else num_parts, num_groups)
    sums = torch.empty(*scratch, block_k, block_d, dtype=torch.float32, device=device)
    counts = torch.empty(*scratch, block_k, dtype=torch.int32, device=device)
    errors = torch.empty(scratch, dtype=torch.float32, device=device)
    arrivals = torch.zeros(num_problems, num_parts, dtype=torch.int32, device=device)
    # Whether a problem is active in an iteration. A problem that is not stays so. Each iteration's begin at a multiple
    # of 16 bytes: for others the kernels would be compiled anew.
    active = torch.zeros(max_iterations + 1, padded(num_problems, 4), dtype=torch.int32, device=device)
    active[0].fill_(1)

    def update(iteration: int, move_centers: bool) -> None:
        _update[(num_problems * num_groups * num_parts,)](
            points,
            labels,
            distance,
            centers,
            sizes,
            inertia,
            active[iteration],
            active[iteration + move_centers],
            sums,
            counts,
            errors,
            arrivals,
            num_points,
            num_dims,
            num_clusters,
            points_per_group,
            num_groups,
            num_parts,
            tolerance,
            int(move_centers),
            *points.stride(),
            **constants,
            **options(WARPS_OF_UPDATE, STAGES_OF_UPDATE),
        )

    # A function of N and K: the order of the sums must not depend on the batch.
    num_pieces = min(MOVE["BLOCK_P"], max(1, -(-num_points // (POINTS_OF_PIECE * num_clusters))))
    dtype = torch.int16 if num_clusters < 2**15 else torch.int32
    bounds = torch.arange(num_clusters + 1, dtype=dtype, device=device).expand(num_problems, -1).contiguous()

    def update_by_runs(iteration: int, move_centers: bool) -> None:
        keys, order = torch.sort(labels.to(dtype), stable=True)
        # Points with label -1 come before all runs.
        begins = torch.searchsorted(keys, bounds)
        run_sums = torch.empty(
            num_problems, num_clusters, num_pieces, num_dims, dtype=torch.float32, device=device
        )
        run_errors = torch.empty(num_problems, num_clusters, num_pieces, dtype=torch.float32, device=device)
        constants = sorted_configuration(num_dims, vector_of(points))
        num_columns = -(-num_dims // constants["BLOCK_D"])
        _sum_runs[(num_problems * num_clusters * num_pieces * num_columns,)](
            points,
            distance,
            order,
            begins,
            active[iteration],
            run_sums,
            run_errors,
            num_points,
            num_dims,
            num_clusters,
            num_pieces,
            int(move_centers),
            *points.stride(),
            **constants,
            **options(4),
        )
        _move_centers[(num_problems * num_clusters,)](
            begins,
            run_sums,
            run_errors,
            centers,
            sizes,
            inertia,
            active[iteration],
            active[iteration + move_centers],
            num_dims,
            num_clusters,
            num_pieces,
            tolerance,
            int(move_centers),
            **MOVE,
            **options(4),
        )

    finish = update_by_runs if by_runs else update
    for iteration in range(max_iterations):
        _launch_assign(points, centers, labels, distance, active[iteration])
        finish(iteration, move_centers=True)
    _launch_assign(points, centers, labels, distance, None)
    finish(max_iterations, move_centers=False)
    return centers, labels, inertia, sizes


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    sizes = {"num_points": "i64", "num_dims": "i32", "num_clusters": "i32"}
    found = {"centers_ptr": "*fp32", "sizes_ptr": "*i64", "inertia_ptr": "*fp32"}
    found |= {"active_ptr": "*i32", "next_ptr": "*i32"}
    update_types = {"points_ptr": "*fp32", "labels_ptr": "*i64", "distance_ptr": "*fp32", **found}
    update_types |= {"sums_ptr": "*fp32", "counts_ptr": "*i32", "errors_ptr": "*fp32", "arrivals_ptr": "*i32"}
    update_types |= {**sizes, "points_per_group": "i64", "num_groups": "i32", "num_parts": "i32"}
    update_types |= {"tolerance": "fp32", "move_centers": "i32", **STEPS}
    runs_types = {"points_ptr": "*fp32", "distance_ptr": "*fp32", "order_ptr": "*i64", "begins_ptr": "*i64"}
    runs_types |= {"active_ptr": "*i32", "sums_ptr": "*fp32", "errors_ptr": "*fp32"}
    runs_types |= {**sizes, "num_pieces": "i32", "move_centers": "i32", **STEPS}
    move_types = {"begins_ptr": "*i64", "sums_ptr": "*fp32", "errors_ptr": "*fp32", **found}
    move_types |= {"num_dims": "i32", "num_clusters": "i32", "num_pieces": "i32"}
    move_types |= {"tolerance": "fp32", "move_centers": "i32"}
    configurations = [Variant(_move_centers, move_types, MOVE, 4)]
    for vector in (4, 1):
        # Points that are loaded by 16 bytes begin at a multiple of them.
        unaligned = () if vector > 1 else ("points_ptr",)
        for num_dims in (16, 32, 64, 128):
            variant = Variant(_sum_runs, runs_types, sorted_configuration(num_dims, vector), 4)
            configurations += with_unaligned(variant, unaligned)
        for num_clusters in (32, 64):
            for num_dims in (16, 32):
                constants = update_configuration(num_clusters, num_dims, vector)
                variant = Variant(_update, update_types, constants, WARPS_OF_UPDATE, STAGES_OF_UPDATE)
                configurations += with_unaligned(variant, unaligned)
    return configurations


@custom_op(add_op_namespace_prefix("lloyd"), mutates_args=())
def _lloyd_op(
    points: Tensor, centers: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if runs_kernels(points):
        return _launch_lloyd(points, centers, max_iterations, tolerance)
    found = reference_lloyd(points, centers, max_iterations, tolerance)
    # An op must not return its own arguments.
    return (
        found.centers.clone(memory_format=torch.contiguous_format),
        found.labels,
        found.inertia,
        found.sizes,
    )


@_lloyd_op.register_fake
def _(
    points: Tensor, centers: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (num_problems, num_points, num_dims), num_clusters = points.shape, centers.shape[1]
    centers = points.new_empty(num_problems, num_clusters, num_dims)
    labels = points.new_empty(num_problems, num_points, dtype=torch.int64)
    return (
        centers,
        labels,
        points.new_empty(num_problems),
        points.new_empty(num_problems, num_clusters, dtype=torch.int64),
    )


def lloyd(points: Tensor, centers: Tensor, max_iterations: int = 30, tolerance: float = 1e-3) -> Clustering:
    """Lloyd's iterations until the inertia hardly changes.

    An iteration assigns each point to its nearest center and moves every center to the mean of its points. An empty
    cluster keeps its center. Points with label -1 (see `nearest`) are left out. The result of a problem does not
    depend on the other problems of the batch; equal inputs give equal bits.

    Args:
        points: (B, N, d) float32, any strides; problems may share their points (`expand`).
        centers: (B, K, d) float32, the start.
        max_iterations: the most iterations of assignment and update.
        tolerance: a problem's iterations end when its inertia decreased by no more than this share.

    Raises:
        TypeError: for arguments of another dtype.
        ValueError: for arguments of another shape.
    """
    check(points, centers)
    if skips_dispatch(points, centers):
        return reference_lloyd(points, centers, max_iterations, tolerance)
    return Clustering(*_lloyd_op(points, centers, max_iterations, tolerance))
