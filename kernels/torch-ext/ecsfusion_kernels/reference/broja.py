"""Certified solver of the BROJA optimization.

Among all distributions Q(x1, x2, y) with the pair marginals Q(x1, y) = P(x1, y) and Q(x2, y) = P(x2, y), find
the largest conditional entropy H_Q(Y | X1, X2) (Bertschinger et al. 2014, "Quantifying unique information").

The optimum factorizes as Q(x1, x2, y) = A(x1, y) R(x1, x2) B(x2, y) with R = sum_y Q, so the K1 x K2 x C table
is never stored: the state is log R, A and B, and one iteration is a few small matrix products. For a fixed R,
scaling A and B in turn (Sinkhorn) fits the two marginals. The new R is the old one times W = A B^T; at the
optimum W = 1 wherever R > 0. The step is accelerated in log R by Nesterov's momentum with a gradient restart.

The reported bounds are valid for any result of the iterations. Lower: scale A and B down into the marginals;
the remainder that would complete Q can only add conditional entropy. Upper: every A, B with A B^T <= 1 gives
the dual bound - sum P1 log A - sum P2 log B.

A batch is solved by code that runs on NumPy views of CPU tensors as well as on CUDA tensors (`xp` is numpy or
torch; NumPy's overhead per operation is a third of PyTorch's). For a single small table on the CPU the overhead per
operation would dominate, so the iteration is written once more for two dimensions and float64.
"""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    import numpy as np
# PyTorch works without NumPy, and so does the kernel package by itself.
except ImportError:
    np = None  # type: ignore[assignment]

from ..precision import in_full_precision

__all__ = ["BrojaSolution", "broja"]

# numpy.ndarray or torch.Tensor, batch first.
Array = Any

LN2 = 0.6931471805599453
MAX_SWEEPS = 50
FLOAT32_ITERATIONS = 1000
FLOAT32_TOLERANCE = 1e-6
# Certified after every so many iterations.
CHECK_EVERY = 5
# A cell of larger log W clearly rises.
MIN_RISING_LOG_W = 1e-4
# A table is certified when the excess of its upper bound, in tolerances, is smaller.
MAX_EXCESS = 1.6 * LN2
# Up to so many cells K1 * K2 * C a single table is faster with the code for one table.
MAX_SINGLE_CELLS = 100_000


class BrojaSolution(NamedTuple):
    """The result of `broja`; (...) are the leading dimensions of its arguments.

    The largest conditional entropy lies in [conditional_entropy, conditional_entropy + gap].

    Attributes:
        conditional_entropy: (...) float64, bits: certified lower bound of max H_Q(Y | X1, X2).
        gap: (...) float64, bits: certified upper bound minus the lower bound.
        factor1: (..., K1, C) float64: A.
        factor2: (..., K2, C) float64: B.
        coupling: (..., K1, K2) float64: R.
        iterations: (...) int64.
    """

    conditional_entropy: Tensor
    gap: Tensor
    factor1: Tensor
    factor2: Tensor
    coupling: Tensor
    iterations: Tensor


@in_full_precision
def broja(p1y: Tensor, p2y: Tensor, tolerance: float = 1e-4, max_iterations: int = 20_000) -> BrojaSolution:
    """Maximize H_Q(Y | X1, X2) over all Q with the given pair marginals, with certified bounds.

    The iterations of a batch run in float32. A table that has not converged after 1000 of them, every table when
    the tolerance is under 1e-6, and a single small table on the CPU are iterated in float64. The bounds are
    always evaluated in float64. Rows, columns and classes without mass are allowed. On CUDA tensors the host
    reads a flag in every iteration.

    Args:
        p1y: P(x1, y), (..., K1, C), floating point, non-negative, each table of sum 1.
        p2y: P(x2, y), (..., K2, C), the same leading dimensions, class marginals and device.
        tolerance: a table stops when its certified gap, in bits, is at most this.
        max_iterations: a table stops after this many iterations in any case, with the gap reached so far.
    """
    batch = p1y.shape[:-2]
    p1, p2 = (p.detach().to(torch.float64).contiguous().view(-1, *p.shape[-2:]) for p in (p1y, p2y))
    solution = BrojaSolution(
        conditional_entropy=p1.new_zeros(len(p1)),
        gap=p1.new_zeros(len(p1)),
        factor1=torch.zeros_like(p1),
        factor2=torch.zeros_like(p2),
        coupling=p1.new_zeros(len(p1), p1.shape[1], p2.shape[1]),
        iterations=torch.zeros(len(p1), dtype=torch.int64, device=p1.device),
    )
    remaining = torch.arange(len(p1), device=p1.device)
    if len(p1) and (p1.is_cuda or np is None):
        _solve(torch, p1, p2, remaining, solution, tolerance, max_iterations)
    elif len(p1):
        views: list[Any] = [part.numpy() for part in solution]
        with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
            if len(p1) == 1 and p1.numel() * p2.shape[1] <= MAX_SINGLE_CELLS:
                _solve_single(p1[0].numpy(), p2[0].numpy(), BrojaSolution(*views), tolerance, max_iterations)
            else:
                _solve(
                    np,
                    p1.numpy(),
                    p2.numpy(),
                    remaining.numpy(),
                    BrojaSolution(*views),
                    tolerance,
                    max_iterations,
                )
    return BrojaSolution(*(part.reshape(batch + part.shape[1:]) for part in solution))


@dataclass
class _Tables:
    """The tables that are still iterated; n leads every shape."""

    # (n,) their places in the solution
    remaining: Array
    # (n, K1, C) float64
    p1: Array
    # (n, K2, C) float64
    p2: Array
    # (n,) float64, bits: the best bounds so far
    lower: Array
    upper: Array
    # p1, and from here on everything, in the dtype of the iterations
    q1: Array
    q2: Array
    a: Array
    b: Array
    # (n, K1, K2) extrapolated log R
    log_r: Array
    # (n, K1, K2) log R before extrapolation
    plain: Array
    r: Array
    log_w: Array
    # (n,) steps since momentum was restarted
    age: Array
    # (n,)
    restarts: Array
    # (n,) || R log W ||_1 of the last step
    change: Array

    def keep(self, index: Array) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[index])

    def cast(self, xp: Any, dtype: Any) -> None:
        for field in fields(self)[5:]:
            setattr(self, field.name, xp.asarray(getattr(self, field.name), dtype=dtype))
        self.q1, self.q2 = xp.asarray(self.p1, dtype=dtype), xp.asarray(self.p2, dtype=dtype)


def _solve(
    xp: Any, p1: Array, p2: Array, remaining: Array, solution: Any, tolerance: float, max_iterations: int
) -> None:
    """Fill `solution` for the tables p1 (n, K1, C) and p2 (n, K2, C), float64."""
    b = p2 / (p2.sum(-2)[:, None, :] + 1e-300)
    log_r = xp.log(p1 @ b.swapaxes(-1, -2) + 1e-300)
    none = 0 * p1[:, 0, 0]
    bounds = marginal_bounds(xp, p1, p2)
    t = _Tables(
        remaining,
        p1,
        p2,
        *bounds,
        p1,
        p2,
        0 * p1,
        b,
        log_r,
        log_r,
        0 * log_r,
        0 * log_r,
        none,
        none,
        none + 1,
    )
    switch = FLOAT32_ITERATIONS if tolerance >= FLOAT32_TOLERANCE else 0
    for iteration in range(1, max_iterations + 1):
        if iteration == 1 or iteration == switch + 1:
            double = iteration == switch + 1
            t.cast(xp, xp.float64 if double else xp.float32)
            floor, tiny, noise = (-60.0, 1e-290, 1e-14) if double else (-40.0, 1e-30, 1e-6)
            bottom = xp.zeros_like(t.age[0]) + floor
            t.log_r = xp.maximum(t.log_r, bottom)
        xp.exp(t.log_r, out=t.r)
        t.a, t.b = _fit(xp, t.r, t.q1, t.q2, t.a, t.b, 0.3 * t.change + noise, tiny)
        xp.matmul(t.a, t.b.swapaxes(-1, -2), out=t.log_w)
        t.log_w += tiny
        xp.log(t.log_w, out=t.log_w)
        if iteration % CHECK_EVERY == 0 or iteration in (1, max_iterations):
            _retire(xp, t, solution, tolerance, iteration, iteration in (1, max_iterations))
            if len(t.remaining) == 0:
                return
        _step(xp, t, bottom)


def _retire(xp: Any, t: _Tables, solution: Any, tolerance: float, iteration: int, certify_all: bool) -> None:
    """Certify tables that seem to have converged; write those that have to `solution` and remove them from `t`."""
    excess = (t.q1.sum(-1) * xp.amax(t.log_w, -1)).sum(-1)
    candidates = xp.where((excess < MAX_EXCESS * tolerance) | certify_all)[0]
    if len(candidates) == 0:
        return
    lower, upper = certified_bounds(
        xp, t.r[candidates], t.a[candidates], t.b[candidates], t.p1[candidates], t.p2[candidates]
    )
    t.lower[candidates] = lower = xp.maximum(t.lower[candidates], lower)
    t.upper[candidates] = upper = xp.minimum(t.upper[candidates], upper)
    gap = xp.maximum(upper - lower, 0 * lower)
    certified = gap <= tolerance
    finished = candidates if certify_all else candidates[certified]
    if len(finished):
        place = t.remaining[finished]
        solution.conditional_entropy[place] = t.lower[finished]
        solution.gap[place] = xp.maximum(t.upper[finished] - t.lower[finished], 0 * t.lower[finished])
        solution.factor1[place] = xp.asarray(t.a[finished], dtype=xp.float64)
        solution.factor2[place] = xp.asarray(t.b[finished], dtype=xp.float64)
        solution.coupling[place] = xp.asarray(t.r[finished], dtype=xp.float64)
        solution.iterations[place] = iteration
        unfinished = t.age >= 0
        unfinished[candidates[certified]] = False
        t.keep(unfinished)


def _step(xp: Any, t: _Tables, bottom: Array) -> None:
    """Do log R += log W, then Nesterov's extrapolation, restarted where it increases the objective.

    In sparse tables cells of little mass would oscillate for thousands of iterations. So momentum
    never lowers a cell that the plain step clearly raises, and after k restarts raises none by over (k + 1)^-2.
    """
    t.log_r += t.log_w
    t.r *= t.log_w
    direction = xp.subtract(t.log_r, t.plain, out=t.plain)
    uphill = xp.linalg.vecdot(_flat(t.r), _flat(direction)) < 0
    restart = uphill & (t.age > 2)
    t.restarts += restart
    t.age = xp.where(restart, 0 * t.age, t.age + 1)
    t.change = _sum(xp.abs(t.r, out=t.r))
    direction *= (t.age / (t.age + 3))[:, None, None]
    direction = xp.minimum(direction, ((t.restarts + 1) ** -2)[:, None, None])
    direction += t.log_r
    xp.maximum(direction, xp.where(t.log_w > MIN_RISING_LOG_W, t.log_r, bottom), out=direction)
    t.log_r, t.plain = direction, t.log_r


def _solve_single(p1: Array, p2: Array, solution: Any, tolerance: float, max_iterations: int) -> None:
    """The same for one NumPy table p1 (K1, C) and p2 (K2, C), the only one of `solution`."""
    rows, columns, classes = (np.flatnonzero(x) for x in (p1.sum(1), p2.sum(1), p1.sum(0)))
    # An empty table, where no sample could be counted: all of its entropies are zero.
    if not len(rows):
        return
    p1, p2 = p1[np.ix_(rows, classes)], p2[np.ix_(columns, classes)]
    q1, q2 = (np.where(p > 0, np.maximum(p, 1e-100), 0.0) for p in (p1, p2))
    a, b = np.zeros_like(q1), q2 / q2.sum(0)
    log_r = np.maximum(np.log(q1 @ b.T), -60.0)
    plain, r, log_w = log_r.copy(), np.empty_like(log_r), np.empty_like(log_r)
    rb, ra = np.empty_like(a), np.empty_like(b)
    r_t, b_t, a_flat, r_flat = (
        r.T,
        b.T,
        a.reshape(-1),
        r.reshape(-1),
        # Views: all arrays are written in place.
    )
    weight, ones_a, ones_r = (
        p1.sum(1),
        np.ones(a.size),
        np.ones(r.size),
        # A product with ones is the fastest sum.
    )
    lower, upper = (float(bound[0]) for bound in marginal_bounds(np, p1[None], p2[None]))
    age, restarts, change = 0, 0, 1.0
    for iteration in range(1, max_iterations + 1):
        np.exp(log_r, r)
        for sweep in range(MAX_SWEEPS):
            r.dot(b, rb)
            if sweep:
                np.multiply(a, rb, a)
                np.subtract(a, q1, a)
                np.abs(a, a)
                error = ones_a.dot(a_flat)
            np.divide(q1, rb, a)
            r_t.dot(a, ra)
            np.divide(q2, ra, b)
            if sweep and error < 0.3 * change + 1e-14:
                break
        a.dot(b_t, log_w)
        np.add(log_w, 1e-290, log_w)
        np.log(log_w, log_w)
        is_first_or_last = iteration in (1, max_iterations)
        if is_first_or_last or (
            iteration % CHECK_EVERY == 0 and weight.dot(log_w.max(1)) < MAX_EXCESS * tolerance
        ):
            bounds = certified_bounds(np, r[None], a[None], b[None], p1[None], p2[None])
            lower, upper = max(lower, float(bounds[0][0])), min(upper, float(bounds[1][0]))
            if upper - lower <= tolerance or iteration == max_iterations:
                break
        np.add(log_r, log_w, log_r)
        np.multiply(r, log_w, r)
        direction = np.subtract(log_r, plain, plain)
        restart = age > 2 and r_flat.dot(direction.reshape(-1)) < 0
        restarts += restart
        age = 0 if restart else age + 1
        np.abs(r, r)
        change = ones_r.dot(r_flat)
        np.multiply(direction, age / (age + 3), direction)
        if restarts:
            np.minimum(direction, (1 + restarts) ** -2.0, out=direction)
        np.add(direction, log_r, direction)
        lowest = np.where(log_w > MIN_RISING_LOG_W, log_r, -60.0)
        log_r, plain = np.maximum(direction, lowest, out=direction), log_r
    solution.conditional_entropy[0], solution.gap[0] = lower, max(upper - lower, 0.0)
    solution.factor1[0][np.ix_(rows, classes)] = a
    solution.factor2[0][np.ix_(columns, classes)] = b
    solution.coupling[0][np.ix_(rows, columns)] = r
    solution.iterations[0] = iteration


def _fit(
    xp: Any, r: Array, q1: Array, q2: Array, a: Array, b: Array, max_error: Array, tiny: float
) -> tuple[Array, Array]:
    """Scale A and B in turn, at least twice, until the first marginal's error is under `max_error`.

    The error is that before the last sweep, which needs no additional product. When at most half of the tables still
    need sweeps, only those are continued.
    """
    r_t = r.swapaxes(-1, -2)
    rb, ra = xp.empty_like(a), xp.empty_like(b)
    for sweep in range(MAX_SWEEPS):
        xp.matmul(r, b, out=rb)
        if sweep:
            a *= rb
            a -= q1
            error = _sum(xp.abs(a, out=a))
        rb += tiny
        xp.divide(q1, rb, out=a)
        xp.matmul(r_t, a, out=ra)
        ra += tiny
        xp.divide(q2, ra, out=b)
        if sweep:
            unfinished = xp.where(error >= max_error)[0]
            if len(unfinished) == 0:
                break
            if 2 * len(unfinished) <= len(a):
                part = _fit(
                    xp,
                    r[unfinished],
                    q1[unfinished],
                    q2[unfinished],
                    a[unfinished],
                    b[unfinished],
                    max_error[unfinished],
                    tiny,
                )
                a[unfinished], b[unfinished] = part
                break
    return a, b


def certified_bounds(xp: Any, r: Array, a: Array, b: Array, p1: Array, p2: Array) -> tuple[Array, Array]:
    """Bounds of max H_Q(Y | X1, X2) in bits, (n,) float64, that hold for any R, A, B >= 0."""
    tiny = xp.zeros_like(p1[0, 0, 0]) + 1e-300
    r, r_t = r + 0 * p1[:, :1, :1], (r + 0 * p1[:, :1, :1]).swapaxes(-1, -2)
    a, b = xp.maximum(a + 0 * p1, tiny), xp.maximum(b + 0 * p2, tiny)

    a_low = a * xp.minimum(p1 / (a * (r @ b) + tiny), 1 + tiny)
    b_low = b * xp.minimum(p2 / (b * (r_t @ a_low) + tiny), 1 + tiny)
    w = a_low @ b_low.swapaxes(-1, -2)
    lower = (
        _sum(r * (w * xp.log(w + tiny)))
        - _sum(a_low * (r @ b_low) * xp.log(a_low + tiny))
        - _sum(b_low * (r_t @ a_low) * xp.log(b_low + tiny))
    )

    shift1, shift2 = dual_shift(xp, a, b, p1.sum(-1), p2.sum(-1))
    upper = _sum(p1 * (shift1[..., None] - xp.log(a))) + _sum(p2 * (shift2[..., None] - xp.log(b)))
    return xp.where(lower > 0, lower, 0 * lower) / LN2, xp.where(upper < 1e300, upper, 1e300) / LN2


def dual_shift(xp: Any, a: Array, b: Array, p1: Array, p2: Array) -> tuple[Array, Array]:
    """s1 (..., K1) and s2 (..., K2), in nats, with log(A B^T) <= s1 + s2 on every cell that can have mass.

    A exp(-s1) and B exp(-s2) are feasible for the dual. Of "rows first" and "columns first" the pair with the
    smaller cost p1 s1 + p2 s2 is returned; p1 (..., K1) and p2 (..., K2) are the distributions of X1 and X2.
    """
    dead1, dead2 = xp.where(p1 > 0, 0 * p1, -1e30), xp.where(p2 > 0, 0 * p2, -1e30)
    excess = xp.log(a @ b.swapaxes(-1, -2) + 1e-300) + dead1[..., None] + dead2[..., None, :]
    lowest = 0 * p1[..., :1] - 1e4
    row1 = xp.maximum(xp.amax(excess, -1), lowest)
    row2 = xp.maximum(xp.amax(excess - row1[..., None], -2), lowest)
    column2 = xp.maximum(xp.amax(excess, -2), lowest)
    column1 = xp.maximum(xp.amax(excess - column2[..., None, :], -1), lowest)
    row_cost = (p1 * row1).sum(-1) + (p2 * row2).sum(-1)
    rows_first = (row_cost <= (p1 * column1).sum(-1) + (p2 * column2).sum(-1))[..., None]
    return xp.where(rows_first, row1, column1), xp.where(rows_first, row2, column2)


def marginal_bounds(xp: Any, p1: Array, p2: Array) -> tuple[Array, Array]:
    """Bounds of the marginals: H(Y|X1) + H(Y|X2) - H(Y) <= max H_Q(Y|X1,X2) <= min(H(Y|X1), H(Y|X2))."""
    given1 = _entropy(xp, _flat(p1)) - _entropy(xp, p1.sum(-1))
    given2 = _entropy(xp, _flat(p2)) - _entropy(xp, p2.sum(-1))
    lower = given1 + given2 - _entropy(xp, p1.sum(-2))
    return xp.maximum(lower, 0 * lower), xp.minimum(given1, given2)


def _entropy(xp: Any, p: Array) -> Array:
    return -(p * xp.log(p + 1e-300)).sum(-1) / LN2


def _sum(x: Array) -> Array:
    return _flat(x).sum(-1)


def _flat(x: Array) -> Array:
    return x.reshape(len(x), -1)
