"""Posteriors of heads, of rows in another order."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.gather_posteriors import gather_posteriors as reference_gather_posteriors

__all__ = ["gather_posteriors"]

CONSTANTS = {"LARGEST": sys.float_info.max, "ROWS": 32, "CLASSES": 16}
NUM_WARPS = 4


@jit
def add_exponentials(largest, total, values, within, LARGEST: tl.constexpr):
    """The largest values (ROWS,) and the sums of exp(value - largest), with those of one more tile (ROWS, CLASSES)."""
    before = largest
    values = tl.where(within, values, -LARGEST)
    largest = tl.maximum(before, tl.max(values, 1))
    terms = tl.where(within, tl.exp(values - largest[:, None]), 0.0)
    return largest, total * tl.exp(before - largest) + tl.sum(terms, 1)


@jit
def _finite(logits_ptr, place, within, LARGEST: tl.constexpr):
    """Logits in float64: NaN is 0, and what is infinite the number next to it."""
    logits = tl.load(logits_ptr + place, within, other=0.0).to(tl.float64)
    logits = tl.where(logits != logits, 0.0, logits)
    return tl.minimum(tl.maximum(logits, -LARGEST), LARGEST)


@jit(do_not_specialize=["num_rows", "num_given", "num_classes", "num_blocks"])
def _gather_posteriors(
    logits_ptr,
    order_ptr,
    out_ptr,
    num_rows: tl.int32,
    num_given: tl.int32,
    num_classes: tl.int32,
    num_blocks: tl.int32,
    LARGEST: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """exp(logit - largest) / sum of a block of rows of one head; once for the sum, and once more for the values."""
    head = (tl.program_id(0) // num_blocks).to(tl.int64)
    row = (tl.program_id(0) % num_blocks) * ROWS + tl.arange(0, ROWS)
    inside = row < num_rows
    given = head * num_given + tl.load(order_ptr + row, inside, other=0)
    logits_ptr += given[:, None] * num_classes
    out_ptr += (head * num_rows + row)[:, None] * num_classes
    largest, total = tl.full((ROWS,), -LARGEST, tl.float64), tl.zeros((ROWS,), tl.float64)
    for start in range(0, num_classes, CLASSES):
        place = (start + tl.arange(0, CLASSES))[None, :]
        within = inside[:, None] & (place < num_classes)
        logits = _finite(logits_ptr, place, within, LARGEST)
        largest, total = add_exponentials(largest, total, logits, within, LARGEST)
    for start in range(0, num_classes, CLASSES):
        place = (start + tl.arange(0, CLASSES))[None, :]
        within = inside[:, None] & (place < num_classes)
        logits = _finite(logits_ptr, place, within, LARGEST)
        tl.store(out_ptr + place, tl.exp(logits - largest[:, None]) / total[:, None], within)


def _launch_gather_posteriors(logits: Tensor, order: Tensor) -> Tensor:
    num_heads, num_given, num_classes = logits.shape
    num_rows = len(order)
    out = logits.new_empty(num_heads, num_rows, num_classes, dtype=torch.float64)
    if out.numel():
        given = logits if logits.dtype == torch.float64 else logits.float()
        num_blocks = -(-num_rows // CONSTANTS["ROWS"])
        sizes = (num_rows, num_given, num_classes, num_blocks)
        _gather_posteriors[(num_heads * num_blocks,)](
            aligned(given), aligned(order), out, *sizes, **CONSTANTS, **options(NUM_WARPS)
        )
    return out


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = {"order_ptr": "*i64", "out_ptr": "*fp64"}
    types |= dict.fromkeys(("num_rows", "num_given", "num_classes", "num_blocks"), "i32")
    return [
        Variant(_gather_posteriors, {"logits_ptr": logits, **types}, CONSTANTS, NUM_WARPS)
        for logits in ("*fp32", "*fp64")
    ]


@custom_op(add_op_namespace_prefix("gather_posteriors"), mutates_args=())
def _gather_posteriors_op(logits: Tensor, order: Tensor) -> Tensor:
    function = _launch_gather_posteriors if runs_kernels(logits) else reference_gather_posteriors
    return function(logits, order)


@_gather_posteriors_op.register_fake
def _(logits: Tensor, order: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], order.shape[0], logits.shape[2], dtype=torch.float64)


def gather_posteriors(logits: Tensor, order: Tensor) -> Tensor:
    """The posteriors of heads, softmax of their logits over the classes, of rows in another order.

    A logit that is NaN counts as 0, and one that is infinite as the float64 number next to it, as `torch.nan_to_num`
    has it. The result has no gradient.

    Args:
        logits: (M, N, C) float16, bfloat16, float32 or float64, of M heads.
        order: (R,) int64, the place below N of each row of the result.

    Returns:
        (M, R, C) float64.

    Raises:
        TypeError: the logits are no floating-point numbers.
    """
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating-point numbers, got {logits.dtype}; convert with .float()")
    function = reference_gather_posteriors if skips_dispatch(logits, order) else _gather_posteriors_op
    return function(logits, order)
