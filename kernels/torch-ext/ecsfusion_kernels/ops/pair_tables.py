"""Pair tables of joint tables, and what independence would make of them: one program a pair."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.pair_tables import pair_tables as reference_pair_tables

__all__ = ["pair_tables"]

TILES = ((32, 32, 4), (64, 64, 16))
"""The most rows and columns of a pair table of each compilation, which stays in registers, and its warps; larger ones
are those of the reference."""


@jit(do_not_specialize=["num1", "num2", "num_classes", "num_rows", "num_columns", "num_samples"])
def _pair_tables(
    table_ptr,
    pairs_ptr,
    expected_ptr,
    num1: tl.int32,
    num2: tl.int32,
    num_classes: tl.int32,
    num_rows: tl.int32,
    num_columns: tl.int32,
    num_samples: tl.int64,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The counts of (x1, y), of (x2, y) or of (x1, x2), and the product of their sums over the number of samples."""
    pair = tl.program_id(0)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    # Strides of the two variables of the pair, and of the third, in the table.
    of_x1, of_x2 = num2 * num_classes, num_classes
    height = tl.where(pair == 1, num2, num1)
    width = tl.where(pair == 2, num2, num_classes)
    depth = tl.where(pair == 0, num2, tl.where(pair == 1, num1, num_classes))
    row_stride = tl.where(pair == 1, of_x2, of_x1)
    column_stride = tl.where(pair == 2, of_x2, 1)
    depth_stride = tl.where(pair == 0, of_x2, tl.where(pair == 1, of_x1, 1))
    inside = (row < height)[:, None] & (column < width)[None, :]
    place = table_ptr + row[:, None] * row_stride + column[None, :] * column_stride
    counts = tl.zeros((ROWS, COLUMNS), tl.float64)
    for third in range(depth):
        counts += tl.load(place + third * depth_stride, inside, other=0.0)
    expected = tl.sum(counts, 1)[:, None] * (tl.sum(counts, 0) / num_samples.to(tl.float64))[None, :]
    target = (pair * num_rows + row)[:, None] * num_columns + column[None, :]
    stored = (row < num_rows)[:, None] & (column < num_columns)[None, :]
    tl.store(pairs_ptr + target, counts, stored)
    tl.store(expected_ptr + target, expected, stored)


def configuration(num_rows: int, num_columns: int) -> tuple[dict[str, int], int] | None:
    """The tile for pair tables of so many rows and columns, and its warps; None where none is as large."""
    for rows, columns, num_warps in TILES:
        if num_rows <= rows and num_columns <= columns:
            return {"ROWS": rows, "COLUMNS": columns}, num_warps
    return None


def _launch_pair_tables(table: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    pairs, expected = _results(table)
    tile = configuration(*pairs.shape[1:])
    if tile is None:
        return reference_pair_tables(table, num_samples)
    constants, num_warps = tile
    _pair_tables[(3,)](
        aligned(table),
        pairs,
        expected,
        *table.shape,
        *pairs.shape[1:],
        num_samples,
        **constants,
        **options(num_warps),
    )
    return pairs, expected


def _results(table: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns, classes = table.shape
    shape = (3, max(rows, columns), max(classes, columns))
    return table.new_empty(shape), table.new_empty(shape)


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = dict.fromkeys(("table_ptr", "pairs_ptr", "expected_ptr"), "*fp64")
    types |= dict.fromkeys(("num1", "num2", "num_classes", "num_rows", "num_columns"), "i32")
    types |= {"num_samples": "i64"}
    tiles = (configuration(rows, columns) for rows, columns, _ in TILES)
    return [Variant(_pair_tables, types, *tile) for tile in tiles if tile is not None]


@custom_op(add_op_namespace_prefix("pair_tables"), mutates_args=())
def _pair_tables_op(table: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    return (_launch_pair_tables if runs_kernels(table) else reference_pair_tables)(table, num_samples)


@_pair_tables_op.register_fake
def _(table: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    return _results(table)


def pair_tables(table: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """The counts of (x1, y), (x2, y) and (x1, x2) of a joint table, and their expectations under independence.

    Args:
        table: (K1, K2, C) float64 counts.
        num_samples: by which the product of the sums of rows and columns is divided.

    Returns:
        (3, max(K1, K2), max(C, K2)) float64 each, padded with empty rows and columns to one size.

    Raises:
        TypeError: the table is not float64.
        ValueError: it has not three dimensions.
    """
    if table.dtype != torch.float64:
        raise TypeError(f"table must be float64, got {table.dtype}; convert with .double()")
    if table.ndim != 3:
        raise ValueError(f"table must be (K1, K2, C), got shape {tuple(table.shape)}")
    function = reference_pair_tables if skips_dispatch(table) else _pair_tables_op
    return function(table, num_samples)
