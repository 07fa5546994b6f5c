"""Certified solver of the BROJA optimization: the whole solve of a table in one program.

The iteration is that of `reference.broja` in float32, where the mathematics is explained. Two things differ: every
block of classes has its own number of Sinkhorn sweeps (given R, they do not depend on each other), and a table stops
by an estimate of the gap in float32. The reported bounds are evaluated in float64 afterwards, so they are valid for
any result of the iterations.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..factors import configuration, configurations, coupled, dot, factored, tile_at
from ..language import Variant, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.broja import LN2, BrojaSolution
from ..reference.broja import broja as reference_broja
from .certificate import bounds, certify, marginals

__all__ = ["broja"]

# The sums of the two bounds, some 10 bits, and their products are exact to about 2e-7: the estimate is good to a few
# 1e-7 bits. So a table stops this many bits below the tolerance.
MARGIN = 2e-6
# In bits; smaller tolerances are solved by the reference.
MIN_TOLERANCE = 1e-5


@jit
def _log(x):
    """Logarithm of numbers that are not negative, about -69 for 0."""
    return tl.log(x + 1e-30)


@jit
def _start(
    q1_ptr,
    q2_ptr,
    b_ptr,
    r_ptr,
    log_r_ptr,
    plain_ptr,
    num1,
    num2,
    num_classes,
    r_stride,
    factor_stride,
    TILE,
    CLASSES,
):
    """B = P(x2 | y) and R = sum_y P(x1, y) B, as if X1 and X2 were independent given the class."""
    for label in range(0, num_classes, CLASSES):
        mass = tl.zeros((CLASSES,), tl.float32)
        for column in range(0, num2, TILE):
            mass += tl.sum(tl.load(tile_at(q2_ptr, column, label, factor_stride, 1, TILE, CLASSES)), 0)
        for column in range(0, num2, TILE):
            q2 = tl.load(tile_at(q2_ptr, column, label, factor_stride, 1, TILE, CLASSES))
            tl.store(
                tile_at(b_ptr, column, label, factor_stride, 1, TILE, CLASSES), q2 / (mass + 1e-30)[None, :]
            )
    tl.debug_barrier()
    for row in range(0, num1, TILE):
        for column in range(0, num2, TILE):
            w = factored(q1_ptr, b_ptr, row, column, num_classes, factor_stride, TILE, CLASSES)
            log_r = tl.maximum(_log(w), -40.0)
            tl.store(tile_at(r_ptr, row, column, r_stride, 1, TILE, TILE), tl.exp(log_r))
            tl.store(tile_at(log_r_ptr, row, column, r_stride, 1, TILE, TILE), log_r)
            tl.store(tile_at(plain_ptr, row, column, r_stride, 1, TILE, TILE), log_r)
    tl.debug_barrier()


@jit
def _fit(
    r_ptr,
    q1_ptr,
    q2_ptr,
    a_ptr,
    b_ptr,
    label,
    max_error,
    num1,
    num2,
    r_stride,
    factor_stride,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """A = q1 / (R B);  B = q2 / (R^T A): 2 to 50 times, until || A (R B) - q1 ||_1 is at most `max_error`."""
    sweep, error = 0, max_error + 1.0
    # R is one tile: everything stays in registers.
    if TILE <= 32:
        r = tl.load(tile_at(r_ptr, 0, 0, r_stride, 1, TILE, TILE))
        q1 = tl.load(tile_at(q1_ptr, 0, label, factor_stride, 1, TILE, CLASSES))
        q2 = tl.load(tile_at(q2_ptr, 0, label, factor_stride, 1, TILE, CLASSES))
        b = tl.load(tile_at(b_ptr, 0, label, factor_stride, 1, TILE, CLASSES))
        a = tl.zeros((TILE, CLASSES), tl.float32)
        zeros = tl.zeros((TILE, CLASSES), tl.float32)
        # NaN ends it.
        while (sweep < 50) & (error > max_error):
            rb = dot(r, b, zeros)
            if sweep > 0:
                error = tl.sum(tl.abs(a * rb - q1))
            a = q1 / (rb + 1e-30)
            b = q2 / (dot(tl.trans(r), a, zeros) + 1e-30)
            sweep += 1
        tl.store(tile_at(a_ptr, 0, label, factor_stride, 1, TILE, CLASSES), a)
        tl.store(tile_at(b_ptr, 0, label, factor_stride, 1, TILE, CLASSES), b)
    else:
        while (sweep < 50) & (error > max_error):
            error_sum = 0.0
            for row in range(0, num1, TILE):
                rb = coupled(r_ptr, b_ptr, row, label, num2, r_stride, 1, factor_stride, TILE, CLASSES)
                a = tile_at(a_ptr, row, label, factor_stride, 1, TILE, CLASSES)
                q1 = tl.load(tile_at(q1_ptr, row, label, factor_stride, 1, TILE, CLASSES))
                error_sum += tl.sum(tl.abs(tl.load(a) * rb - q1))
                tl.store(a, q1 / (rb + 1e-30))
            tl.debug_barrier()
            for column in range(0, num2, TILE):
                ra = coupled(r_ptr, a_ptr, column, label, num1, 1, r_stride, factor_stride, TILE, CLASSES)
                q2 = tl.load(tile_at(q2_ptr, column, label, factor_stride, 1, TILE, CLASSES))
                tl.store(tile_at(b_ptr, column, label, factor_stride, 1, TILE, CLASSES), q2 / (ra + 1e-30))
            tl.debug_barrier()
            if sweep > 0:
                error = error_sum
            sweep += 1


@jit(do_not_specialize=["max_iterations", "num1", "num2", "num_classes"])
def _broja(
    q1_ptr,
    q2_ptr,
    mass1_ptr,
    mass2_ptr,
    lower_ptr,
    upper_ptr,
    a_ptr,
    b_ptr,
    a_low_ptr,
    b_low_ptr,
    r_ptr,
    log_r_ptr,
    plain_ptr,
    log_w_ptr,
    shift1_ptr,
    shift2_ptr,
    iterations_ptr,
    tolerance,
    max_iterations: tl.int32,
    num1: tl.int32,
    num2: tl.int32,
    num_classes: tl.int32,
    r_stride: tl.int32,
    factor_stride: tl.int32,
    LN2: tl.constexpr,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Repeat: fit A and B to R, W = A B^T, log R += log W and Nesterov's momentum; until the gap is small."""
    table = tl.program_id(0).to(tl.int64)
    q1_ptr, a_ptr, a_low_ptr = (
        q1_ptr + table * num1 * factor_stride,
        a_ptr + table * num1 * factor_stride,
        a_low_ptr + table * num1 * factor_stride,
    )
    q2_ptr, b_ptr, b_low_ptr = (
        q2_ptr + table * num2 * factor_stride,
        b_ptr + table * num2 * factor_stride,
        b_low_ptr + table * num2 * factor_stride,
    )
    r_ptr, log_r_ptr = r_ptr + table * num1 * r_stride, log_r_ptr + table * num1 * r_stride
    plain_ptr, log_w_ptr = plain_ptr + table * num1 * r_stride, log_w_ptr + table * num1 * r_stride
    mass1_ptr, shift1_ptr = mass1_ptr + table * num1, shift1_ptr + table * num1
    mass2_ptr, shift2_ptr = mass2_ptr + table * num2, shift2_ptr + table * num2
    marginal_lower, marginal_upper = (
        tl.load(lower_ptr + table).to(tl.float32),
        tl.load(upper_ptr + table).to(tl.float32),
    )
    if TILE <= 32:
        num1, num2 = TILE, TILE

    _start(
        q1_ptr,
        q2_ptr,
        b_ptr,
        r_ptr,
        log_r_ptr,
        plain_ptr,
        num1,
        num2,
        num_classes,
        r_stride,
        factor_stride,
        TILE,
        CLASSES,
    )
    iteration, done = 0, 0
    age, restarts, change = 0.0, 0.0, 1.0
    while (iteration < max_iterations) & (done == 0):
        iteration += 1
        max_error = (0.3 * change + 1e-6) * CLASSES / num_classes
        for label in range(0, num_classes, CLASSES):
            _fit(
                r_ptr,
                q1_ptr,
                q2_ptr,
                a_ptr,
                b_ptr,
                label,
                max_error,
                num1,
                num2,
                r_stride,
                factor_stride,
                TILE,
                CLASSES,
            )
        tl.debug_barrier()

        slope_along_step, change, excess = 0.0, 0.0, 0.0
        for row in range(0, num1, TILE):
            largest = tl.full((TILE,), -1e4, tl.float32)
            for column in range(0, num2, TILE):
                log_w = _log(factored(a_ptr, b_ptr, row, column, num_classes, factor_stride, TILE, CLASSES))
                tl.store(tile_at(log_w_ptr, row, column, r_stride, 1, TILE, TILE), log_w)
                largest = tl.maximum(largest, tl.max(log_w, 1))
                weighted_step = tl.load(tile_at(r_ptr, row, column, r_stride, 1, TILE, TILE)) * log_w
                log_r = tl.load(tile_at(log_r_ptr, row, column, r_stride, 1, TILE, TILE))
                plain = tl.load(tile_at(plain_ptr, row, column, r_stride, 1, TILE, TILE))
                slope_along_step += tl.sum(weighted_step * (log_r + log_w - plain))
                change += tl.sum(tl.abs(weighted_step))
            excess += tl.sum(tl.load(mass1_ptr + row + tl.arange(0, TILE)).to(tl.float32) * largest)
        tl.debug_barrier()

        may_be_done = (iteration % 5 == 0) & (excess < 1.6 * LN2 * tolerance)
        if may_be_done | (iteration == 1):
            lower, upper = bounds(
                q1_ptr,
                q2_ptr,
                mass1_ptr,
                mass2_ptr,
                a_ptr,
                b_ptr,
                a_low_ptr,
                b_low_ptr,
                r_ptr,
                log_w_ptr,
                shift1_ptr,
                shift2_ptr,
                num1,
                num2,
                num_classes,
                r_stride,
                factor_stride,
                1e-30,
                TILE,
                CLASSES,
            )
            lower, upper = (
                tl.maximum(lower / LN2, marginal_lower),
                tl.minimum(upper / LN2, marginal_upper),
            )
            done = tl.where(upper - lower <= tolerance, 1, 0)
        # NaN in the table.
        if (change < float("inf")) == 0:
            done = 1

        if (done == 0) & (iteration < max_iterations):
            # In sparse tables cells of little mass would oscillate for thousands of iterations. So
            # momentum never lowers a cell that clearly rises, and after k restarts raises none by over (k + 1)^-2.
            restart = (slope_along_step < 0) & (age > 2)
            restarts += tl.where(restart, 1.0, 0.0)
            age = tl.where(restart, 0.0, age + 1.0)
            momentum, cap = age / (age + 3.0), 1.0 / ((restarts + 1.0) * (restarts + 1.0))
            for row in range(0, num1, TILE):
                for column in range(0, num2, TILE):
                    log_w = tl.load(tile_at(log_w_ptr, row, column, r_stride, 1, TILE, TILE))
                    log_r = tl.load(tile_at(log_r_ptr, row, column, r_stride, 1, TILE, TILE)) + log_w
                    plain = tl.load(tile_at(plain_ptr, row, column, r_stride, 1, TILE, TILE))
                    extrapolated = log_r + tl.minimum(momentum * (log_r - plain), cap)
                    extrapolated = tl.maximum(extrapolated, tl.where(log_w > 1e-4, log_r, -40.0))
                    tl.store(tile_at(plain_ptr, row, column, r_stride, 1, TILE, TILE), log_r)
                    tl.store(tile_at(log_r_ptr, row, column, r_stride, 1, TILE, TILE), extrapolated)
                    tl.store(tile_at(r_ptr, row, column, r_stride, 1, TILE, TILE), tl.exp(extrapolated))
            tl.debug_barrier()
    tl.store(iterations_ptr + table, iteration)


def _launch_broja(p1: Tensor, p2: Tensor, tolerance: float, max_iterations: int) -> BrojaSolution:
    (num_tables, num1, num_classes), num2 = p1.shape, p2.shape[1]
    constants, num_warps = configuration(num1, num2, num_classes)
    tile, class_block = constants["TILE"], constants["CLASSES"]
    given = marginals(p1, p2, tile, class_block)
    q1, q2, a = given.q1, given.q2, given.a
    size1, size2, width = q1.shape[1], q2.shape[1], q1.shape[2]
    b, a_low, b_low = (torch.empty_like(q) for q in (q2, q1, q2))
    r, log_r, plain, log_w = (q1.new_empty(num_tables, size1, size2) for _ in range(4))
    iterations = torch.empty(num_tables, dtype=torch.int64, device=p1.device)
    _broja[(num_tables,)](
        q1,
        q2,
        given.mass1,
        given.mass2,
        given.lower,
        given.upper,
        a,
        b,
        a_low,
        b_low,
        r,
        log_r,
        plain,
        log_w,
        q1.new_empty(num_tables, size1),
        q1.new_empty(num_tables, size2),
        iterations,
        tolerance - MARGIN,
        max_iterations,
        size1,
        size2,
        width,
        size2,
        width,
        LN2=LN2,
        **constants,
        **options(num_warps),
    )
    return BrojaSolution(*certify(p1, p2, given, b, r), iterations)


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    names = ("q1", "q2", "a", "b", "a_low", "b_low", "r", "log_r", "plain", "log_w", "shift1", "shift2")
    types = {f"{name}_ptr": "*fp32" for name in names}
    types |= {f"{name}_ptr": "*fp64" for name in ("mass1", "mass2", "lower", "upper")}
    types |= {"iterations_ptr": "*i64", "tolerance": "fp32"}
    types |= dict.fromkeys(
        ("max_iterations", "num1", "num2", "num_classes", "r_stride", "factor_stride"), "i32"
    )
    return [
        Variant(_broja, types, {"LN2": LN2, **constants}, num_warps)
        for constants, num_warps in configurations()
    ]


# The fields of BrojaSolution.
Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@custom_op(add_op_namespace_prefix("broja"), mutates_args=())
def _broja_op(
    p1y: Tensor, p2y: Tensor, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not (runs_kernels(p1y) and tolerance >= MIN_TOLERANCE and p1y.numel() and p2y.numel()):
        return cast(Parts, tuple(reference_broja(p1y, p2y, tolerance, max_iterations)))
    p1, p2 = (p.to(torch.float64).reshape(-1, *p.shape[-2:]) for p in (p1y, p2y))
    solution = _launch_broja(p1, p2, tolerance, max_iterations)
    return cast(Parts, tuple(part.reshape(p1y.shape[:-2] + part.shape[1:]) for part in solution))


@_broja_op.register_fake
def _(p1y: Tensor, p2y: Tensor, tolerance: float, max_iterations: int) -> Parts:
    batch = p1y.shape[:-2]
    bound = p1y.new_empty(batch, dtype=torch.float64)
    factor1, factor2 = (p.new_empty(p.shape, dtype=torch.float64) for p in (p1y, p2y))
    coupling = bound.new_empty(*batch, p1y.shape[-2], p2y.shape[-2])
    return (
        bound,
        torch.empty_like(bound),
        factor1,
        factor2,
        coupling,
        torch.empty_like(bound, dtype=torch.int64),
    )


def broja(p1y: Tensor, p2y: Tensor, tolerance: float = 1e-4, max_iterations: int = 20_000) -> BrojaSolution:
    """Maximize H_Q(Y | X1, X2) over all Q with the given pair marginals, with certified bounds.

    The bounds are always evaluated in float64. On a GPU the iterations run in float32, in one kernel and without the
    host, for tolerances of at least 1e-5 bits. Smaller ones, and CPU tensors, are solved by the plain PyTorch
    reference, which changes to float64 where float32 does not suffice. Rows, columns and classes without mass are
    allowed. The result has no gradient; `ecsfusion.differentiable_pid` has one.

    Args:
        p1y: P(x1, y), (..., K1, C), floating point, non-negative, each table of sum 1.
        p2y: P(x2, y), (..., K2, C), the same leading dimensions, class marginals and device.
        tolerance: a table stops when its certified gap, in bits, is at most this.
        max_iterations: a table stops after this many iterations in any case, with the gap reached so far.
    """
    p1y, p2y = p1y.detach(), p2y.detach()
    solve = reference_broja if skips_dispatch(p1y, p2y) else _broja_op
    return BrojaSolution(*solve(p1y, p2y, tolerance, max_iterations))
