"""The nearest center of each projected row, in one read of the rows: the projection is not stored."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, jit, runs_kernels, skips_dispatch, tl, with_unaligned
from ..reference.project_nearest import project_nearest as reference_project_nearest
from ..tiles import first_minimum, load_tile
from .nearest import nearest, three_products
from .project import TYPES, check, configuration, prepare, project, projected

__all__ = ["project_nearest"]

MAX_DIRECTIONS = {torch.bfloat16: 10, torch.float16: 16, torch.float32: 16}
"""As many have all their terms in the narrower product of `projected`; a tile of more leaves too few registers."""
MAX_CLUSTERS = 64
"""Every program loads all centers, BLOCK_K at a time; more are sooner compared in larger tiles of points."""
BLOCK_K = 32


@jit(
    do_not_specialize=[
        "offset_ptr",
        "radius_ptr",
        "centers_ptr",
        "num_rows",
        "num_dims",
        "num_columns",
        "row_stride",
        "column_stride",
        "num_clusters",
    ]
)
def _project_nearest(
    rows_ptr,
    packed_ptr,
    unscale_ptr,
    offset_ptr,
    radius_ptr,
    centers_ptr,
    labels_ptr,
    num_rows: tl.int64,
    num_dims: tl.int32,
    num_columns: tl.int32,
    row_stride: tl.int64,
    column_stride: tl.int64,
    num_clusters: tl.int32,
    VECTOR: tl.constexpr,
    TERMS: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Stores label = argmin_k |c_k|^2 - 2 <x, c_k> of BLOCK_N projected rows x, which one program has as a whole."""
    x, row, inside, column, is_used = projected(
        rows_ptr,
        packed_ptr,
        unscale_ptr,
        offset_ptr,
        radius_ptr,
        num_rows,
        num_dims,
        num_columns,
        row_stride,
        column_stride,
        VECTOR,
        TERMS,
        WIDTH,
        OUT,
        BLOCK_N,
        BLOCK_D,
        EMULATED,
    )
    x = tl.where(is_used[None, :], x, 0.0)
    infinity = float("inf")
    best, label = tl.full((BLOCK_N,), infinity, tl.float32), tl.zeros((BLOCK_N,), tl.int32)
    index, nothing = tl.arange(0, BLOCK_K), tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    # Not pipelined: the buffers would cost registers, and centers are mostly one tile.
    for first in tl.range(0, num_clusters, BLOCK_K, num_stages=1):
        centers = load_tile(centers_ptr, first + index, num_clusters, column, num_columns, num_columns, 1)
        bias = 0.5 * tl.sum(centers * centers, 1)
        # No row is assigned to a center that is not finite.
        finite = (bias < infinity) & (first + index < num_clusters)
        centers = tl.where(finite[:, None], centers, 0.0)
        scores = tl.where(finite, bias, infinity)[None, :] - three_products(x, centers, nothing)
        lowest, member = first_minimum(scores, index, BLOCK_K)
        label = tl.where(lowest < best, first + member, label)
        best = tl.minimum(best, lowest)
    # All columns of a product with ones are |x|^2. The sum itself would be taken of the columns of many threads.
    squares = tl.dot(x * x, tl.full((OUT, 16), 1.0, tl.float32), input_precision="tf32")
    is_finite = tl.max(squares, 1) < infinity
    tl.store(labels_ptr + row, tl.where(is_finite, label, -1).to(tl.int64), inside)


def fits(dtype: torch.dtype, num_columns: int, num_clusters: int) -> bool:
    """Whether one program projects its rows on all directions and compares them with all centers."""
    return num_columns <= MAX_DIRECTIONS.get(dtype, 0) and num_clusters <= MAX_CLUSTERS


def _launch_project_nearest(
    embeddings: Tensor, basis: Tensor, offset: Tensor, radius: Tensor, centers: Tensor
) -> Tensor:
    if not fits(embeddings.dtype, *centers.mT.shape):
        points = project(embeddings, basis, offset, radius)
        return nearest(points[None], centers[None])[0][0]
    labels = torch.empty(len(embeddings), dtype=torch.int64, device=embeddings.device)
    if labels.numel():
        tensors, sizes, grid, constants, compiler = prepare(embeddings, basis, offset, radius)
        _project_nearest[grid](
            *tensors,
            centers.contiguous(),
            labels,
            len(labels),
            *sizes,
            len(centers),
            BLOCK_K=BLOCK_K,
            **constants,
            **compiler,
        )
    return labels


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    configurations = []
    for dtype, name in TYPES.items():
        types = {"rows_ptr": f"*{name}", "packed_ptr": f"*{name}", "radius_ptr": "*fp64"}
        types |= dict.fromkeys(("unscale_ptr", "offset_ptr", "centers_ptr"), "*fp32")
        types |= {"labels_ptr": "*i64", "num_rows": "i64", "row_stride": "i64", "column_stride": "i64"}
        types |= dict.fromkeys(("num_dims", "num_columns", "num_clusters"), "i32")
        for vector in (True, False):
            constants, num_warps, num_stages = configuration(dtype, MAX_DIRECTIONS[dtype], vector)
            constants |= {"BLOCK_K": BLOCK_K, "EMULATED": False}
            variant = Variant(_project_nearest, types, constants, num_warps, num_stages)
            # Rows that are loaded by 16 bytes begin at a multiple of them.
            configurations += with_unaligned(variant, () if vector else ("rows_ptr",))
    return configurations


@custom_op(add_op_namespace_prefix("project_nearest"), mutates_args=())
def _project_nearest_op(
    embeddings: Tensor, basis: Tensor, offset: Tensor, radius: Tensor, centers: Tensor
) -> Tensor:
    if runs_kernels(embeddings):
        return _launch_project_nearest(embeddings, basis, offset, radius, centers)
    return reference_project_nearest(embeddings, basis, offset, radius, centers)


@_project_nearest_op.register_fake
def _(embeddings: Tensor, basis: Tensor, offset: Tensor, radius: Tensor, centers: Tensor) -> Tensor:
    return embeddings.new_empty(embeddings.shape[:1], dtype=torch.int64)


def project_nearest(
    embeddings: Tensor, basis: Tensor, offset: Tensor, radius: Tensor | float, centers: Tensor
) -> Tensor:
    """The nearest center of each projected row: `nearest` of what `project` gives, which is not stored.

    With more than 16 directions (10 of bfloat16 rows), more than 64 centers, or rows of float64, `project` and
    `nearest` run one after the other.

    Args:
        embeddings: (N, D) floating point, any strides.
        basis: (D, d) float32, one direction per column, d at least 1.
        offset: (d,) float32.
        radius: a number, or a float64 tensor of no dimensions on the device of the embeddings (never read by the host).
        centers: (K, d) float32, K at least 1.

    Returns:
        (N,) int64, the first center among equals; -1 for a row with a NaN or an infinity, and for one whose projection
        has a squared length beyond float32. Where squared distances to two centers differ by less than the rounding
        of `nearest`, it may be either.

    Raises:
        TypeError: for embeddings that are no floating point tensor, and centers that are not float32.
        ValueError: for arguments that do not fit together.
    """
    radius = check(embeddings, basis, offset, radius)
    if centers.dtype != torch.float32:
        raise TypeError(f"centers must be float32, got {centers.dtype}; convert with .float()")
    if centers.ndim != 2 or centers.shape[1:] != offset.shape or not centers.numel():
        raise ValueError(
            f"centers must be (K, {len(offset)}), one column per column of basis, both at least 1, "
            f"got {tuple(centers.shape)}"
        )
    given = (embeddings, basis, offset, radius, centers)
    return reference_project_nearest(*given) if skips_dispatch(*given) else _project_nearest_op(*given)
