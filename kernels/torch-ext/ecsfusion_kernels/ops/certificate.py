"""The certificate of a solution A, R, B: bounds of the optimum that hold whatever the iterations did.

`bounds` runs in float32 inside the solver, to tell when a table is done, and once more in float64 for what is
reported. A program works on one table, in tiles, with a barrier between a store and loads by other threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..factors import coupled, factored, tile_at
from ..language import Variant, jit, options, tl
from ..reference.broja import LN2

__all__ = []

# The smallest sides of a matrix product, because float64 numbers take two registers each.
TILE = CLASSES = 16


@jit
def _shift(
    log_w_ptr, mass1_ptr, mass2_ptr, given_ptr, out_ptr, num1, num2, row_stride, column_stride, GIVEN, TILE
):
    """out(x1) = the largest log W(x1, x2) - given(x2) of all x2 with mass. Returns sum p(x1) out(x1)."""
    dtype = log_w_ptr.dtype.element_ty
    cost = tl.full((), 0.0, dtype)
    for row in range(0, num1, TILE):
        rows = row + tl.arange(0, TILE)
        largest = tl.full((TILE,), -1e4, dtype)
        for column in range(0, num2, TILE):
            columns = column + tl.arange(0, TILE)
            excess = tl.load(tile_at(log_w_ptr, row, column, row_stride, column_stride, TILE, TILE))
            if GIVEN:
                excess -= tl.load(given_ptr + columns)[None, :]
            excess = tl.where((tl.load(mass2_ptr + columns) > 0)[None, :], excess, -1e4)
            largest = tl.maximum(largest, tl.max(excess, 1))
        tl.store(out_ptr + rows, largest)
        cost += tl.sum(tl.load(mass1_ptr + rows).to(dtype) * largest)
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
    num_classes,
    r_stride,
    factor_stride,
    TINY: tl.constexpr,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Bounds of max H_Q(Y | X1, X2) in nats that hold for any R, A, B >= 0, but for rounding; log_w is log A B^T.

    Lower: A and B scaled down into the marginals; what would complete Q can only add entropy. Upper: the dual, A and
    B divided by the largest W of a row, then of a column (or the other way round), so that A B^T <= 1.
    """
    dtype = q1_ptr.dtype.element_ty
    lower, upper = tl.full((), 0.0, dtype), tl.full((), 0.0, dtype)
    for row in range(0, num1, TILE):
        for label in range(0, num_classes, CLASSES):
            rb = coupled(r_ptr, b_ptr, row, label, num2, r_stride, 1, factor_stride, TILE, CLASSES)
            a = tl.load(tile_at(a_ptr, row, label, factor_stride, 1, TILE, CLASSES))
            q1 = tl.load(tile_at(q1_ptr, row, label, factor_stride, 1, TILE, CLASSES))
            upper -= tl.sum(q1 * tl.log(a + TINY))
            a *= tl.minimum(q1 / (a * rb + TINY), 1.0)
            tl.store(tile_at(a_low_ptr, row, label, factor_stride, 1, TILE, CLASSES), a)
    tl.debug_barrier()
    for column in range(0, num2, TILE):
        for label in range(0, num_classes, CLASSES):
            ra = coupled(r_ptr, a_low_ptr, column, label, num1, 1, r_stride, factor_stride, TILE, CLASSES)
            b = tl.load(tile_at(b_ptr, column, label, factor_stride, 1, TILE, CLASSES))
            q2 = tl.load(tile_at(q2_ptr, column, label, factor_stride, 1, TILE, CLASSES))
            upper -= tl.sum(q2 * tl.log(b + TINY))
            b *= tl.minimum(q2 / (b * ra + TINY), 1.0)
            lower -= tl.sum(b * ra * tl.log(b + TINY))
            tl.store(tile_at(b_low_ptr, column, label, factor_stride, 1, TILE, CLASSES), b)
    tl.debug_barrier()
    for row in range(0, num1, TILE):
        for label in range(0, num_classes, CLASSES):
            rb = coupled(r_ptr, b_low_ptr, row, label, num2, r_stride, 1, factor_stride, TILE, CLASSES)
            a = tl.load(tile_at(a_low_ptr, row, label, factor_stride, 1, TILE, CLASSES))
            lower -= tl.sum(a * rb * tl.log(a + TINY))
        for column in range(0, num2, TILE):
            w = factored(a_low_ptr, b_low_ptr, row, column, num_classes, factor_stride, TILE, CLASSES)
            r = tl.load(tile_at(r_ptr, row, column, r_stride, 1, TILE, TILE)).to(dtype)
            lower += tl.sum(r * w * tl.log(w + TINY))
    # Rows first, then columns first: the smaller cost counts.
    rows = _shift(
        log_w_ptr, mass1_ptr, mass2_ptr, shift2_ptr, shift1_ptr, num1, num2, r_stride, 1, False, TILE
    )
    rows += _shift(
        log_w_ptr, mass2_ptr, mass1_ptr, shift1_ptr, shift2_ptr, num2, num1, 1, r_stride, True, TILE
    )
    columns = _shift(
        log_w_ptr, mass2_ptr, mass1_ptr, shift1_ptr, shift2_ptr, num2, num1, 1, r_stride, False, TILE
    )
    columns += _shift(
        log_w_ptr, mass1_ptr, mass2_ptr, shift2_ptr, shift1_ptr, num1, num2, r_stride, 1, True, TILE
    )
    return lower, upper + tl.minimum(rows, columns)


@jit
def _conditional(
    p_ptr, mass_ptr, size, num_classes, factor_stride, TILE: tl.constexpr, CLASSES: tl.constexpr
):
    """H(Y | X) in nats of P(x, y); stores P(x)."""
    entropy = tl.full((), 0.0, tl.float64)
    for row in range(0, size, TILE):
        whole = tl.zeros(
            (TILE, CLASSES),
            tl.float64,
            # Summed after the loop: Triton 3.6 fails on a sum inside a loop that is used twice after it.
        )
        for label in range(0, num_classes, CLASSES):
            p = tl.load(tile_at(p_ptr, row, label, factor_stride, 1, TILE, CLASSES))
            entropy -= tl.sum(p * tl.log(p + 1e-300))
            whole += p
        mass = tl.sum(whole, 1)
        tl.store(mass_ptr + row + tl.arange(0, TILE), mass)
        entropy += tl.sum(mass * tl.log(mass + 1e-300))
    return entropy


@jit(do_not_specialize=["num1", "num2", "num_classes"])
def _marginals(
    p1_ptr,
    p2_ptr,
    mass1_ptr,
    mass2_ptr,
    lower_ptr,
    upper_ptr,
    num1: tl.int32,
    num2: tl.int32,
    num_classes: tl.int32,
    factor_stride: tl.int32,
    LN2: tl.constexpr,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """H(Y|X1) + H(Y|X2) - H(Y) <= max H_Q(Y|X1,X2) <= min(H(Y|X1), H(Y|X2)), in bits; P(x1) and P(x2)."""
    table = tl.program_id(0).to(tl.int64)
    p1_ptr, p2_ptr = p1_ptr + table * num1 * factor_stride, p2_ptr + table * num2 * factor_stride
    given1 = _conditional(p1_ptr, mass1_ptr + table * num1, num1, num_classes, factor_stride, TILE, CLASSES)
    given2 = _conditional(p2_ptr, mass2_ptr + table * num2, num2, num_classes, factor_stride, TILE, CLASSES)
    entropy = tl.full((), 0.0, tl.float64)
    for label in range(0, num_classes, CLASSES):
        whole = tl.zeros((TILE, CLASSES), tl.float64)
        for row in range(0, num1, TILE):
            whole += tl.load(tile_at(p1_ptr, row, label, factor_stride, 1, TILE, CLASSES))
        mass = tl.sum(whole, 0)
        entropy -= tl.sum(mass * tl.log(mass + 1e-300))
    # A bare number would be rounded to float32.
    bit = tl.full((), LN2, tl.float64)
    tl.store(lower_ptr + table, tl.maximum(given1 + given2 - entropy, 0.0) / bit)
    tl.store(upper_ptr + table, tl.minimum(given1, given2) / bit)


@jit(do_not_specialize=["num1", "num2", "num_classes"])
def _certify(
    p1_ptr,
    p2_ptr,
    mass1_ptr,
    mass2_ptr,
    fitted1_ptr,
    fitted2_ptr,
    r_ptr,
    marginal_lower_ptr,
    marginal_upper_ptr,
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
    num_classes: tl.int32,
    r_stride: tl.int32,
    factor_stride: tl.int32,
    LN2: tl.constexpr,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """The better of `bounds` in float64 and of those that the marginals alone give, in bits."""
    table = tl.program_id(0).to(tl.int64)
    first, second, pair = table * num1 * factor_stride, table * num2 * factor_stride, table * num1 * r_stride
    a_ptr, b_ptr, log_w_ptr = a_ptr + first, b_ptr + second, log_w_ptr + pair
    # 0 is replaced by a number so small that it has no weight, but whose logarithm in the dual is finite.
    for label in range(0, num_classes, CLASSES):
        for row in range(0, num1, TILE):
            a = tl.load(tile_at(fitted1_ptr + first, row, label, factor_stride, 1, TILE, CLASSES)).to(
                tl.float64
            )
            tl.store(tile_at(a_ptr, row, label, factor_stride, 1, TILE, CLASSES), tl.maximum(a, 1e-300))
        for column in range(0, num2, TILE):
            b = tl.load(tile_at(fitted2_ptr + second, column, label, factor_stride, 1, TILE, CLASSES)).to(
                tl.float64
            )
            tl.store(tile_at(b_ptr, column, label, factor_stride, 1, TILE, CLASSES), tl.maximum(b, 1e-300))
    tl.debug_barrier()
    for row in range(0, num1, TILE):
        for column in range(0, num2, TILE):
            w = factored(a_ptr, b_ptr, row, column, num_classes, factor_stride, TILE, CLASSES)
            tl.store(tile_at(log_w_ptr, row, column, r_stride, 1, TILE, TILE), tl.log(w + 1e-300))
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
        num_classes,
        r_stride,
        factor_stride,
        1e-300,
        TILE,
        CLASSES,
    )
    # A bare number would be rounded to float32.
    bit = tl.full((), LN2, tl.float64)
    marginal_lower, marginal_upper = tl.load(marginal_lower_ptr + table), tl.load(marginal_upper_ptr + table)
    # Comparisons with NaN are false: then the marginals' bounds stay.
    lower, upper = lower / bit, upper / bit
    lower, upper = (
        tl.where(lower > marginal_lower, lower, marginal_lower),
        tl.where(upper < marginal_upper, upper, marginal_upper),
    )
    tl.store(lower_ptr + table, lower)
    tl.store(gap_ptr + table, tl.maximum(upper - lower, 0.0))


def marginals(p1: Tensor, p2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """P(x1), P(x2) and the bounds of the marginals for padded float64 tables (B, K1, C) and (B, K2, C)."""
    (num_tables, num1, num_classes), num2 = p1.shape, p2.shape[1]
    mass1, mass2, lower, upper = (
        p1.new_empty(shape) for shape in ((num_tables, num1), (num_tables, num2), num_tables, num_tables)
    )
    sizes = (num1, num2, num_classes, num_classes)
    _marginals[(num_tables,)](
        p1, p2, mass1, mass2, lower, upper, *sizes, LN2=LN2, TILE=TILE, CLASSES=CLASSES, **options(4)
    )
    return mass1, mass2, lower, upper


def certify(
    p1: Tensor,
    p2: Tensor,
    mass1: Tensor,
    mass2: Tensor,
    fitted1: Tensor,
    fitted2: Tensor,
    r: Tensor,
    marginal_lower: Tensor,
    marginal_upper: Tensor,
) -> tuple[Tensor, Tensor]:
    """The certified lower bound and the gap, (B,) float64 bits, of padded factors A, B and R in float32."""
    (num_tables, num1, num_classes), num2 = p1.shape, p2.shape[1]
    lower, gap = torch.empty_like(marginal_lower), torch.empty_like(marginal_upper)
    a, b, a_low, b_low = (torch.empty_like(p) for p in (p1, p2, p1, p2))
    log_w = p1.new_empty(num_tables, num1, num2)
    state = (a, b, a_low, b_low, log_w, torch.empty_like(mass1), torch.empty_like(mass2))
    sizes = (num1, num2, num_classes, num2, num_classes)
    given = (p1, p2, mass1, mass2, fitted1, fitted2, r, marginal_lower, marginal_upper)
    _certify[(num_tables,)](
        *given, lower, gap, *state, *sizes, LN2=LN2, TILE=TILE, CLASSES=CLASSES, **options(4)
    )
    return lower, gap


def variants() -> list[Variant]:
    """Every compilation that the launchers can ask for."""
    constants = {"LN2": LN2, "TILE": TILE, "CLASSES": CLASSES}
    names = ["p1", "p2", "mass1", "mass2", "lower"]
    marginals_types = {f"{name}_ptr": "*fp64" for name in (*names, "upper")}
    marginals_types |= dict.fromkeys(("num1", "num2", "num_classes", "factor_stride"), "i32")
    names += [
        "marginal_lower",
        "marginal_upper",
        "gap",
        "a",
        "b",
        "a_low",
        "b_low",
        "log_w",
        "shift1",
        "shift2",
    ]
    types = {f"{name}_ptr": "*fp64" for name in names}
    types |= {f"{name}_ptr": "*fp32" for name in ("fitted1", "fitted2", "r")}
    types |= dict.fromkeys(("num1", "num2", "num_classes", "r_stride", "factor_stride"), "i32")
    return [
        Variant(_marginals, marginals_types, constants, num_warps=4),
        Variant(_certify, types, constants, num_warps=4),
    ]
