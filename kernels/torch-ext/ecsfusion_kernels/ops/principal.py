"""Leading principal directions by orthogonal iteration; the host reads nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..grid_barrier import resident_programs, wait_for_programs
from ..language import Variant, aligned, jit, options, padded, runs_kernels, signed, tl
from ..precision import in_full_precision
from ..reference.principal import ITERATIONS, MIN_SQUARE, SPARE_COLUMNS, start, with_largest_positive
from ..reference.principal import principal_directions as reference_principal_directions
from ..reference.random import keys
from .random import uniform_at

__all__ = ["principal_directions"]

# The most columns of one block: two 32 x 32 matrices of float64 fill the registers of 4 warps.
MAX_COLUMNS = 32
# Rows that are loaded at a time. One block per problem goes through all rows: 50 KB for 768 x 16.
BLOCK = 32
# The most sweeps of Jacobi's method. 4 to 6 suffice, because the matrix is nearly diagonal already.
SWEEPS = 12

MAX_PROBLEMS, MAX_ROWS, MAX_DIMS = 8, 4096, 8192
"""Of one launch whose programs share each problem; for more, an iteration is two products and a launch."""
ROWS, DIMS = 64, 64
"""Of a tile of the rows."""
OWN = 16
"""Dimensions of a tile of the image, the fewest of a product."""
MAX_BLOCKS = 64
"""Of the dimensions of a problem: every program adds up what all of them give."""
NUM_WARPS = 8


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


@jit
def _image_of_rows(
    rows_ptr,
    vectors_ptr,
    part_ptr,
    begin,
    num_rows,
    num_dims,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
):
    """Stores X^T (X V) of ROWS rows X from `begin`."""
    row, dim, column = begin + tl.arange(0, ROWS), tl.arange(0, DIMS), tl.arange(0, WIDTH)
    product = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in range(0, num_dims, DIMS):
        entry = first + dim
        inside = (row < num_rows)[:, None] & (entry < num_dims)[None, :]
        x = tl.load(rows_ptr + row[:, None] * num_dims + entry[None, :], inside, other=0.0)
        place = vectors_ptr + entry[:, None] * WIDTH + column[None, :]
        vectors = tl.load(place, (entry < num_dims)[:, None], other=0.0, cache_modifier=".cg")
        product = tl.dot(x, vectors, product, input_precision="ieee")
    for first in range(0, num_dims, DIMS):
        entry = first + dim
        inside = (row < num_rows)[:, None] & (entry < num_dims)[None, :]
        x = tl.load(rows_ptr + row[:, None] * num_dims + entry[None, :], inside, other=0.0)
        image = tl.dot(tl.trans(x), product, input_precision="ieee")
        tl.store(part_ptr + entry[:, None] * WIDTH + column[None, :], image, (entry < num_dims)[:, None])


@jit
def _sum_of_parts(
    parts_ptr, image_ptr, begin, end, num_dims, num_parts, WIDTH: tl.constexpr, OWN: tl.constexpr
):
    """Stores the sum W of all parts for the dimensions from `begin` to `end`, and returns W^T W, (WIDTH, WIDTH)."""
    column = tl.arange(0, WIDTH)
    gram = tl.zeros((WIDTH, WIDTH), tl.float64)
    for first in range(begin, end, OWN):
        entry = first + tl.arange(0, OWN)
        there = (entry < end)[:, None] & (column >= 0)[None, :]
        place = entry[:, None] * WIDTH + column[None, :]
        image = tl.zeros((OWN, WIDTH), tl.float32)
        part_ptr = parts_ptr
        for _ in tl.range(0, num_parts, loop_unroll_factor=16):
            image += tl.load(part_ptr + place, there, other=0.0, cache_modifier=".cg")
            part_ptr += num_dims * WIDTH
        tl.store(image_ptr + place, image, there)
        wide = image.to(tl.float64)
        gram += tl.dot(tl.trans(wide), wide, out_dtype=tl.float64)
    return gram


@jit(
    do_not_specialize=[
        "num_rows",
        "num_dims",
        "width",
        "num_directions",
        "num_parts",
        "dims_of_block",
        "num_blocks",
        "num_programs",
        "iterations",
        "key1",
        "key2",
    ]
)
def _directions(
    rows_ptr,
    vectors_ptr,
    parts_ptr,
    image_ptr,
    extremes_ptr,
    grams_ptr,
    out_ptr,
    arrivals_ptr,
    num_rows: tl.int32,
    num_dims: tl.int32,
    width: tl.int32,
    num_directions: tl.int32,
    num_parts: tl.int32,
    dims_of_block: tl.int32,
    num_blocks: tl.int32,
    num_programs: tl.int32,
    iterations: tl.int32,
    key1: tl.int32,
    key2: tl.int32,
    VECTOR: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
    OWN: tl.constexpr,
    SWEEPS: tl.constexpr,
    MIN_SQUARE: tl.constexpr,
):
    """V <- orthonormal basis of X^T (X V), the last one rotated; its largest entries are positive.

    The programs of a problem share its rows, in parts, and its dimensions, in blocks. Each finds the small matrix that
    makes the image orthonormal, alike.
    """
    problem, program = (tl.program_id(0) // num_programs).to(tl.int64), tl.program_id(0) % num_programs
    if VECTOR > 1:
        # The value does not change, but the compiler now knows that it is divisible.
        num_dims = num_dims // VECTOR * VECTOR
    rows_ptr += problem * num_rows * num_dims
    vectors_ptr += problem * num_dims * WIDTH
    parts_ptr += problem * num_parts * num_dims * WIDTH
    image_ptr += problem * num_dims * WIDTH
    extremes_ptr += problem * num_blocks * WIDTH
    grams_ptr += problem * num_blocks * WIDTH * WIDTH
    out_ptr += problem * num_dims * num_directions
    arrivals_ptr += problem
    column, own = tl.arange(0, WIDTH), tl.arange(0, OWN)
    square = column[:, None] * WIDTH + column[None, :]
    for block in range(program, num_blocks, num_programs):
        end = tl.minimum((block + 1) * dims_of_block, num_dims)
        for first in range(block * dims_of_block, end, OWN):
            entry = first + own
            counter = (entry[:, None] * width + column[None, :]).to(tl.int64)
            start = tl.where((column < width)[None, :], uniform_at(counter, key1, key2) - 0.5, 0.0)
            there = (entry < end)[:, None] & (column >= 0)[None, :]
            tl.store(vectors_ptr + entry[:, None] * WIDTH + column[None, :], start, there)
    wait_for_programs(arrivals_ptr, 1, num_programs)

    for iteration in range(iterations):
        for part in range(program, num_parts, num_programs):
            part_ptr = parts_ptr + part * num_dims * WIDTH
            _image_of_rows(
                rows_ptr, vectors_ptr, part_ptr, part * ROWS, num_rows, num_dims, WIDTH, ROWS, DIMS
            )
        wait_for_programs(arrivals_ptr, 3 * iteration + 2, num_programs)
        for block in range(program, num_blocks, num_programs):
            end = tl.minimum((block + 1) * dims_of_block, num_dims)
            gram = _sum_of_parts(
                parts_ptr, image_ptr, block * dims_of_block, end, num_dims, num_parts, WIDTH, OWN
            )
            tl.store(grams_ptr + block * (WIDTH * WIDTH) + square, gram)
        wait_for_programs(arrivals_ptr, 3 * iteration + 3, num_programs)
        gram = tl.zeros((WIDTH, WIDTH), tl.float64)
        for block in tl.range(0, num_blocks, loop_unroll_factor=16):
            gram += tl.load(grams_ptr + block * (WIDTH * WIDTH) + square, cache_modifier=".cg")
        if iteration + 1 == iterations:
            eigenvectors, values = _eigenvectors(gram, column, WIDTH, SWEEPS)
            kept = values > MIN_SQUARE * tl.max(values, 0)
            scale = tl.where(kept, 1.0 / tl.sqrt(tl.maximum(values, 1e-300)), 0.0)
            transform = eigenvectors * scale[None, :]
        else:
            transform = _whitening(gram, column, WIDTH, MIN_SQUARE)
        for block in range(program, num_blocks, num_programs):
            end = tl.minimum((block + 1) * dims_of_block, num_dims)
            # The entry of the largest size of each column.
            extreme = tl.zeros((WIDTH,), tl.float32)
            for first in range(block * dims_of_block, end, OWN):
                entry = first + own
                there = (entry < end)[:, None] & (column >= 0)[None, :]
                place = entry[:, None] * WIDTH + column[None, :]
                image = tl.load(image_ptr + place, there, other=0.0, cache_modifier=".cg").to(tl.float64)
                vectors = tl.dot(image, transform, out_dtype=tl.float64).to(tl.float32)
                tl.store(vectors_ptr + place, vectors, there)
                high, low = tl.max(vectors, 0), tl.min(vectors, 0)
                found = tl.where(high >= -low, high, low)
                extreme = tl.where(tl.abs(found) > tl.abs(extreme), found, extreme)
            tl.store(extremes_ptr + block * WIDTH + column, extreme)
        wait_for_programs(arrivals_ptr, 3 * iteration + 4, num_programs)

    extreme = tl.zeros((WIDTH,), tl.float32)
    for block in range(num_blocks):
        found = tl.load(extremes_ptr + block * WIDTH + column, cache_modifier=".cg")
        extreme = tl.where(tl.abs(found) > tl.abs(extreme), found, extreme)
    sign = tl.where(extreme < 0, -1.0, 1.0)
    for block in range(program, num_blocks, num_programs):
        end = tl.minimum((block + 1) * dims_of_block, num_dims)
        for first in range(block * dims_of_block, end, OWN):
            entry = first + own
            there = (entry < end)[:, None] & (column < num_directions)[None, :]
            place = vectors_ptr + entry[:, None] * WIDTH + column[None, :]
            vectors = tl.load(place, there, other=0.0, cache_modifier=".cg") * sign[None, :]
            tl.store(out_ptr + entry[:, None] * num_directions + column[None, :], vectors, there)


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


def _shared_constants(width: int, vector: int) -> dict[str, int | float]:
    fixed = {"ROWS": ROWS, "DIMS": DIMS, "OWN": OWN, "SWEEPS": SWEEPS, "MIN_SQUARE": MIN_SQUARE}
    return {"VECTOR": vector, "WIDTH": padded(width), **fixed}


def _stages(vector: int) -> int:
    """While a tile is multiplied the next two are loaded, where that is by 16 bytes."""
    return 3 if vector > 1 else 1


def _launch_principal_directions(rows: Tensor, num_directions: int) -> Tensor:
    if not rows.numel() or len(rows) > MAX_PROBLEMS or rows.shape[1] > MAX_ROWS or rows.shape[2] > MAX_DIMS:
        return _launch_iterations(rows, num_directions)
    (num_problems, num_rows, num_dims), width = rows.shape, num_directions + SPARE_COLUMNS
    vector = 4 if num_dims % 4 == 0 else 1
    # Functions of the shape of a problem alone: the order of the sums must not depend on the batch.
    num_parts = -(-num_rows // ROWS)
    dims_of_block = OWN * -(-num_dims // (OWN * MAX_BLOCKS))
    num_blocks = -(-num_dims // dims_of_block)
    most = max(num_parts, num_blocks)
    num_programs = max(1, min(most, resident_programs(rows.device, NUM_WARPS) // num_problems))
    out = torch.empty(num_problems, num_dims, num_directions, dtype=torch.float32, device=rows.device)
    wide = padded(width)
    make_arrivals = torch.zeros if num_programs > 1 else torch.empty
    _directions[(num_problems * num_programs,)](
        aligned(rows),
        out.new_empty(num_problems, num_dims, wide),
        out.new_empty(num_problems, num_parts, num_dims, wide),
        out.new_empty(num_problems, num_dims, wide),
        out.new_empty(num_problems, num_blocks, wide),
        out.new_empty(num_problems, num_blocks, wide, wide, dtype=torch.float64),
        out,
        make_arrivals(num_problems, dtype=torch.int32, device=rows.device),
        num_rows,
        num_dims,
        width,
        num_directions,
        num_parts,
        dims_of_block,
        num_blocks,
        num_programs,
        ITERATIONS,
        *(signed(key) for key in keys(0)),
        **_shared_constants(width, vector),
        **options(NUM_WARPS, _stages(vector)),
        launch_cooperative_grid=num_programs > 1,
    )
    return out


@in_full_precision
def _launch_iterations(rows: Tensor, num_directions: int) -> Tensor:
    """An iteration is two products and a launch."""
    vectors = start(rows, num_directions)
    for iteration in range(1, ITERATIONS + 1):
        image = torch.bmm(rows.mT, torch.bmm(rows, vectors))
        vectors = _launch_orthonormalize(image, iteration == ITERATIONS)
    return with_largest_positive(vectors[..., :num_directions])


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = {"image_ptr": "*fp32", "out_ptr": "*fp32", "num_dims": "i32", "width": "i32"}
    found = [
        Variant(_orthonormalize, types, _constants(width, rotate), num_warps=4)
        for width in (16, MAX_COLUMNS)
        for rotate in (False, True)
    ]
    pointers = ("rows_ptr", "vectors_ptr", "parts_ptr", "image_ptr", "extremes_ptr", "out_ptr")
    types = dict.fromkeys(pointers, "*fp32") | {"grams_ptr": "*fp64", "arrivals_ptr": "*i32"}
    sizes = ("num_rows", "num_dims", "width", "num_directions", "num_parts", "dims_of_block", "num_blocks")
    types |= dict.fromkeys((*sizes, "num_programs", "iterations", "key1", "key2"), "i32")
    return found + [
        Variant(_directions, types, _shared_constants(width, vector), NUM_WARPS, _stages(vector))
        for width in (16, MAX_COLUMNS)
        for vector in (4, 1)
    ]


@custom_op(add_op_namespace_prefix("principal_directions"), mutates_args=())
def principal_directions(rows: Tensor, num_directions: int) -> Tensor:
    """The leading principal directions of centered rows, by orthogonal iteration from a fixed start.

        V <- orthonormal basis of X^T (X V), 10 times, with 8 columns to spare; the last basis is that of the
        principal components of X V, in the order of their variance

    The D x D matrix is never formed. The largest entry of each direction is positive. Directions whose variance is
    under 3e-7 of the largest cannot be resolved in float32 and are zeros, as are those beyond D. On CUDA up to 24
    directions are found without a host read, in one launch for up to eight problems of 4 096 rows and 8 192 dimensions;
    for more directions the reference is used.

    Args:
        rows: (B, n, D) float32, finite, each problem of mean zero.
        num_directions: d, at least 1.

    Returns:
        (B, D, d) float32, orthonormal columns.
    """
    if runs_kernels(rows) and num_directions + SPARE_COLUMNS <= MAX_COLUMNS:
        return _launch_principal_directions(rows, num_directions)
    return reference_principal_directions(rows, num_directions)


@principal_directions.register_fake
def _(rows: Tensor, num_directions: int) -> Tensor:
    return rows.new_empty(rows.shape[0], rows.shape[2], num_directions)
