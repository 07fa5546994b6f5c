"""Projection of embeddings on a few directions: norm, cast, product and offset in one read of the rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import INTERPRETED, Variant, jit, options, padded, runs_kernels, tl, with_unaligned
from ..reference.project import project as reference_project

__all__ = ["project"]

TERMS = {torch.bfloat16: 3, torch.float16: 2, torch.float32: 1}
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@jit
def power_of_two(exponent):
    """2^(exponent - 127) of int32 numbers from 1 to 254, exactly."""
    return (exponent << 23).to(tl.float32, bitcast=True)


@jit
def exponent_of(x):
    """The biased exponent of float32 numbers that are not negative: 0 for the smallest, 255 for infinity and NaN."""
    return x.to(tl.int32, bitcast=True) >> 23


@jit(do_not_specialize=["basis_ptr", "num_dims", "num_columns", "row_stride", "column_stride"])
def _split(
    basis_ptr,
    packed_ptr,
    unscale_ptr,
    num_dims: tl.int32,
    num_columns: tl.int32,
    row_stride: tl.int64,
    column_stride: tl.int64,
    TERMS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Packed = [first terms | second terms | ... | 0]: b * 2^e = b1 + b2 + ..., each b_i exact in the rows' dtype.

    Three bfloat16 terms hold the 24 bits of a float32 number, two float16 terms 22. 2^e brings the largest entry of a
    column between 2^13 and 2^14: nothing overflows float16, and the last term is far above its smallest number.
    One program a packed column; program axis 1 counts blocks of WIDTH // TERMS columns of the basis.
    """
    slot, block = tl.program_id(0), tl.program_id(1).to(tl.int64)
    term, column_in_block = slot // (WIDTH // TERMS), slot % (WIDTH // TERMS)
    column = block * (WIDTH // TERMS) + column_in_block
    num_filled = tl.where((term < TERMS) & (column < num_columns), num_dims, 0)

    largest = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, num_dims, BLOCK):
        row = first + tl.arange(0, BLOCK)
        entry = tl.load(basis_ptr + row * row_stride + column * column_stride, row < num_filled, other=0.0)
        largest = tl.maximum(largest, tl.abs(entry.to(tl.float32)))
    exponent = tl.minimum(tl.maximum(127 + 13 + 127 - exponent_of(tl.max(largest, 0)), 1), 253)

    for first in range(0, num_dims, BLOCK):
        row = first + tl.arange(0, BLOCK)
        entry = tl.load(basis_ptr + row * row_stride + column * column_stride, row < num_filled, other=0.0)
        rest = entry.to(tl.float32) * power_of_two(exponent)
        term_value = tl.zeros((BLOCK,), tl.float32)
        for i in tl.static_range(TERMS):
            piece = rest.to(packed_ptr.dtype.element_ty).to(tl.float32)
            term_value = tl.where(term == i, piece, term_value)
            rest -= piece
        tl.store(packed_ptr + (block * num_dims + row) * WIDTH + slot, term_value, row < num_dims)
    tl.store(unscale_ptr + column, power_of_two(254 - exponent), (term == 0) & (column < num_columns))


@jit
def _largest(
    rows_ptr, row, inside, num_dims, row_stride, column_stride, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The largest |entry| of each row, (BLOCK_N,)."""
    largest = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(0, num_dims, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        mask = inside[:, None] & (column < num_dims)[None, :]
        x = tl.load(rows_ptr + row[:, None] * row_stride + column[None, :] * column_stride, mask, other=0.0)
        largest = tl.maximum(largest, tl.abs(x.to(tl.float32)))
    return tl.max(largest, 1)


@jit
def _products(
    rows_ptr,
    packed_ptr,
    row,
    inside,
    num_dims,
    row_stride,
    column_stride,
    factor,
    SCALED: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Products x @ packed, (BLOCK_N, WIDTH), and |x|^2, (BLOCK_N,), of the rows x, times their factor if SCALED.

    The product of a step is used in that step. A sum that only the next step needs is left running on Hopper (wgmma),
    and it then reads rows that the pipeline already overwrites: where rows are also read for their norms, Triton keeps
    a buffer too few (seen on an H200 with Triton 3.6: wrong rows in every second call; `compile_check` refuses it).
    The use is the compensation of the sum, which is more exact with it.
    """
    products = tl.zeros((BLOCK_N, WIDTH), tl.float32)
    lost = tl.zeros((BLOCK_N, WIDTH), tl.float32)
    # These are summed along the row once, at the end.
    squares = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    slot = tl.arange(0, WIDTH)
    for first in range(0, num_dims, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        mask = inside[:, None] & (column < num_dims)[None, :]
        x = tl.load(rows_ptr + row[:, None] * row_stride + column[None, :] * column_stride, mask, other=0.0)
        packed = tl.load(
            packed_ptr + column[:, None] * WIDTH + slot[None, :], (column < num_dims)[:, None], other=0.0
        )
        wide = x.to(tl.float32)
        if SCALED:
            wide *= factor[:, None]
            x = wide.to(x.dtype)
        squares += wide * wide
        # The interpreter cannot multiply bfloat16.
        if EMULATED:
            step = tl.dot(x.to(tl.float32), packed.to(tl.float32), input_precision="ieee")
        else:
            step = tl.dot(x, packed, input_precision="tf32x3")
        total = products + step
        lost += (products - total) + step
        products = total
    return products + lost, tl.sum(squares, 1)


@jit
def projected(
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
    VECTOR: tl.constexpr,
    TERMS: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """The program's BLOCK_N rows and WIDTH // TERMS columns of x / sqrt(|x|^2 + radius^2) @ basis - offset.

    Returns a tile (BLOCK_N, OUT), its rows and which of these there are, and the same of its columns.
    """
    # Loads of 16 bytes: rows without gaps between entries, each beginning at a multiple of 16 bytes.
    if VECTOR > 1:
        # The value does not change, but the compiler now knows that it is divisible.
        num_dims = num_dims // VECTOR * VECTOR
        row_stride = row_stride // VECTOR * VECTOR
        column_stride = 1
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < num_rows
    block = tl.program_id(1).to(tl.int64)
    packed_ptr += block * num_dims * WIDTH
    radius = tl.load(radius_ptr).to(tl.float32)

    ones = tl.full((BLOCK_N,), 1.0, tl.float32)
    products, squares = _products(
        rows_ptr,
        packed_ptr,
        row,
        inside,
        num_dims,
        row_stride,
        column_stride,
        ones,
        False,
        WIDTH,
        BLOCK_N,
        BLOCK_D,
        EMULATED,
    )
    length = squares + radius * radius
    # Squares that leave float32, or come near, are rare: then these rows are read again, times a power of two that
    # brings the largest entry (or the radius) near 1. NaN fails both comparisons.
    is_safe = (length >= 2.0**-60) & (length <= 2.0**100)
    if tl.max((inside & (is_safe == 0)).to(tl.int32), 0) > 0:
        largest = _largest(rows_ptr, row, inside, num_dims, row_stride, column_stride, BLOCK_N, BLOCK_D)
        exponent = exponent_of(tl.maximum(largest, tl.abs(radius)))
        factor = power_of_two(tl.minimum(tl.maximum(254 - exponent, 1), 254))
        products, squares = _products(
            rows_ptr,
            packed_ptr,
            row,
            inside,
            num_dims,
            row_stride,
            column_stride,
            factor,
            True,
            WIDTH,
            BLOCK_N,
            BLOCK_D,
            EMULATED,
        )
        length = squares + (radius * factor) * (radius * factor)
    # The sum of squares of a row is NaN or infinite if any of its entries is.
    length = tl.where(squares < float("inf"), tl.maximum(tl.sqrt(length), 1e-30), float("nan"))

    column_in_block = tl.arange(0, OUT)
    column = block * (WIDTH // TERMS) + column_in_block
    is_used = (column_in_block < WIDTH // TERMS) & (column < num_columns)
    out = tl.zeros((BLOCK_N, OUT), tl.float32)
    # The smallest terms first.
    for i in tl.static_range(TERMS):
        slot = tl.minimum(column_in_block + (TERMS - 1 - i) * (WIDTH // TERMS), WIDTH - 1)
        out += tl.gather(products, tl.broadcast_to(slot[None, :], (BLOCK_N, OUT)), 1)
    unscale = tl.load(unscale_ptr + column, is_used, other=0.0)
    offset = tl.load(offset_ptr + column, is_used, other=0.0)
    return out / length[:, None] * unscale[None, :] - offset[None, :], row, inside, column, is_used


@jit(
    do_not_specialize=[
        "offset_ptr",
        "radius_ptr",
        "num_rows",
        "num_dims",
        "num_columns",
        "row_stride",
        "column_stride",
    ]
)
def _project(
    rows_ptr,
    packed_ptr,
    unscale_ptr,
    offset_ptr,
    radius_ptr,
    out_ptr,
    num_rows: tl.int64,
    num_dims: tl.int32,
    num_columns: tl.int32,
    row_stride: tl.int64,
    column_stride: tl.int64,
    VECTOR: tl.constexpr,
    TERMS: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Stores out = x / sqrt(|x|^2 + radius^2) @ basis - offset, for BLOCK_N rows and WIDTH // TERMS columns."""
    out, row, inside, column, is_used = projected(
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
    tl.store(out_ptr + row[:, None] * num_columns + column[None, :], out, inside[:, None] & is_used[None, :])


def configuration(dtype: torch.dtype, num_columns: int, vector: bool) -> tuple[dict[str, int], int, int]:
    """The constants of `_project`, its warps and its pipeline stages.

    All terms of a column stand side by side in one product, so a tile of rows is read from shared memory once for the
    tensor cores and once for the norms. A row of a tile is 128 bytes, a whole cache line. Of the tiles that were
    tried on an H200 64 rows and 4 warps are the fastest for 16 bits (benchmarks/results/kernels.jsonl). With 2 warps
    Hopper uses Ampere's products, which takes about twice as long.
    """
    terms = TERMS[dtype]
    narrow = 16 * (1 if terms == 1 else 2)
    width = narrow if num_columns * terms <= narrow else 128
    constants = {
        "VECTOR": 16 // dtype.itemsize if vector else 1,
        "TERMS": terms,
        "WIDTH": width,
        "OUT": padded(width // terms),
        "BLOCK_N": 64 if vector or width < 128 else 32,
        "BLOCK_D": 128 // dtype.itemsize,
        "EMULATED": INTERPRETED,
    }
    return constants, 4 if vector and width < 128 else 8, 4 if width < 128 else 3


class Prepared(NamedTuple):
    """What a kernel that projects rows is launched with.

    Attributes:
        tensors: its first arguments: rows, packed basis and the scale of its columns, offset and radius.
        sizes: those after `num_rows`: `num_dims`, `num_columns`, `row_stride`, `column_stride`.
        grid: programs by blocks of rows and by blocks of columns.
        constants: of `projected`.
        options: of the compiler.
    """

    tensors: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    grid: tuple[int, int]
    constants: dict[str, int]
    options: dict[str, Any]


def prepare(embeddings: Tensor, basis: Tensor, offset: Tensor, radius: Tensor) -> Prepared:
    """Split the basis into terms of the dtype of the embeddings, (N, D) with N, D and d at least 1, in one launch."""
    (num_rows, num_dims), num_columns = embeddings.shape, basis.shape[1]
    device = embeddings.device
    (row_stride, column_stride), alignment = embeddings.stride(), 16 // embeddings.dtype.itemsize
    aligned = embeddings.data_ptr() % 16 == 0 and row_stride % alignment == 0 and num_dims % alignment == 0
    constants, num_warps, num_stages = configuration(
        embeddings.dtype, num_columns, vector=column_stride == 1 and aligned
    )
    terms, width = constants["TERMS"], constants["WIDTH"]
    blocks = -(-num_columns // (width // terms))
    packed = torch.empty(blocks, num_dims, width, dtype=embeddings.dtype, device=device)
    unscale = torch.empty(num_columns, dtype=torch.float32, device=device)
    _split[(width, blocks)](
        basis,
        packed,
        unscale,
        num_dims,
        num_columns,
        *basis.stride(),
        TERMS=terms,
        WIDTH=width,
        BLOCK=1024,
        **options(4),
    )
    return Prepared(
        (
            embeddings,
            packed,
            unscale,
            offset.to(torch.float32).contiguous(),
            radius.to(device, torch.float64),
        ),
        (num_dims, num_columns, row_stride, column_stride),
        (-(-num_rows // constants["BLOCK_N"]), blocks),
        constants,
        options(num_warps, num_stages),
    )


def _launch_project(embeddings: Tensor, basis: Tensor, offset: Tensor, radius: Tensor) -> Tensor:
    out = torch.empty(len(embeddings), basis.shape[1], dtype=torch.float32, device=embeddings.device)
    if out.numel() == 0:
        return out
    tensors, sizes, grid, constants, compiler = prepare(embeddings, basis, offset, radius)
    _project[grid](*tensors, out, len(out), *sizes, **constants, **compiler)
    return out


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    configurations: dict[str, list[Variant]] = {}
    for dtype, name in TYPES.items():
        for num_columns in (8, 128):
            for vector in (True, False):
                constants, num_warps, num_stages = configuration(dtype, num_columns, vector)
                constants["EMULATED"] = False
                pointers = dict.fromkeys(("unscale_ptr", "offset_ptr", "out_ptr"), "*fp32")
                pointers["radius_ptr"] = "*fp64"
                strides = {"row_stride": "i64", "column_stride": "i64"}
                types = {"rows_ptr": f"*{name}", "packed_ptr": f"*{name}", **pointers, "num_rows": "i64"}
                types |= {"num_dims": "i32", "num_columns": "i32", **strides}
                variant = Variant(_project, types, constants, num_warps, num_stages)
                # Rows that are loaded by 16 bytes begin at a multiple of them.
                unaligned = () if vector else ("rows_ptr",)
                configurations[f"project {name} {num_columns} {vector}"] = with_unaligned(variant, unaligned)
                types = {"basis_ptr": "*fp32", "packed_ptr": f"*{name}", "unscale_ptr": "*fp32"}
                types |= {"num_dims": "i32", "num_columns": "i32", **strides}
                split_constants = {key: constants[key] for key in ("TERMS", "WIDTH")}
                configurations[f"split {name} {num_columns}"] = [
                    Variant(_split, types, {**split_constants, "BLOCK": 1024}, 4)
                ]
    return [variant for found in configurations.values() for variant in found]


@custom_op(add_op_namespace_prefix("project"), mutates_args=())
def _project_op(embeddings: Tensor, basis: Tensor, offset: Tensor, radius: Tensor) -> Tensor:
    if runs_kernels(embeddings) and embeddings.dtype in TERMS:
        return _launch_project(embeddings, basis, offset, radius)
    return reference_project(embeddings, basis, offset, radius)


@_project_op.register_fake
def _(embeddings: Tensor, basis: Tensor, offset: Tensor, radius: Tensor) -> Tensor:
    return embeddings.new_empty(embeddings.shape[0], basis.shape[1], dtype=torch.float32)


def project(embeddings: Tensor, basis: Tensor, offset: Tensor, radius: Tensor | float = 0.0) -> Tensor:
    """Scale each row into the unit ball, express it in `basis`: x / sqrt(|x|^2 + radius^2) @ basis - offset.

    A radius of 0 is L2 normalization, and a row of zeros then stays zero. Finite rows of any size are safe, the
    largest and the smallest numbers of their dtype included. A row with a NaN or an infinity becomes a row of NaN.

    Args:
        embeddings: (N, D) floating point, any strides. float64 is computed in float64 and without a kernel, all else
            in float32.
        basis: (D, d) float32, one direction per column.
        offset: (d,) float32, subtracted at the end: the projection of the mean.
        radius: a number, or a float64 tensor of no dimensions on the device of the embeddings (never read by the host);
            other dtypes are converted.

    Returns:
        (N, d) float32.

    Raises:
        TypeError: for embeddings that are no floating point tensor.
        ValueError: for arguments that do not fit together.
    """
    return _project_op(embeddings, basis, offset, check(embeddings, basis, offset, radius))


def check(embeddings: Tensor, basis: Tensor, offset: Tensor, radius: Tensor | float) -> Tensor:
    """Check the arguments of `project`; the radius as a tensor of no dimensions.

    Raises:
        TypeError: for embeddings that are no floating point tensor.
        ValueError: for arguments that do not fit together.
    """
    if not embeddings.is_floating_point():
        raise TypeError(f"embeddings must be floating point, got {embeddings.dtype}")
    if embeddings.ndim != 2 or basis.ndim != 2 or embeddings.shape[1] != basis.shape[0] or not len(basis):
        raise ValueError(
            "embeddings must be (N, D) and basis (D, d) with the same D, at least 1, "
            f"got {tuple(embeddings.shape)} and {tuple(basis.shape)}"
        )
    if offset.shape != basis.shape[1:]:
        raise ValueError(
            f"offset must be ({basis.shape[1]},), one per column of basis, got {tuple(offset.shape)}"
        )
    if not isinstance(radius, Tensor):
        radius = torch.full((), radius, dtype=torch.float64, device=embeddings.device)
    elif radius.numel() != 1:
        raise ValueError(f"radius must be one number, got a tensor of shape {tuple(radius.shape)}")
    return radius.reshape(())
