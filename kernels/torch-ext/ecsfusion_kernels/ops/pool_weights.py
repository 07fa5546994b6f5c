"""Weights of pooled readouts by damped Newton steps, one program a pool."""

# Tuples grow in kernels, where an annotation of their type means something else.
# mypy: disable-error-code="assignment"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, padded, runs_kernels, skips_dispatch, tl
from ..reference.pool_weights import (
    CAUTION,
    FIRST_DAMPING,
    FIRST_SUM,
    ITERATIONS,
    LARGEST,
    MAX_FITTED_ROWS,
    MAX_RISE,
    TINY,
    WEIGHT_COST,
)
from ..reference.pool_weights import pool_weights as reference_pool_weights

__all__ = ["pool_weights"]

MAX_READOUTS = 8
STILL = 1e-6
"""The steps of a pool end when no weight changes by more."""
CONSTANTS = {
    "CAUTION": CAUTION,
    "FIRST_DAMPING": FIRST_DAMPING,
    "FIRST_SUM": FIRST_SUM,
    "LARGEST": LARGEST,
    "MAX_RISE": MAX_RISE,
    "STILL": STILL,
    "TINY": TINY,
    "WEIGHT_COST": WEIGHT_COST,
}


@jit
def _clamped(logits, LARGEST):
    """Within the bounds, and 0 where it is not finite."""
    finite = (logits < float("inf")) & (logits > -float("inf"))
    return tl.where(finite, tl.minimum(tl.maximum(logits, -LARGEST), LARGEST), 0.0)


@jit
def _zeros(NUMBER: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr):
    """A tuple of vectors: a thread has the same rows in all of them, so that sums over classes need no other thread."""
    found = ()
    for _ in tl.static_range(NUMBER):
        found += (tl.zeros((ROWS,), DTYPE),)
    return found


@jit
def _sum(first, second, NUMBER: tl.constexpr):
    """The sum of two tuples; of the wider type."""
    found = ()
    for k in tl.static_range(NUMBER):
        found += (first[k] + second[k],)
    return found


@jit
def _weights_of(weights, READOUTS: tl.constexpr):
    """The numbers of a vector as a tuple, in float32."""
    found = ()
    for k in tl.static_range(READOUTS):
        found += (tl.sum(tl.where(tl.arange(0, READOUTS) == k, weights, 0.0), 0).to(tl.float32),)
    return found


@jit
def _logits_at(fitted_ptr, row, fitted, step, num_readouts, READOUTS: tl.constexpr):
    """The logits of rows below `fitted` for one class, a vector for each readout; `step` lies between two readouts."""
    found = ()
    for k in tl.static_range(READOUTS):
        inside = row < fitted * (k < num_readouts)
        found += (tl.load(fitted_ptr + k * step + row, inside, other=0.0),)
    return found


@jit
def _score(prior, logits, weights, READOUTS: tl.constexpr):
    """Log p(y) + sum_k w_k z_k(y | x)."""
    score = prior + logits[0] * weights[0]
    for k in tl.static_range(1, READOUTS):
        score += logits[k] * weights[k]
    # Not below a number, so that differences of two are numbers.
    return tl.maximum(score, -1e30)


@jit
def _moments(
    fitted_ptr,
    prior_ptr,
    candidate,
    fitted,
    max_fitted_rows,
    num_readouts,
    num_classes,
    READOUTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Sums over the rows: the log norm, the mean of each readout, and the lower triangle of their covariances."""
    weights = _weights_of(candidate, READOUTS)
    step = max_fitted_rows.to(tl.int64) * num_classes
    log_norm = tl.zeros((ROWS,), tl.float64)
    means = _zeros(READOUTS, ROWS, tl.float64)
    covariances = _zeros(READOUTS * (READOUTS + 1) // 2, ROWS, tl.float64)
    for start in range(0, fitted, ROWS):
        row = start + tl.arange(0, ROWS)
        largest, norm = tl.full((ROWS,), -1e30, tl.float32), tl.zeros((ROWS,), tl.float32)
        for c in range(num_classes):
            of_class = fitted_ptr + c * max_fitted_rows.to(tl.int64)
            logits = _logits_at(of_class, row, fitted, step, num_readouts, READOUTS)
            score = _score(tl.load(prior_ptr + c), logits, weights, READOUTS)
            larger = tl.maximum(largest, score)
            norm = norm * tl.exp(largest - larger) + tl.exp(score - larger)
            largest = larger
        log_norm += tl.where(row < fitted, tl.log(norm) + largest, 0.0)
        mean = _zeros(READOUTS, ROWS, tl.float32)
        square = _zeros(READOUTS * (READOUTS + 1) // 2, ROWS, tl.float32)
        for c in range(num_classes):
            of_class = fitted_ptr + c * max_fitted_rows.to(tl.int64)
            logits = _logits_at(of_class, row, fitted, step, num_readouts, READOUTS)
            score = _score(tl.load(prior_ptr + c), logits, weights, READOUTS)
            posterior = tl.exp(score - largest) / norm
            shares = ()
            products = ()
            for k in tl.static_range(READOUTS):
                share = posterior * logits[k]
                shares += (share,)
                for other in tl.static_range(k + 1):
                    products += (share * logits[other],)
            mean = _sum(mean, shares, READOUTS)
            square = _sum(square, products, READOUTS * (READOUTS + 1) // 2)
        means = _sum(means, mean, READOUTS)
        centered = ()
        for k in tl.static_range(READOUTS):
            for other in tl.static_range(k + 1):
                of_means = mean[k].to(tl.float64) * mean[other]
                centered += (square[k * (k + 1) // 2 + other].to(tl.float64) - of_means,)
        covariances = _sum(covariances, centered, READOUTS * (READOUTS + 1) // 2)
    return log_norm, means, covariances


@jit
def _solved(system, right, number, READOUTS: tl.constexpr):
    """The solution (K,) of a positive definite system (K, K), by Gauss and Jordan's elimination."""
    index = tl.arange(0, READOUTS)
    for k in range(number):
        pivot_row = tl.sum(tl.where((index == k)[:, None], system, 0.0), 0)
        pivot_right = tl.sum(tl.where(index == k, right, 0.0), 0)
        column = tl.sum(tl.where((index == k)[None, :], system, 0.0), 1)
        factor = tl.where(index == k, 0.0, column / tl.sum(tl.where(index == k, column, 0.0), 0))
        system -= factor[:, None] * pivot_row[None, :]
        right -= factor * pivot_right
    return right / tl.sum(tl.where(index[:, None] == index[None, :], system, 0.0), 1)


@jit(
    do_not_specialize=[
        "num_pools",
        "num_readouts",
        "num_rows",
        "num_classes",
        "max_fitted_rows",
        "iterations",
        "by_rows",
    ]
)
def _pool_weights(
    logits_ptr,
    labels_ptr,
    prior_ptr,
    rows_ptr,
    bounds_ptr,
    fitted_ptr,
    weights_ptr,
    num_pools: tl.int32,
    num_readouts: tl.int32,
    num_rows: tl.int64,
    num_classes: tl.int32,
    max_fitted_rows: tl.int32,
    iterations: tl.int32,
    by_rows: tl.int32,
    CAUTION: tl.constexpr,
    FIRST_DAMPING: tl.constexpr,
    FIRST_SUM: tl.constexpr,
    LARGEST: tl.constexpr,
    MAX_RISE: tl.constexpr,
    STILL: tl.constexpr,
    TINY: tl.constexpr,
    WEIGHT_COST: tl.constexpr,
    READOUTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Minimize mean(log sum_y p(y) exp(w z(y)) - w z(label)) + cost w over w >= 0; a program has a pool and its rows.

    The logits of the fitted rows, centered and less that of the label, are gathered once. Sums over rows are float64.
    """
    program = tl.program_id(0).to(tl.int64)
    pool, part = program % num_pools, program // num_pools
    first, size = part * 0, part * 0 + num_rows
    if by_rows:
        first = tl.load(bounds_ptr + part)
        size = tl.load(bounds_ptr + part + 1) - first
    step = tl.maximum((size + max_fitted_rows - 1) // max_fitted_rows, 1)
    fitted = ((size + step - 1) // step).to(tl.int32)
    readouts = tl.arange(0, READOUTS)
    logits_ptr += pool * num_readouts * num_rows * num_classes
    fitted_ptr += program * num_readouts * max_fitted_rows * num_classes

    told = tl.zeros((ROWS,), tl.float64)
    squares = tl.zeros((READOUTS,), tl.float64)
    for readout in range(num_readouts):
        square = tl.zeros((ROWS,), tl.float64)
        for start in range(0, fitted, ROWS):
            place = start + tl.arange(0, ROWS)
            inside = place < fitted
            row = first + place * step
            if by_rows:
                row = tl.load(rows_ptr + row, inside, other=0)
            label = tl.load(labels_ptr + row, inside, other=0)
            if readout == 0:
                told += tl.load(prior_ptr + label, inside, other=0.0)
            given = logits_ptr + (readout * num_rows + row) * num_classes
            mean = tl.zeros((ROWS,), tl.float32)
            for c in range(num_classes):
                mean += tl.load(given + c, inside, other=0.0)
            mean /= num_classes
            at_label = _clamped(tl.load(given + label, inside, other=0.0) - mean, LARGEST)
            for c in range(num_classes):
                logits = _clamped(tl.load(given + c, inside, other=0.0) - mean, LARGEST)
                logits = tl.where(inside, logits, 0.0)
                square += logits * logits
                # Rows beside rows. From the logit of the label: of rows that are told fully, sums of large logits would
                # leave only rounding.
                kept = fitted_ptr + (readout * num_classes + c) * max_fitted_rows.to(tl.int64) + place
                tl.store(kept, logits - at_label, inside)
        squares = tl.where(readouts == readout, tl.sum(square, 0), squares)
    tl.debug_barrier()
    # Without a row the weights stay 0.
    number = tl.maximum(fitted, 1).to(tl.float64)
    # Bare numbers would be rounded to float32.
    cost = tl.minimum(tl.sqrt(squares / (number * num_classes)), 1.0) * WEIGHT_COST / number
    prior_loss = -tl.sum(told, 0) / number

    begin = tl.where(readouts < num_readouts, tl.full((), FIRST_SUM, tl.float64) / num_readouts, 0.0)
    candidate, weights = begin, tl.zeros((READOUTS,), tl.float64)
    gradient, curvature = weights, tl.zeros((READOUTS, READOUTS), tl.float64)
    loss = prior_loss
    damping, rejected = tl.full((), FIRST_DAMPING, tl.float64), tl.full((), 0.0, tl.float64)
    # Before the steps: 0 at the start, and 1 at the prior, where the start overflows or does worse.
    turn = 0
    while turn < iterations + 2:
        log_norm, means, covariances = _moments(
            fitted_ptr,
            prior_ptr,
            candidate,
            fitted,
            max_fitted_rows,
            num_readouts,
            num_classes,
            READOUTS,
            ROWS,
        )
        new_loss = tl.sum(log_norm, 0) / number + prior_loss + tl.sum(cost * candidate, 0)
        new_gradient, new_curvature = cost, tl.zeros((READOUTS, READOUTS), tl.float64)
        for k in tl.static_range(READOUTS):
            new_gradient += tl.where(readouts == k, tl.sum(means[k], 0) / number, 0.0)
            for other in tl.static_range(k + 1):
                covariance = tl.sum(covariances[k * (k + 1) // 2 + other], 0) / number
                here = (readouts[:, None] == k) & (readouts[None, :] == other)
                here = here | (readouts[:, None] == other) & (readouts[None, :] == k)
                new_curvature += tl.where(here, covariance, 0.0)

        better = new_loss < loss
        taken = better | (turn == 1)
        weights = tl.where(taken, candidate, weights)
        gradient = tl.where(taken, new_gradient, gradient)
        curvature = tl.where(taken, new_curvature, curvature)
        loss = tl.where(taken, new_loss, loss)
        if turn > 1:
            rejected = tl.where(better, tl.minimum(rejected, 1.0), rejected + 1.0)
            damping = tl.where(better, damping / 5.0, damping * 10.0)
            damping = tl.minimum(tl.maximum(damping, 1e-6), 1e6)
        if (turn == 0) & (better == 0):
            candidate = tl.zeros((READOUTS,), tl.float64)
            turn = 1
        else:
            free = tl.where((weights > 0) | (gradient < 0), 1.0, 0.0).to(tl.float64)
            diagonal = tl.sum(tl.where(readouts[:, None] == readouts[None, :], curvature, 0.0), 1)
            ridge = damping * diagonal + 1e-9 * tl.max(diagonal, 0) + 1e-12
            # After a step that went too far no weight falls to 0 at once, however flat the loss is around it.
            ridge += CAUTION * rejected * tl.maximum(gradient, 0.0) / tl.maximum(weights, TINY)
            system = curvature * free[:, None] * free[None, :]
            system += tl.where(readouts[:, None] == readouts[None, :], (ridge + 1.0 - free)[:, None], 0.0)
            direction = _solved(system, gradient * free, num_readouts, READOUTS)
            # Where the loss is nearly flat its curvature says nothing about what is far away.
            candidate = tl.minimum(tl.maximum(weights - direction, 0.0), MAX_RISE * weights + begin)
            turn = tl.maximum(turn + 1, 2)
            if tl.max(tl.abs(candidate - weights), 0) <= STILL:
                turn = iterations + 2
    tl.store(weights_ptr + program * num_readouts + readouts, weights, readouts < num_readouts)


def configuration(num_readouts: int) -> tuple[dict[str, int], int]:
    """The constants of a pool of so many readouts, and its warps: as many as have registers for all covariances."""
    readouts = padded(num_readouts, 2)
    num_warps = 16 if readouts <= 4 else 8
    return {"READOUTS": readouts, "ROWS": 32 * num_warps}, num_warps


def _launch_pool_weights(
    logits: Tensor,
    labels: Tensor,
    log_prior: Tensor,
    rows: Tensor | None,
    bounds: Tensor | None,
    max_fitted_rows: int,
    iterations: int,
) -> Tensor:
    num_pools, num_readouts, num_rows, num_classes = logits.shape
    num_parts = 1 if bounds is None else len(bounds) - 1
    shape = (num_parts, num_pools, num_readouts)
    if not logits.numel() or not num_parts:
        return torch.zeros(shape, dtype=torch.float64, device=logits.device)
    found = torch.empty(shape, dtype=torch.float64, device=logits.device)
    most = min(max_fitted_rows, num_rows)
    fitted = logits.new_empty(num_parts * num_pools, num_readouts, most, num_classes)
    given = [aligned(tensor) for tensor in (logits, labels, log_prior)]
    chosen = [given[1] if tensor is None else aligned(tensor) for tensor in (rows, bounds)]
    sizes = (num_pools, num_readouts, num_rows, num_classes, most, iterations, int(bounds is not None))
    constants, num_warps = configuration(num_readouts)
    _pool_weights[(num_parts * num_pools,)](
        *given, *chosen, fitted, found, *sizes, **CONSTANTS, **constants, **options(num_warps)
    )
    return found


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = {f"{name}_ptr": "*fp32" for name in ("logits", "prior", "fitted")}
    types |= {f"{name}_ptr": "*i64" for name in ("labels", "rows", "bounds")}
    sizes = ("num_pools", "num_readouts", "num_classes", "max_fitted_rows", "iterations", "by_rows")
    types |= {"weights_ptr": "*fp64", "num_rows": "i64", **dict.fromkeys(sizes, "i32")}
    return [
        Variant(_pool_weights, types, {**CONSTANTS, **constants}, num_warps)
        for constants, num_warps in map(configuration, (2, 4, MAX_READOUTS))
    ]


@custom_op(add_op_namespace_prefix("pool_weights"), mutates_args=())
def _pool_weights_op(
    logits: Tensor,
    labels: Tensor,
    log_prior: Tensor,
    rows: Tensor | None,
    bounds: Tensor | None,
    max_fitted_rows: int,
    iterations: int,
) -> Tensor:
    runs = runs_kernels(logits) and logits.shape[1] <= MAX_READOUTS
    fit: Any = _launch_pool_weights if runs else reference_pool_weights
    return fit(logits, labels, log_prior, rows, bounds, max_fitted_rows, iterations)


@_pool_weights_op.register_fake
def _(
    logits: Tensor,
    labels: Tensor,
    log_prior: Tensor,
    rows: Tensor | None,
    bounds: Tensor | None,
    max_fitted_rows: int,
    iterations: int,
) -> Tensor:
    parts = 1 if bounds is None else len(bounds) - 1
    return logits.new_empty(parts, *logits.shape[:2], dtype=torch.float64)


def pool_weights(
    logits: Tensor,
    labels: Tensor,
    log_prior: Tensor,
    rows: Tensor | None = None,
    bounds: Tensor | None = None,
    max_fitted_rows: int = MAX_FITTED_ROWS,
    iterations: int = ITERATIONS,
) -> Tensor:
    """The weights of B pools of K readouts, q(y | x) ~ p(y) exp(sum_k w_k z_k(y | x)), fitted on S sets of rows.

    The w >= 0 minimize the log-loss, and a small cost for each. On a GPU a pool of up to 8 readouts is one program,
    and the host reads nothing; of more, the reference is used. The result has no gradient.

    Args:
        logits: (B, K, N, C) float32: the logarithm of each readout's posterior over the prior, up to a constant by row.
        labels: (N,) int64 classes.
        log_prior: (C,) float32, natural logarithm.
        rows: the rows (R,) int64 of all sets, one set after another; None for one set of all rows.
        bounds: where in `rows` each set begins, and the end of the last: (S + 1,) int64; None with `rows`.
        max_fitted_rows: the most rows of a set that are read; of more, evenly apart.
        iterations: the most Newton steps.

    Returns:
        (S, B, K) float64, on the device of the logits; 0 where a set has no rows.

    Raises:
        TypeError: the logits or the prior are not float32.
        ValueError: one of `rows` and `bounds` is given without the other.
    """
    if logits.dtype != torch.float32 or log_prior.dtype != torch.float32:
        raise TypeError(
            f"logits and log_prior must be float32, got {logits.dtype} and {log_prior.dtype}; convert with .float()"
        )
    if (rows is None) != (bounds is None):
        raise ValueError("rows and bounds must be given together, got one of them; give both or none")
    fit = reference_pool_weights if skips_dispatch(logits, labels) else _pool_weights_op
    return fit(logits, labels, log_prior, rows, bounds, max_fitted_rows, iterations)
