"""Certified solver of the BROJA optimization: the whole solve of a table in one program.

The iteration is that of `reference.broja` in float32; its text explains the mathematics. What differs: every block
of classes has its own number of Sinkhorn sweeps (given R, they do not depend on each other), and a table stops by an
estimate of the gap in float32. The bounds that are reported are evaluated in float64 afterwards, so they hold
whatever the iterations did.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.library import custom_op

from . import reference
from .certificate import bounds, certify, marginals
from .factors import at, configuration, configurations, coupled, dot, factored, padded_to
from .language import NAMESPACE, Variant, jit, options, runs_kernels, tl
from .reference import BrojaSolution

# The sums of the two bounds, some 10 bits, and their products are exact to about 1e-7: the estimate is good to a few
# 1e-7 bits. A table stops this far below the tolerance, and smaller tolerances are left to the reference.
MARGIN = 2e-6  # bits
MIN_TOLERANCE = 1e-5  # bits


@jit
def _log(x):
    """log of numbers that are not negative, about -69 where there is nothing."""
    return tl.log(x + 1e-30)


@jit
def _start(
    q1_ptr, q2_ptr, b_ptr, r_ptr, log_r_ptr, plain_ptr, num1, num2, classes, stride_r, stride_a, TILE, CLASSES
):
    """B = P(x2 | y) and R = sum_y P(x1, y) B, as if X1 and X2 were independent given the class."""
    for label in range(0, classes, CLASSES):
        mass = tl.zeros((CLASSES,), tl.float32)
        for column in range(0, num2, TILE):
            mass += tl.sum(tl.load(at(q2_ptr, column, label, stride_a, 1, TILE, CLASSES)), 0)
        for column in range(0, num2, TILE):
            q2 = tl.load(at(q2_ptr, column, label, stride_a, 1, TILE, CLASSES))
            tl.store(at(b_ptr, column, label, stride_a, 1, TILE, CLASSES), q2 / (mass + 1e-30)[None, :])
    tl.debug_barrier()
    for row in range(0, num1, TILE):
        for column in range(0, num2, TILE):
            w = factored(q1_ptr, b_ptr, row, column, classes, stride_a, TILE, CLASSES)
            log_r = tl.maximum(_log(w), -40.0)
            tl.store(at(r_ptr, row, column, stride_r, 1, TILE, TILE), tl.exp(log_r))
            tl.store(at(log_r_ptr, row, column, stride_r, 1, TILE, TILE), log_r)
            tl.store(at(plain_ptr, row, column, stride_r, 1, TILE, TILE), log_r)
    tl.debug_barrier()


@jit
def _fit(
    r_ptr,
    q1_ptr,
    q2_ptr,
    a_ptr,
    b_ptr,
    label,
    enough,
    num1,
    num2,
    stride_r,
    stride_a,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """A = q1 / (R B);  B = q2 / (R^T A): 2 to 50 times, until || A (R B) - q1 ||_1 before the last is `enough`."""
    sweep, error = 0, enough + 1.0
    if TILE <= 32:  # R is one tile: everything stays in registers
        r = tl.load(at(r_ptr, 0, 0, stride_r, 1, TILE, TILE))
        q1 = tl.load(at(q1_ptr, 0, label, stride_a, 1, TILE, CLASSES))
        q2 = tl.load(at(q2_ptr, 0, label, stride_a, 1, TILE, CLASSES))
        b = tl.load(at(b_ptr, 0, label, stride_a, 1, TILE, CLASSES))
        a = tl.zeros((TILE, CLASSES), tl.float32)
        zeros = tl.zeros((TILE, CLASSES), tl.float32)
        while (sweep < 50) & (error > enough):  # NaN ends it
            rb = dot(r, b, zeros)
            if sweep > 0:
                error = tl.sum(tl.abs(a * rb - q1))
            a = q1 / (rb + 1e-30)
            b = q2 / (dot(tl.trans(r), a, zeros) + 1e-30)
            sweep += 1
        tl.store(at(a_ptr, 0, label, stride_a, 1, TILE, CLASSES), a)
        tl.store(at(b_ptr, 0, label, stride_a, 1, TILE, CLASSES), b)
    else:
        while (sweep < 50) & (error > enough):
            off = 0.0
            for row in range(0, num1, TILE):
                rb = coupled(r_ptr, b_ptr, row, label, num2, stride_r, 1, stride_a, TILE, CLASSES)
                a = at(a_ptr, row, label, stride_a, 1, TILE, CLASSES)
                q1 = tl.load(at(q1_ptr, row, label, stride_a, 1, TILE, CLASSES))
                off += tl.sum(tl.abs(tl.load(a) * rb - q1))
                tl.store(a, q1 / (rb + 1e-30))
            tl.debug_barrier()
            for column in range(0, num2, TILE):
                ra = coupled(r_ptr, a_ptr, column, label, num1, 1, stride_r, stride_a, TILE, CLASSES)
                q2 = tl.load(at(q2_ptr, column, label, stride_a, 1, TILE, CLASSES))
                tl.store(at(b_ptr, column, label, stride_a, 1, TILE, CLASSES), q2 / (ra + 1e-30))
            tl.debug_barrier()
            if sweep > 0:
                error = off
            sweep += 1


@jit
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
    classes: tl.int32,
    stride_r: tl.int32,
    stride_a: tl.int32,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Repeat: fit A and B to R, W = A B^T, log R += log W and Nesterov's momentum; until the gap is small."""
    table = tl.program_id(0).to(tl.int64)
    q1_ptr, a_ptr, a_low_ptr = (
        q1_ptr + table * num1 * stride_a,
        a_ptr + table * num1 * stride_a,
        a_low_ptr + table * num1 * stride_a,
    )
    q2_ptr, b_ptr, b_low_ptr = (
        q2_ptr + table * num2 * stride_a,
        b_ptr + table * num2 * stride_a,
        b_low_ptr + table * num2 * stride_a,
    )
    r_ptr, log_r_ptr = r_ptr + table * num1 * stride_r, log_r_ptr + table * num1 * stride_r
    plain_ptr, log_w_ptr = plain_ptr + table * num1 * stride_r, log_w_ptr + table * num1 * stride_r
    mass1_ptr, shift1_ptr = mass1_ptr + table * num1, shift1_ptr + table * num1
    mass2_ptr, shift2_ptr = mass2_ptr + table * num2, shift2_ptr + table * num2
    least, most = tl.load(lower_ptr + table).to(tl.float32), tl.load(upper_ptr + table).to(tl.float32)
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
        classes,
        stride_r,
        stride_a,
        TILE,
        CLASSES,
    )
    iteration, done = 0, 0
    age, restarts, change = 0.0, 0.0, 1.0
    while (iteration < max_iterations) & (done == 0):
        iteration += 1
        enough = (0.3 * change + 1e-6) * CLASSES / classes
        for label in range(0, classes, CLASSES):
            _fit(
                r_ptr,
                q1_ptr,
                q2_ptr,
                a_ptr,
                b_ptr,
                label,
                enough,
                num1,
                num2,
                stride_r,
                stride_a,
                TILE,
                CLASSES,
            )
        tl.debug_barrier()

        uphill, change, excess = 0.0, 0.0, 0.0
        for row in range(0, num1, TILE):
            largest = tl.full((TILE,), -1e4, tl.float32)
            for column in range(0, num2, TILE):
                log_w = _log(factored(a_ptr, b_ptr, row, column, classes, stride_a, TILE, CLASSES))
                tl.store(at(log_w_ptr, row, column, stride_r, 1, TILE, TILE), log_w)
                largest = tl.maximum(largest, tl.max(log_w, 1))
                moved = tl.load(at(r_ptr, row, column, stride_r, 1, TILE, TILE)) * log_w
                log_r = tl.load(at(log_r_ptr, row, column, stride_r, 1, TILE, TILE))
                plain = tl.load(at(plain_ptr, row, column, stride_r, 1, TILE, TILE))
                uphill += tl.sum(moved * (log_r + log_w - plain))
                change += tl.sum(tl.abs(moved))
            excess += tl.sum(tl.load(mass1_ptr + row + tl.arange(0, TILE)).to(tl.float32) * largest)
        tl.debug_barrier()

        near = (iteration % 5 == 0) & (excess < 1.6 * 0.6931471805599453 * tolerance)
        if near | (iteration == 1):
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
                classes,
                stride_r,
                stride_a,
                1e-30,
                TILE,
                CLASSES,
            )
            lower, upper = (
                tl.maximum(lower / 0.6931471805599453, least),
                tl.minimum(upper / 0.6931471805599453, most),
            )
            done = tl.where(upper - lower <= tolerance, 1, 0)
        if (change < float("inf")) == 0:  # NaN in the table
            done = 1

        if (done == 0) & (iteration < max_iterations):
            # In sparse tables cells of little mass would rise and crash in turn for thousands of iterations. So
            # momentum never lowers a cell that clearly rises, and after k restarts raises none by over (k + 1)^-2.
            restart = (uphill < 0) & (age > 2)
            restarts += tl.where(restart, 1.0, 0.0)
            age = tl.where(restart, 0.0, age + 1.0)
            momentum, cap = age / (age + 3.0), 1.0 / ((restarts + 1.0) * (restarts + 1.0))
            for row in range(0, num1, TILE):
                for column in range(0, num2, TILE):
                    log_w = tl.load(at(log_w_ptr, row, column, stride_r, 1, TILE, TILE))
                    log_r = tl.load(at(log_r_ptr, row, column, stride_r, 1, TILE, TILE)) + log_w
                    plain = tl.load(at(plain_ptr, row, column, stride_r, 1, TILE, TILE))
                    ahead = log_r + tl.minimum(momentum * (log_r - plain), cap)
                    ahead = tl.maximum(ahead, tl.where(log_w > 1e-4, log_r, -40.0))
                    tl.store(at(plain_ptr, row, column, stride_r, 1, TILE, TILE), log_r)
                    tl.store(at(log_r_ptr, row, column, stride_r, 1, TILE, TILE), ahead)
                    tl.store(at(r_ptr, row, column, stride_r, 1, TILE, TILE), tl.exp(ahead))
            tl.debug_barrier()
    tl.store(iterations_ptr + table, iteration)


def _launch_broja(p1: Tensor, p2: Tensor, tolerance: float, max_iterations: int) -> BrojaSolution:
    (count, num1, num_classes), num2 = p1.shape, p2.shape[1]
    constants, num_warps = configuration(num1, num2, num_classes)
    tile, classes = constants["TILE"], constants["CLASSES"]
    wide1, wide2 = padded_to(p1, tile, classes), padded_to(p2, tile, classes)
    mass1, mass2, least, most = marginals(wide1, wide2)
    q1, q2 = wide1.float(), wide2.float()
    size1, size2, width = q1.shape[1], q2.shape[1], q1.shape[2]
    a, b, a_low, b_low = torch.zeros_like(q1), *(torch.empty_like(q) for q in (q2, q1, q2))
    r, log_r, plain, log_w = (q1.new_empty(count, size1, size2) for _ in range(4))
    iterations = torch.empty(count, dtype=torch.int32, device=p1.device)
    _broja[(count,)](
        q1,
        q2,
        mass1,
        mass2,
        least,
        most,
        a,
        b,
        a_low,
        b_low,
        r,
        log_r,
        plain,
        log_w,
        q1.new_empty(count, size1),
        q1.new_empty(count, size2),
        iterations,
        tolerance - MARGIN,
        max_iterations,
        size1,
        size2,
        width,
        size2,
        width,
        **constants,
        **options(num_warps),
    )
    lower, gap = certify(wide1, wide2, mass1, mass2, a, b, r, least, most)
    a, b, r = a[:, :num1, :num_classes], b[:, :num2, :num_classes], r[:, :num1, :num2]
    return BrojaSolution(lower, gap, a.double(), b.double(), r.double(), iterations.long())


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    names = ("q1", "q2", "a", "b", "a_low", "b_low", "r", "log_r", "plain", "log_w", "shift1", "shift2")
    types = {f"{name}_ptr": "*fp32" for name in names}
    types |= {f"{name}_ptr": "*fp64" for name in ("mass1", "mass2", "lower", "upper")}
    types |= {"iterations_ptr": "*i32", "tolerance": "fp32"}
    types |= dict.fromkeys(("max_iterations", "num1", "num2", "classes", "stride_r", "stride_a"), "i32")
    return [Variant(_broja, types, constants, num_warps) for constants, num_warps in configurations()]


Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # of BrojaSolution


@custom_op(f"{NAMESPACE}::broja", mutates_args=())
def _broja_op(
    p1y: Tensor, p2y: Tensor, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not (runs_kernels(p1y) and tolerance >= MIN_TOLERANCE and p1y.numel() and p2y.numel()):
        return cast(Parts, tuple(reference.broja(p1y, p2y, tolerance, max_iterations)))
    p1, p2 = (p.to(torch.float64).reshape(-1, *p.shape[-2:]) for p in (p1y, p2y))
    solution = _launch_broja(p1, p2, tolerance, max_iterations)
    return cast(Parts, tuple(part.reshape(p1y.shape[:-2] + part.shape[1:]) for part in solution))


@_broja_op.register_fake
def _(p1y: Tensor, p2y: Tensor, tolerance: float, max_iterations: int) -> Parts:
    batch = p1y.shape[:-2]
    bound = p1y.new_empty(batch, dtype=torch.float64)
    factor1, factor2 = torch.empty_like(p1y, dtype=torch.float64), torch.empty_like(p2y, dtype=torch.float64)
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

    Args:
        p1y: P(x1, y), (..., K1, C), floating point, non-negative, each table of sum 1.
        p2y: P(x2, y), (..., K2, C), the same leading dimensions, class marginals and device.
        tolerance: a table stops when its certified gap, in bits, is at most this.
        max_iterations: a table stops after this many iterations in any case, with the gap reached so far.

    The bounds are evaluated in float64 whatever the iterations did. On a GPU the iterations run in float32, in one
    kernel and without the host, from a tolerance of 1e-5 bits on; smaller ones, and CPU tensors, are solved by the
    plain PyTorch reference, which changes to float64 where float32 does not suffice. Rows, columns and classes
    without mass are allowed. No gradient flows; `ecsfusion.differentiable_pid` has one.
    """
    return BrojaSolution(*_broja_op(p1y.detach(), p2y.detach(), tolerance, max_iterations))
