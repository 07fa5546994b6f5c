"""Device code for tables in factors, A(x1, y) R(x1, x2) B(x2, y): the matrix products of both solvers.

One program works on one table and reads back what it stores, so the state is in global memory (in fact in the caches),
with a barrier between a store and loads by other threads. All sides are padded with zeros to whole tiles: rows,
columns and classes without mass, which need no masks.
"""

from __future__ import annotations

from torch import Tensor

from .language import jit, padded, tl


@jit
def tile_at(table_ptr, row, column, row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pointers to the tile of a matrix that begins at (row, column); a matrix has fewer than 2^31 entries."""
    rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    return table_ptr + (rows[:, None] * row_stride + columns[None, :] * column_stride)


@jit
def dot(x, y, total):
    """The sum total + x @ y; of float32 as three products of TF32 numbers.

    Each product of two numbers is then off by about 2^-22 of itself, four times as much as in float32: measured on an
    H200. Nothing is negative, so no sum loses digits.
    """
    if total.dtype == tl.float64:
        return total + tl.dot(x, y, out_dtype=tl.float64)
    else:
        return tl.dot(x, y, total, input_precision="tf32x3")


@jit
def coupled(
    r_ptr,
    x_ptr,
    row,
    label,
    num_summed,
    row_stride,
    column_stride,
    x_stride,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """A tile of R X, (TILE, CLASSES); with R's strides exchanged, of R^T X. `size` columns are summed over."""
    dtype = x_ptr.dtype.element_ty
    total = tl.zeros((TILE, CLASSES), dtype)
    for column in range(0, num_summed, TILE):
        r = tl.load(tile_at(r_ptr, row, column, row_stride, column_stride, TILE, TILE)).to(dtype)
        total = dot(r, tl.load(tile_at(x_ptr, column, label, x_stride, 1, TILE, CLASSES)), total)
    return total


@jit
def factored(
    a_ptr, b_ptr, row, column, num_classes, factor_stride, TILE: tl.constexpr, CLASSES: tl.constexpr
):
    """A tile of W = A B^T, (TILE, TILE)."""
    total = tl.zeros((TILE, TILE), a_ptr.dtype.element_ty)
    for label in range(0, num_classes, CLASSES):
        a = tl.load(tile_at(a_ptr, row, label, factor_stride, 1, TILE, CLASSES))
        b = tl.load(tile_at(b_ptr, column, label, factor_stride, 1, TILE, CLASSES))
        total = dot(a, tl.trans(b), total)
    return total


def configuration(num1: int, num2: int, num_classes: int) -> tuple[dict[str, int], int]:
    """The constants of a solver's kernel for K1 x K2 x C, and its warps.

    64 x 64 is the largest tile of R whose operands (TF32 number and remainder) stay in the registers of 4 warps;
    more warps leave each thread fewer of them. 4 make the barriers cheap and let several tables share a
    multiprocessor. 16 is the smallest side of a matrix product; with more classes, 32 halve the number of blocks
    that wait for each other, and are better for large tiles.
    """
    tile = min(padded(max(num1, num2)), 64)
    return {"TILE": tile, "CLASSES": 16 if num_classes <= 16 and tile <= 32 else 32}, 4


def configurations() -> list[tuple[dict[str, int], int]]:
    """Every value that `configuration` can return."""
    return [
        configuration(*sizes)
        for sizes in ((16, 16, 16), (16, 16, 32), (32, 32, 16), (32, 32, 32), (64, 64, 32))
    ]


def padded_to(table: Tensor, rows: int, columns: int) -> Tensor:
    """Matrices (B, M, N) with zeros up to whole multiples of `rows` and `columns`, contiguous."""
    num_tables, height, width = table.shape
    shape = (num_tables, -(-height // rows) * rows, -(-width // columns) * columns)
    wide = table.new_zeros(shape)
    wide[:, :height, :width] = table
    return wide
