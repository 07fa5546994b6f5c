"""The certificate of a solution A, R, B: bounds of the optimum that hold whatever the iterations did.

`bounds` runs in float32 inside the solver, to tell when a table is done, and once more in float64 for what is
reported. A program works on one table, in tiles, with a barrier between a store and loads by other threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .factors import at, coupled, factored
from .language import Variant, jit, options, tl

TILE = CLASSES = 16  # the least that a matrix product takes: float64 has twice the registers


@jit
def _shift(
    log_w_ptr, mass1_ptr, mass2_ptr, given_ptr, out_ptr, num1, num2, stride_row, stride_column, GIVEN, TILE
):
    """out(x1) = the largest log W(x1, x2) - given(x2) of all x2 with mass. Returns sum p(x1) out(x1)."""
    number = log_w_ptr.dtype.element_ty
    cost = tl.full((), 0.0, number)
    for row in range(0, num1, TILE):
        rows = row + tl.arange(0, TILE)
        largest = tl.full((TILE,), -1e4, number)
        for column in range(0, num2, TILE):
            columns = column + tl.arange(0, TILE)
            excess = tl.load(at(log_w_ptr, row, column, stride_row, stride_column, TILE, TILE))
            if GIVEN:
                excess -= tl.load(given_ptr + columns)[None, :]
            excess = tl.where((tl.load(mass2_ptr + columns) > 0)[None, :], excess, -1e4)
            largest = tl.maximum(largest, tl.max(excess, 1))
        tl.store(out_ptr + rows, largest)
        cost += tl.sum(tl.load(mass1_ptr + rows).to(number) * largest)
    tl.debug_barrier()
    return cost


@jit
def bounds(
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
    TINY: tl.constexpr,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Bounds of max H_Q(Y | X1, X2) in nats that hold for any R, A, B >= 0, but for rounding; log_w is log A B^T.

    Lower: A and B scaled down into the marginals; what would complete Q can only add entropy. Upper: the dual, A and
    B divided by the largest W of a row, then of a column (or the other way round), so that A B^T <= 1.
    """
    number = q1_ptr.dtype.element_ty
    lower, upper = tl.full((), 0.0, number), tl.full((), 0.0, number)
    for row in range(0, num1, TILE):
        for label in range(0, classes, CLASSES):
            rb = coupled(r_ptr, b_ptr, row, label, num2, stride_r, 1, stride_a, TILE, CLASSES)
            a = tl.load(at(a_ptr, row, label, stride_a, 1, TILE, CLASSES))
            q1 = tl.load(at(q1_ptr, row, label, stride_a, 1, TILE, CLASSES))
            upper -= tl.sum(q1 * tl.log(a + TINY))
            a *= tl.minimum(q1 / (a * rb + TINY), 1.0)
            tl.store(at(a_low_ptr, row, label, stride_a, 1, TILE, CLASSES), a)
    tl.debug_barrier()
    for column in range(0, num2, TILE):
        for label in range(0, classes, CLASSES):
            ra = coupled(r_ptr, a_low_ptr, column, label, num1, 1, stride_r, stride_a, TILE, CLASSES)
            b = tl.load(at(b_ptr, column, label, stride_a, 1, TILE, CLASSES))
            q2 = tl.load(at(q2_ptr, column, label, stride_a, 1, TILE, CLASSES))
            upper -= tl.sum(q2 * tl.log(b + TINY))
            b *= tl.minimum(q2 / (b * ra + TINY), 1.0)
            lower -= tl.sum(b * ra * tl.log(b + TINY))
            tl.store(at(b_low_ptr, column, label, stride_a, 1, TILE, CLASSES), b)
    tl.debug_barrier()
    for row in range(0, num1, TILE):
        for label in range(0, classes, CLASSES):
            rb = coupled(r_ptr, b_low_ptr, row, label, num2, stride_r, 1, stride_a, TILE, CLASSES)
            a = tl.load(at(a_low_ptr, row, label, stride_a, 1, TILE, CLASSES))
            lower -= tl.sum(a * rb * tl.log(a + TINY))
        for column in range(0, num2, TILE):
            w = factored(a_low_ptr, b_low_ptr, row, column, classes, stride_a, TILE, CLASSES)
            r = tl.load(at(r_ptr, row, column, stride_r, 1, TILE, TILE)).to(number)
            lower += tl.sum(r * w * tl.log(w + TINY))
    # Rows first, then columns first: the smaller cost counts.
    rows = _shift(
        log_w_ptr, mass1_ptr, mass2_ptr, shift2_ptr, shift1_ptr, num1, num2, stride_r, 1, False, TILE
    )
    rows += _shift(
        log_w_ptr, mass2_ptr, mass1_ptr, shift1_ptr, shift2_ptr, num2, num1, 1, stride_r, True, TILE
    )
    columns = _shift(
        log_w_ptr, mass2_ptr, mass1_ptr, shift1_ptr, shift2_ptr, num2, num1, 1, stride_r, False, TILE
    )
    columns += _shift(
        log_w_ptr, mass1_ptr, mass2_ptr, shift2_ptr, shift1_ptr, num1, num2, stride_r, 1, True, TILE
    )
    return lower, upper + tl.minimum(rows, columns)


@jit
def _conditional(p_ptr, mass_ptr, size, classes, stride, TILE: tl.constexpr, CLASSES: tl.constexpr):
    """H(Y | X) in nats of P(x, y); stores P(x)."""
    entropy = tl.full((), 0.0, tl.float64)
    for row in range(0, size, TILE):
        whole = tl.zeros(
            (TILE, CLASSES), tl.float64
        )  # Triton 3.6 cannot sum within a loop what is used twice after it
        for label in range(0, classes, CLASSES):
            p = tl.load(at(p_ptr, row, label, stride, 1, TILE, CLASSES))
            entropy -= tl.sum(p * tl.log(p + 1e-300))
            whole += p
        mass = tl.sum(whole, 1)
        tl.store(mass_ptr + row + tl.arange(0, TILE), mass)
        entropy += tl.sum(mass * tl.log(mass + 1e-300))
    return entropy


@jit
def _marginals(
    p1_ptr,
    p2_ptr,
    mass1_ptr,
    mass2_ptr,
    lower_ptr,
    upper_ptr,
    num1: tl.int32,
    num2: tl.int32,
    classes: tl.int32,
    stride: tl.int32,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """H(Y|X1) + H(Y|X2) - H(Y) <= max H_Q(Y|X1,X2) <= min(H(Y|X1), H(Y|X2)), in bits; P(x1) and P(x2)."""
    table = tl.program_id(0).to(tl.int64)
    p1_ptr, p2_ptr = p1_ptr + table * num1 * stride, p2_ptr + table * num2 * stride
    given1 = _conditional(p1_ptr, mass1_ptr + table * num1, num1, classes, stride, TILE, CLASSES)
    given2 = _conditional(p2_ptr, mass2_ptr + table * num2, num2, classes, stride, TILE, CLASSES)
    entropy = tl.full((), 0.0, tl.float64)
    for label in range(0, classes, CLASSES):
        whole = tl.zeros((TILE, CLASSES), tl.float64)
        for row in range(0, num1, TILE):
            whole += tl.load(at(p1_ptr, row, label, stride, 1, TILE, CLASSES))
        mass = tl.sum(whole, 0)
        entropy -= tl.sum(mass * tl.log(mass + 1e-300))
    bit = tl.full((), 0.6931471805599453, tl.float64)  # a bare number would be rounded to float32
    tl.store(lower_ptr + table, tl.maximum(given1 + given2 - entropy, 0.0) / bit)
    tl.store(upper_ptr + table, tl.minimum(given1, given2) / bit)


@jit
def _certify(
    p1_ptr,
    p2_ptr,
    mass1_ptr,
    mass2_ptr,
    fitted1_ptr,
    fitted2_ptr,
    r_ptr,
    least_ptr,
    most_ptr,
    lower_ptr,
    gap_ptr,
    a_ptr,
    b_ptr,
    a_low_ptr,
    b_low_ptr,
    log_w_ptr,
    shift1_ptr,
    shift2_ptr,
    num1: tl.int32,
    num2: tl.int32,
    classes: tl.int32,
    stride_r: tl.int32,
    stride_a: tl.int32,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """The better of `bounds` in float64 and of those that the marginals alone give, in bits."""
    table = tl.program_id(0).to(tl.int64)
    first, second, pair = table * num1 * stride_a, table * num2 * stride_a, table * num1 * stride_r
    a_ptr, b_ptr, log_w_ptr = a_ptr + first, b_ptr + second, log_w_ptr + pair
    # A number so small that the dual's logarithm of it is still one, instead of 0.
    for label in range(0, classes, CLASSES):
        for row in range(0, num1, TILE):
            a = tl.load(at(fitted1_ptr + first, row, label, stride_a, 1, TILE, CLASSES)).to(tl.float64)
            tl.store(at(a_ptr, row, label, stride_a, 1, TILE, CLASSES), tl.maximum(a, 1e-300))
        for column in range(0, num2, TILE):
            b = tl.load(at(fitted2_ptr + second, column, label, stride_a, 1, TILE, CLASSES)).to(tl.float64)
            tl.store(at(b_ptr, column, label, stride_a, 1, TILE, CLASSES), tl.maximum(b, 1e-300))
    tl.debug_barrier()
    for row in range(0, num1, TILE):
        for column in range(0, num2, TILE):
            w = factored(a_ptr, b_ptr, row, column, classes, stride_a, TILE, CLASSES)
            tl.store(at(log_w_ptr, row, column, stride_r, 1, TILE, TILE), tl.log(w + 1e-300))
    tl.debug_barrier()
    lower, upper = bounds(
        p1_ptr + first,
        p2_ptr + second,
        mass1_ptr + table * num1,
        mass2_ptr + table * num2,
        a_ptr,
        b_ptr,
        a_low_ptr + first,
        b_low_ptr + second,
        r_ptr + pair,
        log_w_ptr,
        shift1_ptr + table * num1,
        shift2_ptr + table * num2,
        num1,
        num2,
        classes,
        stride_r,
        stride_a,
        1e-300,
        TILE,
        CLASSES,
    )
    bit = tl.full((), 0.6931471805599453, tl.float64)  # a bare number would be rounded to float32
    least, most = tl.load(least_ptr + table), tl.load(most_ptr + table)
    # Comparisons with NaN are false: then the marginals' bounds stay.
    lower, upper = lower / bit, upper / bit
    lower, upper = tl.where(lower > least, lower, least), tl.where(upper < most, upper, most)
    tl.store(lower_ptr + table, lower)
    tl.store(gap_ptr + table, tl.maximum(upper - lower, 0.0))


def marginals(p1: Tensor, p2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """P(x1), P(x2) and the bounds of the marginals for padded float64 tables (B, K1, C) and (B, K2, C)."""
    (count, num1, classes), num2 = p1.shape, p2.shape[1]
    mass1, mass2, lower, upper = (
        p1.new_empty(shape) for shape in ((count, num1), (count, num2), count, count)
    )
    sizes = (num1, num2, classes, classes)
    _marginals[(count,)](p1, p2, mass1, mass2, lower, upper, *sizes, TILE=TILE, CLASSES=CLASSES, **options(4))
    return mass1, mass2, lower, upper


def certify(
    p1: Tensor,
    p2: Tensor,
    mass1: Tensor,
    mass2: Tensor,
    fitted1: Tensor,
    fitted2: Tensor,
    r: Tensor,
    least: Tensor,
    most: Tensor,
) -> tuple[Tensor, Tensor]:
    """The certified lower bound and the gap, (B,) float64 bits, of padded factors A, B and R in float32."""
    (count, num1, classes), num2 = p1.shape, p2.shape[1]
    lower, gap = torch.empty_like(least), torch.empty_like(most)
    a, b, a_low, b_low = (torch.empty_like(p) for p in (p1, p2, p1, p2))
    log_w = p1.new_empty(count, num1, num2)
    state = (a, b, a_low, b_low, log_w, torch.empty_like(mass1), torch.empty_like(mass2))
    sizes = (num1, num2, classes, num2, classes)
    given = (p1, p2, mass1, mass2, fitted1, fitted2, r, least, most)
    _certify[(count,)](*given, lower, gap, *state, *sizes, TILE=TILE, CLASSES=CLASSES, **options(4))
    return lower, gap


def variants() -> list[Variant]:
    """Every compilation that the launchers can ask for."""
    constants = {"TILE": TILE, "CLASSES": CLASSES}
    names = ["p1", "p2", "mass1", "mass2", "lower"]
    marginals_types = {f"{name}_ptr": "*fp64" for name in (*names, "upper")}
    marginals_types |= dict.fromkeys(("num1", "num2", "classes", "stride"), "i32")
    names += ["least", "most", "gap", "a", "b", "a_low", "b_low", "log_w", "shift1", "shift2"]
    types = {f"{name}_ptr": "*fp64" for name in names}
    types |= {f"{name}_ptr": "*fp32" for name in ("fitted1", "fitted2", "r")}
    types |= dict.fromkeys(("num1", "num2", "classes", "stride_r", "stride_a"), "i32")
    return [
        Variant(_marginals, marginals_types, constants, num_warps=4),
        Variant(_certify, types, constants, num_warps=4),
    ]
