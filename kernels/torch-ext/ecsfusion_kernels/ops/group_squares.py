"""Squared sums of groups of rows, one program a row of numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.group_squares import group_squares as reference_group_squares

__all__ = ["group_squares"]

BLOCK = 1024
NUM_WARPS = 8


@jit(do_not_specialize=["num_rows"])
def _group_squares(rows_ptr, group_ptr, ends_ptr, out_ptr, num_rows: tl.int32, BLOCK: tl.constexpr):
    """Sum over the groups of (sum of x - mean over the group)^2; a group is a run of rows.

    Sums up to the end of each group are stored, and their differences squared: in one order, so that equal inputs give
    equal bits.
    """
    problem = tl.program_id(0).to(tl.int64)
    rows_ptr += problem * num_rows
    ends_ptr += problem * num_rows
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, num_rows, BLOCK):
        place = start + tl.arange(0, BLOCK)
        total += tl.load(rows_ptr + place, place < num_rows, other=0.0)
    mean = tl.sum(total, 0) / num_rows
    before = tl.full((), 0.0, tl.float64)
    for start in range(0, num_rows, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < num_rows
        deviation = tl.where(inside, tl.load(rows_ptr + place, inside, other=0.0) - mean, 0.0)
        group = tl.load(group_ptr + place, inside, other=0)
        following = tl.load(group_ptr + place + 1, place + 1 < num_rows, other=-1)
        tl.store(ends_ptr + group, before + tl.cumsum(deviation, 0), inside & (group != following))
        before += tl.sum(deviation, 0)
    tl.debug_barrier()
    num_groups = tl.load(group_ptr + num_rows - 1).to(tl.int32) + 1
    squares = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, num_groups, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < num_groups
        end = tl.load(ends_ptr + place, inside, other=0.0)
        begin = tl.load(ends_ptr + place - 1, inside & (place > 0), other=0.0)
        squares += (end - begin) * (end - begin)
    tl.store(out_ptr + problem, tl.sum(squares, 0))


def _launch_group_squares(rows: Tensor, group: Tensor) -> Tensor:
    num_problems, num_rows = rows.shape
    if not rows.numel():
        return rows.new_zeros(num_problems)
    out = rows.new_empty(num_problems)
    given = aligned(rows), aligned(group), rows.new_empty(num_problems, num_rows), out
    _group_squares[(num_problems,)](*given, num_rows, BLOCK=BLOCK, **options(NUM_WARPS))
    return out


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = dict.fromkeys(("rows_ptr", "ends_ptr", "out_ptr"), "*fp64")
    types |= {"group_ptr": "*i64", "num_rows": "i32"}
    return [Variant(_group_squares, types, {"BLOCK": BLOCK}, NUM_WARPS)]


@custom_op(add_op_namespace_prefix("group_squares"), mutates_args=())
def _group_squares_op(rows: Tensor, group: Tensor) -> Tensor:
    function = _launch_group_squares if runs_kernels(rows) else reference_group_squares
    return function(rows, group)


@_group_squares_op.register_fake
def _(rows: Tensor, group: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0])


def group_squares(rows: Tensor, group: Tensor) -> Tensor:
    """Sums over groups of the squared sum of the deviations of the rows of a group from the mean of all rows.

    Args:
        rows: (B, N) float64.
        group: (N,) int64, the group of each row, ascending from 0 without a gap.

    Returns:
        (B,) float64.

    Raises:
        TypeError: for rows of another dtype.
    """
    if rows.dtype != torch.float64:
        raise TypeError(f"rows must be float64, got {rows.dtype}; convert with .double()")
    function = reference_group_squares if skips_dispatch(rows, group) else _group_squares_op
    return function(rows, group)
