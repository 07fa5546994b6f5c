"""Leading principal directions by orthogonal iteration; the host reads nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, jit, options, padded, runs_kernels, tl
from ..precision import in_full_precision
from ..reference.principal import ITERATIONS, MIN_SQUARE, SPARE_COLUMNS, start
from ..reference.principal import principal_directions as reference_principal_directions

__all__ = ["principal_directions"]

# The most columns of one block: two 32 x 32 matrices of float64 fill the registers of 4 warps.
MAX_COLUMNS = 32
# Rows that are loaded at a time. One block per problem goes through all rows: 50 KB for 768 x 16.
BLOCK = 32
# The most sweeps of Jacobi's method. 4 to 6 suffice, because the matrix is nearly diagonal already.
SWEEPS = 12


@jit
def _whitening(gram, column, WIDTH: tl.constexpr, MIN_SQUARE: tl.constexpr):
    """T with T^T S T = 1 for S = L L^T, T = L^-T: Gauss-Jordan; columns that depend on earlier ones become zero."""
    row = column[:, None]
    other = column[None, :]
    inverse = tl.where(row == other, 1.0, 0.0).to(tl.float64)
    min_pivot = MIN_SQUARE * tl.max(tl.sum(tl.where(row == other, gram, 0.0), 1), 0)
    for k in range(WIDTH):
        pivot_row = tl.sum(tl.where(row == k, gram, 0.0), 0)
        pivot_column = tl.sum(tl.where(other == k, gram, 0.0), 1)
        inverse_row = tl.sum(tl.where(row == k, inverse, 0.0), 0)
        pivot = tl.sum(tl.where(column == k, pivot_row, 0.0), 0)
        scale = tl.where(pivot > min_pivot, 1.0 / tl.sqrt(tl.maximum(pivot, 1e-300)), 0.0)
        factor = tl.where(column > k, pivot_column, 0.0) * scale * scale
        gram -= factor[:, None] * pivot_row[None, :]
        inverse -= factor[:, None] * inverse_row[None, :]
        inverse = tl.where(row == k, (scale * inverse_row)[None, :], inverse)
    return tl.trans(inverse)


@jit
def _eigenvectors(gram, column, WIDTH: tl.constexpr, SWEEPS: tl.constexpr):
    """Eigenvectors (columns) and eigenvalues of S, largest first: Jacobi's method in parallel order.

    Round m of a sweep rotates the WIDTH / 2 disjoint pairs (i, i xor m).
    """
    row = column[:, None]
    other = column[None, :]
    vectors = tl.where(row == other, 1.0, 0.0).to(tl.float64)
    square = gram * gram
    total_square = tl.sum(tl.sum(square, 1), 0)
    off_diagonal = tl.sum(tl.sum(tl.where(row == other, 0.0, square), 1), 0)
    sweep = 0
    while (sweep < SWEEPS) & (off_diagonal > 1e-28 * total_square):
        for m in range(1, WIDTH):
            diagonal = tl.sum(tl.where(row == other, gram, 0.0), 1)
            pair = tl.sum(tl.where(other == (row ^ m), gram, 0.0), 1)
            partner = tl.gather(diagonal, column ^ m, 0)
            # Both members of a pair compute the rotation; the signs of `tangent` are opposite.
            slope = (partner - diagonal) / tl.where(pair == 0.0, 1.0, 2.0 * pair)
            rising = (slope > 0.0) | ((slope == 0.0) & (column < (column ^ m)))
            tangent = 1.0 / (tl.abs(slope) + tl.sqrt(1.0 + slope * slope))
            tangent = tl.where(pair == 0.0, 0.0, tl.where(rising, tangent, -tangent))
            cosine = 1.0 / tl.sqrt(1.0 + tangent * tangent)
            sine = tangent * cosine
            rows = (row ^ m) + other * 0
            columns = row * 0 + (other ^ m)
            gram = cosine[:, None] * gram - sine[:, None] * tl.gather(gram, rows, 0)
            gram = cosine[None, :] * gram - sine[None, :] * tl.gather(gram, columns, 1)
            vectors = cosine[None, :] * vectors - sine[None, :] * tl.gather(vectors, columns, 1)
        off_diagonal = tl.sum(tl.sum(tl.where(row == other, 0.0, gram * gram), 1), 0)
        sweep += 1
    values = tl.sum(tl.where(row == other, gram, 0.0), 1)
    values_row = tl.sum(tl.where(row == other, gram, 0.0), 0)
    precedes = (values_row[None, :] > values[:, None]) | (
        (values_row[None, :] == values[:, None]) & (other < row)
    )
    rank = tl.sum(precedes.to(tl.int32), 1)
    order = tl.sum(tl.where(rank[:, None] == other, row, 0), 0)
    # Clamped, so that the gather stays inside even if there are NaN, which have no rank.
    order = tl.minimum(order, WIDTH - 1)
    return tl.gather(vectors, row * 0 + order[None, :], 1), tl.gather(values, order, 0)


@jit(do_not_specialize=["num_dims", "width"])
def _orthonormalize(
    image_ptr,
    out_ptr,
    num_dims: tl.int32,
    width: tl.int32,
    ROTATE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SWEEPS: tl.constexpr,
    MIN_SQUARE: tl.constexpr,
):
    """V = W T with V^T V = 1 for W (dimension, width), one problem a block; with ROTATE, V^T W W^T V is diagonal.

    T is computed from S = W^T W in float64: it is L^-T of S = L L^T, or E / sqrt(values) of its eigenvectors.
    """
    problem = tl.program_id(0).to(tl.int64)
    image_ptr += problem * num_dims * width
    out_ptr += problem * num_dims * width
    column = tl.arange(0, WIDTH)
    gram = tl.zeros([WIDTH, WIDTH], tl.float64)
    for begin in range(0, num_dims, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        inside = (row[:, None] < num_dims) & (column[None, :] < width)
        image = tl.load(image_ptr + row[:, None] * width + column[None, :], inside, other=0.0).to(tl.float64)
        gram += tl.dot(tl.trans(image), image, out_dtype=tl.float64)
    if ROTATE:
        vectors, values = _eigenvectors(gram, column, WIDTH, SWEEPS)
        kept = values > MIN_SQUARE * tl.max(values, 0)
        transform = vectors * tl.where(kept, 1.0 / tl.sqrt(tl.maximum(values, 1e-300)), 0.0)[None, :]
    else:
        transform = _whitening(gram, column, WIDTH, MIN_SQUARE)
    for begin in range(0, num_dims, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        inside = (row[:, None] < num_dims) & (column[None, :] < width)
        image = tl.load(image_ptr + row[:, None] * width + column[None, :], inside, other=0.0).to(tl.float64)
        basis = tl.dot(image, transform, out_dtype=tl.float64).to(tl.float32)
        tl.store(out_ptr + row[:, None] * width + column[None, :], basis, inside)


def _constants(width: int, rotate: bool) -> dict[str, int | float]:
    fixed = {"BLOCK": BLOCK, "SWEEPS": SWEEPS, "MIN_SQUARE": MIN_SQUARE}
    return {"ROTATE": rotate, "WIDTH": padded(width), **fixed}


def _launch_orthonormalize(image: Tensor, rotate: bool) -> Tensor:
    image = image.contiguous()
    batch, num_dims, width = image.shape
    out = torch.empty_like(image)
    if out.numel():
        _orthonormalize[(batch,)](image, out, num_dims, width, **_constants(width, rotate), **options(4))
    return out


@in_full_precision
def _launch_principal_directions(rows: Tensor, num_directions: int) -> Tensor:
    vectors = start(rows, num_directions)
    for iteration in range(1, ITERATIONS + 1):
        image = torch.bmm(rows.mT, torch.bmm(rows, vectors))
        vectors = _launch_orthonormalize(image, iteration == ITERATIONS)
    return vectors[..., :num_directions].contiguous()


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = {"image_ptr": "*fp32", "out_ptr": "*fp32", "num_dims": "i32", "width": "i32"}
    return [
        Variant(_orthonormalize, types, _constants(width, rotate), num_warps=4)
        for width in (16, MAX_COLUMNS)
        for rotate in (False, True)
    ]


@custom_op(add_op_namespace_prefix("principal_directions"), mutates_args=())
def principal_directions(rows: Tensor, num_directions: int) -> Tensor:
    """The leading principal directions of centered rows, by orthogonal iteration from a fixed start.

        V <- orthonormal basis of X^T (X V), 10 times, with 8 columns to spare; the last basis is that of the
        principal components of X V, in the order of their variance

    The D x D matrix is never formed. Directions whose variance is under 3e-7 of the largest cannot be resolved in
    float32 and are zeros, as are those beyond D. On CUDA up to 24 directions are found without a host
    read; for more of them the reference is used.

    Args:
        rows: (B, n, D) float32, finite, each problem of mean zero.
        num_directions: d, at least 1.

    Returns:
        (B, D, d) float32, orthonormal columns, each with an arbitrary sign.
    """
    if runs_kernels(rows) and num_directions + SPARE_COLUMNS <= MAX_COLUMNS:
        return _launch_principal_directions(rows, num_directions)
    return reference_principal_directions(rows, num_directions)


@principal_directions.register_fake
def _(rows: Tensor, num_directions: int) -> Tensor:
    return rows.new_empty(rows.shape[0], rows.shape[2], num_directions)
