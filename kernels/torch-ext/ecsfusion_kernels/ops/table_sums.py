"""Entropies of joint tables and of their marginals: one program a table."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, padded, runs_kernels, skips_dispatch, tl
from ..reference.table_sums import NUMBERS
from ..reference.table_sums import table_sums as reference_table_sums
from .cluster_tables import _x_log_x

__all__ = ["table_sums"]

MAX_SIDE = 32
"""Clusters of the largest tile, which stays in registers; larger tables are those of the reference."""


@jit(do_not_specialize=["num1", "num2", "num_classes"])
def _table_sums(
    tables_ptr,
    first_ptr,
    second_ptr,
    numbers_ptr,
    num1: tl.int32,
    num2: tl.int32,
    num_classes: tl.int32,
    SIDE: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    """Sums of p log p and occupied cells of a table and its marginals, class by class; P(x1, y) and P(x2, y)."""
    table = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, SIDE), tl.arange(0, SIDE)
    tables_ptr += table * num1 * num2 * num_classes
    first_ptr += table * num1 * num_classes
    second_ptr += table * num2 * num_classes
    numbers_ptr += table * NUMBERS
    inside = (row < num1)[:, None] & (column < num2)[None, :]
    cell = (row[:, None] * num2 + column[None, :]) * num_classes

    pairs = tl.zeros((SIDE, SIDE), tl.float64)
    for label in range(num_classes):
        pairs += tl.load(tables_ptr + cell + label, inside, other=0.0)
    total = tl.sum(tl.sum(pairs, 1), 0)
    scale = tl.where(total > 0, total, 1.0)
    pairs = pairs / scale

    # By row: tiles of sums would take the registers.
    cells, cells_occupied = tl.zeros((SIDE,), tl.float64), tl.zeros((SIDE,), tl.float64)
    rows, rows_occupied, mass1 = (
        tl.zeros((SIDE,), tl.float64),
        tl.zeros((SIDE,), tl.float64),
        tl.zeros((SIDE,), tl.float64),
    )
    columns, columns_occupied, mass2 = (
        tl.zeros((SIDE,), tl.float64),
        tl.zeros((SIDE,), tl.float64),
        tl.zeros((SIDE,), tl.float64),
    )
    classes, classes_occupied = tl.zeros((1,), tl.float64), tl.zeros((1,), tl.float64)
    for label in range(num_classes):
        p = tl.load(tables_ptr + cell + label, inside, other=0.0) / scale
        by_row, by_column = tl.sum(p, 1), tl.sum(p, 0)
        tl.store(first_ptr + row * num_classes + label, by_row, row < num1)
        tl.store(second_ptr + column * num_classes + label, by_column, column < num2)
        cells += tl.sum(_x_log_x(p), 1)
        cells_occupied += tl.sum(tl.where(p > 0, 1.0, 0.0), 1)
        rows += _x_log_x(by_row)
        rows_occupied += tl.where(by_row > 0, 1.0, 0.0)
        columns += _x_log_x(by_column)
        columns_occupied += tl.where(by_column > 0, 1.0, 0.0)
        mass1 += by_row
        mass2 += by_column
        mass = tl.zeros((1,), tl.float64) + tl.sum(by_row, 0)
        classes += _x_log_x(mass)
        classes_occupied += tl.where(mass > 0, 1.0, 0.0)
    tl.store(numbers_ptr, tl.sum(classes, 0))
    tl.store(numbers_ptr + 1, tl.sum(_x_log_x(mass1), 0))
    tl.store(numbers_ptr + 2, tl.sum(_x_log_x(mass2), 0))
    tl.store(numbers_ptr + 3, tl.sum(rows, 0))
    tl.store(numbers_ptr + 4, tl.sum(columns, 0))
    tl.store(numbers_ptr + 5, tl.sum(tl.sum(_x_log_x(pairs), 1), 0))
    tl.store(numbers_ptr + 6, tl.sum(cells, 0))
    tl.store(numbers_ptr + 7, tl.sum(classes_occupied, 0))
    tl.store(numbers_ptr + 8, tl.sum(tl.where(mass1 > 0, 1.0, 0.0), 0))
    tl.store(numbers_ptr + 9, tl.sum(tl.where(mass2 > 0, 1.0, 0.0), 0))
    tl.store(numbers_ptr + 10, tl.sum(rows_occupied, 0))
    tl.store(numbers_ptr + 11, tl.sum(columns_occupied, 0))
    tl.store(numbers_ptr + 12, tl.sum(tl.sum(tl.where(pairs > 0, 1.0, 0.0), 1), 0))
    tl.store(numbers_ptr + 13, tl.sum(cells_occupied, 0))
    tl.store(numbers_ptr + 14, total)


def configuration(side: int) -> tuple[dict[str, int], int]:
    """The tile for tables of so many clusters, and its warps."""
    side = padded(side, 16)
    return {"SIDE": side, "NUMBERS": NUMBERS}, 4


def _launch_table_sums(tables: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    num1, num2, num_classes = tables.shape[-3:]
    if max(num1, num2) > MAX_SIDE or not tables.numel():
        return reference_table_sums(tables)
    first, second, numbers = _results(tables)
    constants, num_warps = configuration(max(num1, num2))
    _table_sums[(numbers.numel() // NUMBERS,)](
        aligned(tables), first, second, numbers, num1, num2, num_classes, **constants, **options(num_warps)
    )
    return first, second, numbers


def _results(tables: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    *batch, num1, num2, num_classes = tables.shape
    return (
        tables.new_empty(*batch, num1, num_classes),
        tables.new_empty(*batch, num2, num_classes),
        tables.new_empty(*batch, NUMBERS),
    )


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = dict.fromkeys(("tables_ptr", "first_ptr", "second_ptr", "numbers_ptr"), "*fp64")
    types |= dict.fromkeys(("num1", "num2", "num_classes"), "i32")
    return [Variant(_table_sums, types, *configuration(side)) for side in (16, MAX_SIDE)]


@custom_op(add_op_namespace_prefix("table_sums"), mutates_args=())
def _table_sums_op(tables: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (_launch_table_sums if runs_kernels(tables) else reference_table_sums)(tables)


@_table_sums_op.register_fake
def _(tables: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _results(tables)


def table_sums(tables: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the entropies of joint tables and of their marginals follow from; each table is divided by its sum.

    On a GPU a table of up to 32 clusters a side is one program. The result has no gradient.

    Args:
        tables: (..., K1, K2, C) float64 counts or probabilities, not negative.

    Returns:
        P(x1, y), (..., K1, C); P(x2, y), (..., K2, C); and 15 numbers of each table, (..., 15): the sums of p log p, in
        nats, of y, x1, x2, (x1, y), (x2, y), (x1, x2) and (x1, x2, y); their occupied cells in the same order; and the
        sum by which the table was divided. All float64.

    Raises:
        TypeError: the tables are not float64.
        ValueError: they have fewer than three dimensions.
    """
    if tables.dtype != torch.float64:
        raise TypeError(f"tables must be float64, got {tables.dtype}; convert with .double()")
    if tables.ndim < 3:
        raise ValueError(f"tables must be (..., K1, K2, C), got shape {tuple(tables.shape)}")
    function = reference_table_sums if skips_dispatch(tables) else _table_sums_op
    return function(tables)
