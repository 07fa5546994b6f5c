"""Posteriors of pools of readouts, whose weights are those of the other part of the rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.pool_posteriors import pool_posteriors as reference_pool_posteriors
from .gather_posteriors import CONSTANTS, NUM_WARPS, add_exponentials

__all__ = ["pool_posteriors"]


@jit
def _pooled(
    logits_ptr,
    weights_ptr,
    log_prior_ptr,
    number,
    step,
    classes,
    inside,
    num_classes,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Log p(y) + sum over readouts of weight times logit, (ROWS, CLASSES), and which of its entries there are."""
    place, is_class = classes[None, :], classes < num_classes
    within = inside[:, None] & is_class[None, :]
    log_prior = tl.load(log_prior_ptr + classes, is_class, other=0.0)
    total = tl.zeros((ROWS, CLASSES), tl.float64) + log_prior[None, :]
    for readout in range(number):
        weight = tl.load(weights_ptr + readout, inside, other=0.0)
        logits = tl.load(logits_ptr + readout * step + place, within, other=0.0)
        total += weight[:, None] * logits.to(tl.float64)
    return total, within


@jit(do_not_specialize=["num_pools", "number", "num_rows", "num_classes", "num_blocks"])
def _pool_posteriors(
    logits_ptr,
    weights_ptr,
    part_ptr,
    log_prior_ptr,
    out_ptr,
    num_pools: tl.int32,
    number: tl.int32,
    num_rows: tl.int32,
    num_classes: tl.int32,
    num_blocks: tl.int32,
    LARGEST: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """exp(pooled - largest) / sum of a block of rows of one pool; once for the sum, and once more for the values."""
    pool = (tl.program_id(0) // num_blocks).to(tl.int64)
    row = (tl.program_id(0) % num_blocks) * ROWS + tl.arange(0, ROWS)
    inside = row < num_rows
    other = 1 - tl.load(part_ptr + row, inside, other=0)
    weights_ptr += (other * num_pools + pool) * number
    step = num_rows.to(tl.int64) * num_classes
    logits_ptr += pool * number * step + row.to(tl.int64)[:, None] * num_classes
    out_ptr += (pool * num_rows + row)[:, None] * num_classes
    largest, total = tl.full((ROWS,), -LARGEST, tl.float64), tl.zeros((ROWS,), tl.float64)
    for start in range(0, num_classes, CLASSES):
        classes = start + tl.arange(0, CLASSES)
        pooled, within = _pooled(
            logits_ptr, weights_ptr, log_prior_ptr, number, step, classes, inside, num_classes, ROWS, CLASSES
        )
        largest, total = add_exponentials(largest, total, pooled, within, LARGEST)
    for start in range(0, num_classes, CLASSES):
        classes = start + tl.arange(0, CLASSES)
        pooled, within = _pooled(
            logits_ptr, weights_ptr, log_prior_ptr, number, step, classes, inside, num_classes, ROWS, CLASSES
        )
        posteriors = tl.exp(pooled - largest[:, None]) / total[:, None]
        tl.store(out_ptr + classes[None, :], posteriors, within)


def _launch_pool_posteriors(logits: Tensor, weights: Tensor, part: Tensor, log_prior: Tensor) -> Tensor:
    num_pools, number, num_rows, num_classes = logits.shape
    out = logits.new_empty(num_pools, num_rows, num_classes, dtype=torch.float64)
    if out.numel():
        given = [aligned(tensor) for tensor in (logits, weights, part, log_prior)]
        num_blocks = -(-num_rows // CONSTANTS["ROWS"])
        sizes = (num_pools, number, num_rows, num_classes, num_blocks)
        _pool_posteriors[(num_pools * num_blocks,)](*given, out, *sizes, **CONSTANTS, **options(NUM_WARPS))
    return out


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = {"logits_ptr": "*fp32", "part_ptr": "*i64"}
    types |= dict.fromkeys(("weights_ptr", "log_prior_ptr", "out_ptr"), "*fp64")
    types |= dict.fromkeys(("num_pools", "number", "num_rows", "num_classes", "num_blocks"), "i32")
    return [Variant(_pool_posteriors, types, CONSTANTS, NUM_WARPS)]


@custom_op(add_op_namespace_prefix("pool_posteriors"), mutates_args=())
def _pool_posteriors_op(logits: Tensor, weights: Tensor, part: Tensor, log_prior: Tensor) -> Tensor:
    function = _launch_pool_posteriors if runs_kernels(logits) else reference_pool_posteriors
    return function(logits, weights, part, log_prior)


@_pool_posteriors_op.register_fake
def _(logits: Tensor, weights: Tensor, part: Tensor, log_prior: Tensor) -> Tensor:
    pools, _, rows, classes = logits.shape
    return logits.new_empty(pools, rows, classes, dtype=torch.float64)


def pool_posteriors(logits: Tensor, weights: Tensor, part: Tensor, log_prior: Tensor) -> Tensor:
    """Posteriors of pools of readouts, q(y | x) ~ p(y) exp(sum over k of w_k z_k(y | x)), in float64.

    The rows are in two parts, and the weights of each part, such as `pool_weights` fits, are for the rows of the other
    one: a row's posterior does not know its label. The result has no gradient.

    Args:
        logits: (B, K, N, C) float32, of K readouts of each of B pools.
        weights: (2, B, K) float64, those that were fitted on part 0 and on part 1.
        part: (N,) int64, 0 or 1, of each row.
        log_prior: (C,) float64, the natural logarithm of p(y).

    Returns:
        (B, N, C) float64.

    Raises:
        TypeError: for other dtypes of logits, weights or log_prior.
        ValueError: the weights are not two sets of one number for each readout, or part and log_prior do not have the
            rows and classes of the logits.
    """
    if (logits.dtype, weights.dtype, log_prior.dtype) != (torch.float32, torch.float64, torch.float64):
        raise TypeError(
            "logits must be float32, weights and log_prior float64, "
            f"got {logits.dtype}, {weights.dtype} and {log_prior.dtype}; convert with .float() and .double()"
        )
    pools, number, rows, classes = logits.shape
    if weights.shape != (2, pools, number):
        raise ValueError(
            f"weights must be (2, B, K), a set for each part, with the B and K of logits {tuple(logits.shape)}, "
            f"got {tuple(weights.shape)}; fit one set on the rows of each part"
        )
    if part.shape != (rows,) or log_prior.shape != (classes,):
        raise ValueError(
            f"part must be (N,) and log_prior (C,) with the N and C of logits {tuple(logits.shape)}, "
            f"got {tuple(part.shape)} and {tuple(log_prior.shape)}"
        )
    skips = skips_dispatch(logits, weights, part, log_prior)
    function = reference_pool_posteriors if skips else _pool_posteriors_op
    return function(logits, weights, part, log_prior)
