"""Keys of rows by their values."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, signed, skips_dispatch, tl
from ..reference.hash_rows import MIXER, MULTIPLIER
from ..reference.hash_rows import hash_rows as reference_hash_rows
from ..reference.random import keys as keys_of_seed
from .random import uniform_at

__all__ = ["hash_rows"]

ROWS, COLUMNS = 64, 32
CONSTANTS = {"MULTIPLIER": MULTIPLIER, "MIXER": MIXER, "ROWS": ROWS, "COLUMNS": COLUMNS}


@jit(do_not_specialize=["num_rows", "num_columns", "key1", "key2", "mask"])
def _hash_rows(
    rows_ptr,
    columns_ptr,
    keys_ptr,
    out_ptr,
    num_rows: tl.int32,
    num_columns: tl.int32,
    key1: tl.int32,
    key2: tl.int32,
    mask: tl.int64,
    MULTIPLIER: tl.constexpr,
    MIXER: tl.constexpr,
    HAS_COLUMNS: tl.constexpr,
    HAS_KEYS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """key(row) = MULTIPLIER key(row) + sum over the columns of bits(value) factor(column), modulo 2^64; then mixed."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    found = tl.zeros((ROWS,), tl.int64)
    if HAS_KEYS:
        found += tl.load(keys_ptr + row, row < num_rows, other=0) * MULTIPLIER
    for start in range(0, num_columns, COLUMNS):
        place = start + tl.arange(0, COLUMNS)
        column = place.to(tl.int64)
        if HAS_COLUMNS:
            column = tl.load(columns_ptr + place, place < num_columns, other=0)
        factor = (uniform_at(column, key1, key2) * 2147483648.0).to(tl.int32).to(tl.int64) * 2 + 1
        inside = (row < num_rows)[:, None] & (place < num_columns)[None, :]
        values = tl.load(rows_ptr + row[:, None] * num_columns + place[None, :], inside, other=0.0)
        # -0 is 0, whose bits are 0.
        bits = tl.where(values == 0.0, 0, values.to(tl.int32, bitcast=True)).to(tl.int64)
        found += tl.sum(bits * factor[None, :], 1)
    if mask != 0:
        found = (found ^ (found >> 29)) * MIXER
        found = (found ^ (found >> 31)) & mask
    tl.store(out_ptr + row, found, row < num_rows)


def _launch_hash_rows(
    rows: Tensor, columns: Tensor | None, seed: int, keys: Tensor | None, bits: int
) -> Tensor:
    num_rows, num_columns = rows.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=rows.device)
    if num_rows:
        given = [out if tensor is None else aligned(tensor) for tensor in (columns, keys)]
        numbers = (num_rows, num_columns, *(signed(key) for key in keys_of_seed(seed)), (1 << bits) - 1)
        chosen = {"HAS_COLUMNS": columns is not None, "HAS_KEYS": keys is not None}
        _hash_rows[(-(-num_rows // ROWS),)](
            aligned(rows.float()), *given, out, *numbers, **CONSTANTS, **chosen, **options(4)
        )
    return out


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = {"rows_ptr": "*fp32"} | dict.fromkeys(("columns_ptr", "keys_ptr", "out_ptr"), "*i64")
    types |= {"mask": "i64", **dict.fromkeys(("num_rows", "num_columns", "key1", "key2"), "i32")}
    return [
        Variant(
            _hash_rows, types, {**CONSTANTS, "HAS_COLUMNS": has_columns, "HAS_KEYS": has_keys}, num_warps=4
        )
        for has_columns in (False, True)
        for has_keys in (False, True)
    ]


@custom_op(add_op_namespace_prefix("hash_rows"), mutates_args=())
def _hash_rows_op(rows: Tensor, columns: Tensor | None, seed: int, keys: Tensor | None, bits: int) -> Tensor:
    function = _launch_hash_rows if runs_kernels(rows) else reference_hash_rows
    return function(rows, columns, seed, keys, bits)


@_hash_rows_op.register_fake
def _(rows: Tensor, columns: Tensor | None, seed: int, keys: Tensor | None, bits: int) -> Tensor:
    return rows.new_empty(rows.shape[0], dtype=torch.int64)


def hash_rows(
    rows: Tensor, columns: Tensor | None, seed: int, keys: Tensor | None = None, bits: int = 0
) -> Tensor:
    """A hash of the values of each row, added to a multiple of earlier keys, modulo 2^64.

    Rows that are equal in float32 have equal keys, whatever the order of the rows and their dtype.

    Args:
        rows: (N, d) floating point.
        columns: (d,) int64, what each column is hashed as; None for its number.
        seed: of the factors of the columns.
        keys: (N,) int64, such as those by the rows of another modality; None for none.
        bits: how many bits, up to 63, the result is mixed to, so that each depends on all values; 0 for the plain sum,
            to which more rows can be added.

    Returns:
        (N,) int64.

    Raises:
        ValueError: the rows do not have as many columns.
    """
    if rows.ndim != 2 or (columns is not None and columns.shape != rows.shape[1:]):
        found = None if columns is None else tuple(columns.shape)
        raise ValueError(
            f"columns must be (d,) with the d of rows (N, d), got {found} for {tuple(rows.shape)}"
        )
    function = reference_hash_rows if skips_dispatch(rows) else _hash_rows_op
    return function(rows, columns, seed, keys, bits)
