"""Groups of rows with equal keys, in one program."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, signed, skips_dispatch, tl
from ..reference.groups_of_rows import DEALT, LARGEST_CLASS, MAX_COPIES, SIZE_BITS, TABLE_SEED
from ..reference.groups_of_rows import groups_of_rows as reference_groups_of_rows
from ..reference.random import keys as keys_of_seed
from .random import uniform_at

__all__ = ["groups_of_rows"]

BLOCK = 1024
NUM_WARPS = 8
CONSTANTS = {
    "ABOVE": LARGEST_CLASS << SIZE_BITS,
    "CLASS": 1 << SIZE_BITS,
    "DEALT": DEALT,
    "MAX_COPIES": MAX_COPIES,
}


@jit(do_not_specialize=["num_rows", "key1", "key2"])
def _groups_of_rows(
    keys_ptr,
    labels_ptr,
    starts_ptr,
    group_ptr,
    dealing_ptr,
    number_ptr,
    num_rows: tl.int32,
    key1: tl.int32,
    key2: tl.int32,
    ABOVE: tl.constexpr,
    CLASS: tl.constexpr,
    DEALT: tl.constexpr,
    MAX_COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Group = starts of runs of equal keys so far - 1; the key of dealing = CLASS label of its first row - its size."""
    number = tl.full((), 0, tl.int32)
    for start in range(0, num_rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        inside = row < num_rows
        key = tl.load(keys_ptr + row, inside, other=0)
        before = tl.load(keys_ptr + row - 1, inside & (row > 0), other=0)
        begins = (inside & ((key != before) | (row == 0))).to(tl.int32)
        group = number + tl.cumsum(begins, 0) - 1
        tl.store(group_ptr + row, group.to(tl.int64), inside)
        tl.store(starts_ptr + group, row, begins > 0)
        number += tl.sum(begins, 0)
    is_table = number.to(tl.int64) * MAX_COPIES < num_rows
    tl.debug_barrier()
    if is_table:
        number = num_rows
        for start in range(0, num_rows, BLOCK):
            row = start + tl.arange(0, BLOCK)
            tl.store(group_ptr + row, row.to(tl.int64), row < num_rows)
            tl.store(starts_ptr + row, row, row < num_rows)
        tl.debug_barrier()
    tl.store(number_ptr, number.to(tl.int64))
    for start in range(0, num_rows, BLOCK):
        group = start + tl.arange(0, BLOCK)
        inside = group < number
        begin = tl.load(starts_ptr + group, inside, other=0)
        end = tl.load(starts_ptr + group + 1, group + 1 < number, other=num_rows)
        label = tl.load(labels_ptr + begin, inside, other=0)
        drawn = (uniform_at(group.to(tl.int64), key1, key2) * DEALT).to(tl.int32)
        size = tl.where(is_table, drawn, end - begin)
        dealing = tl.where(inside, label * CLASS - size, ABOVE)
        tl.store(dealing_ptr + group, dealing, group < num_rows)


def _launch_groups_of_rows(keys: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    num_rows = len(keys)
    group, dealing = (keys.new_empty(num_rows) for _ in range(2))
    if not num_rows:
        return group, dealing, keys.new_zeros(())
    number = keys.new_empty(())
    starts = keys.new_empty(num_rows, dtype=torch.int32)
    numbers = (num_rows, *(signed(key) for key in keys_of_seed(TABLE_SEED)))
    _groups_of_rows[(1,)](
        aligned(keys),
        aligned(labels),
        starts,
        group,
        dealing,
        number,
        *numbers,
        **CONSTANTS,
        BLOCK=BLOCK,
        **options(NUM_WARPS),
    )
    return group, dealing, number


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    names = ("keys", "labels", "group", "dealing", "number")
    types = {f"{name}_ptr": "*i64" for name in names} | {"starts_ptr": "*i32"}
    types |= dict.fromkeys(("num_rows", "key1", "key2"), "i32")
    return [Variant(_groups_of_rows, types, {**CONSTANTS, "BLOCK": BLOCK}, NUM_WARPS)]


@custom_op(add_op_namespace_prefix("groups_of_rows"), mutates_args=())
def _groups_of_rows_op(keys: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    keys, labels = keys.contiguous(), labels.contiguous()
    function = _launch_groups_of_rows if runs_kernels(keys) else reference_groups_of_rows
    return function(keys, labels)


@_groups_of_rows_op.register_fake
def _(keys: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return keys.new_empty(keys.shape), keys.new_empty(keys.shape), keys.new_empty(())


def groups_of_rows(keys: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Groups of rows with equal keys, and an order in which they can be dealt by class and size.

    A table of categories, whose rows are equal by nature (more than 16 for each distinct one), has no groups: each row
    is one, with a random size, because equal rows dealt in turn would be as frequent everywhere.

    Args:
        keys: (N,) int64, ascending.
        labels: (N,) int64 from 0 to below 2^20, ascending among equal keys.

    Returns:
        The group (N,) of each row, numbered from 0; for each group 2^40 times its smallest label minus its size, (N,),
        and above all these where there are fewer groups than rows; the number () of groups. All int64.
    """
    function = reference_groups_of_rows if skips_dispatch(keys, labels) else _groups_of_rows_op
    return function(keys, labels)
