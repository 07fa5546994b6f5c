"""The certificate of a solution A, R, B: bounds of the optimum that hold whatever the iterations did.

`bounds` runs in float32 inside the solver, to tell when a table is done, and once more in float64 for what is
reported. A program works on one table, in tiles, with a barrier between a store and loads by other threads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..factors import coupled, factored, tile_at
from ..language import Variant, aligned, jit, options, tl
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
def _given_tile(given_ptr, row, label, size, classes, TILE: tl.constexpr, CLASSES: tl.constexpr):
    """A tile of a table (size, classes), with zeros around it."""
    rows, labels = row + tl.arange(0, TILE), label + tl.arange(0, CLASSES)
    inside = (rows < size)[:, None] & (labels < classes)[None, :]
    return tl.load(tile_at(given_ptr, row, label, classes, 1, TILE, CLASSES), inside, other=0.0)


@jit
def _conditional(
    given_ptr,
    p_ptr,
    q_ptr,
    mass_ptr,
    size,
    classes,
    num_rows,
    num_classes,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """H(Y | X) in nats of P(x, y); stores P(x), and P(x, y) with zeros up to whole tiles, in float64 and float32."""
    entropy = tl.full((), 0.0, tl.float64)
    for row in range(0, num_rows, TILE):
        whole = tl.zeros(
            (TILE, CLASSES),
            tl.float64,
            # Summed after the loop: Triton 3.6 fails on a sum inside a loop that is used twice after it.
        )
        for label in range(0, num_classes, CLASSES):
            p = _given_tile(given_ptr, row, label, size, classes, TILE, CLASSES)
            tl.store(tile_at(p_ptr, row, label, num_classes, 1, TILE, CLASSES), p)
            tl.store(tile_at(q_ptr, row, label, num_classes, 1, TILE, CLASSES), p.to(tl.float32))
            entropy -= tl.sum(p * tl.log(p + 1e-300))
            whole += p
        mass = tl.sum(whole, 1)
        tl.store(mass_ptr + row + tl.arange(0, TILE), mass)
        entropy += tl.sum(mass * tl.log(mass + 1e-300))
    return entropy


@jit(do_not_specialize=["size1", "size2", "classes", "num1", "num2", "num_classes"])
def _marginals(
    given1_ptr,
    given2_ptr,
    p1_ptr,
    p2_ptr,
    q1_ptr,
    q2_ptr,
    a_ptr,
    mass1_ptr,
    mass2_ptr,
    lower_ptr,
    upper_ptr,
    size1: tl.int32,
    size2: tl.int32,
    classes: tl.int32,
    num1: tl.int32,
    num2: tl.int32,
    num_classes: tl.int32,
    LN2: tl.constexpr,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """H(Y|X1) + H(Y|X2) - H(Y) <= max H_Q(Y|X1,X2) <= min(H(Y|X1), H(Y|X2)), in bits; tables in whole tiles; A = 0."""
    table = tl.program_id(0).to(tl.int64)
    first, second = table * num1 * num_classes, table * num2 * num_classes
    given1_ptr += table * size1 * classes
    given2_ptr += table * size2 * classes
    given1 = _conditional(
        given1_ptr,
        p1_ptr + first,
        q1_ptr + first,
        mass1_ptr + table * num1,
        size1,
        classes,
        num1,
        num_classes,
        TILE,
        CLASSES,
    )
    given2 = _conditional(
        given2_ptr,
        p2_ptr + second,
        q2_ptr + second,
        mass2_ptr + table * num2,
        size2,
        classes,
        num2,
        num_classes,
        TILE,
        CLASSES,
    )
    entropy = tl.full((), 0.0, tl.float64)
    for label in range(0, num_classes, CLASSES):
        whole = tl.zeros((TILE, CLASSES), tl.float64)
        for row in range(0, num1, TILE):
            whole += _given_tile(given1_ptr, row, label, size1, classes, TILE, CLASSES)
            place = tile_at(a_ptr + first, row, label, num_classes, 1, TILE, CLASSES)
            tl.store(place, tl.zeros((TILE, CLASSES), tl.float32))
        mass = tl.sum(whole, 0)
        entropy -= tl.sum(mass * tl.log(mass + 1e-300))
    # A bare number would be rounded to float32.
    bit = tl.full((), LN2, tl.float64)
    tl.store(lower_ptr + table, tl.maximum(given1 + given2 - entropy, 0.0) / bit)
    tl.store(upper_ptr + table, tl.minimum(given1, given2) / bit)


@jit
def _store_part(out_ptr, part, row, column, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of a table with zeros around it goes to its place in the table (height, width)."""
    rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    tl.store(tile_at(out_ptr, row, column, width, 1, ROWS, COLUMNS), part, inside)


@jit(do_not_specialize=["size1", "size2", "classes", "num1", "num2", "num_classes"])
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
    out1_ptr,
    out2_ptr,
    out_r_ptr,
    a_ptr,
    b_ptr,
    a_low_ptr,
    b_low_ptr,
    log_w_ptr,
    shift1_ptr,
    shift2_ptr,
    size1: tl.int32,
    size2: tl.int32,
    classes: tl.int32,
    num1: tl.int32,
    num2: tl.int32,
    num_classes: tl.int32,
    r_stride: tl.int32,
    factor_stride: tl.int32,
    LN2: tl.constexpr,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """The better of `bounds` in float64 and of those of the marginals alone, in bits; A, B and R in float64."""
    table = tl.program_id(0).to(tl.int64)
    first, second, pair = table * num1 * factor_stride, table * num2 * factor_stride, table * num1 * r_stride
    a_ptr, b_ptr, log_w_ptr = a_ptr + first, b_ptr + second, log_w_ptr + pair
    out1_ptr += table * size1 * classes
    out2_ptr += table * size2 * classes
    out_r_ptr += table * size1 * size2
    # 0 is replaced by a number so small that it has no weight, but whose logarithm in the dual is finite.
    for label in range(0, num_classes, CLASSES):
        for row in range(0, num1, TILE):
            a = tl.load(tile_at(fitted1_ptr + first, row, label, factor_stride, 1, TILE, CLASSES)).to(
                tl.float64
            )
            _store_part(out1_ptr, a, row, label, size1, classes, TILE, CLASSES)
            tl.store(tile_at(a_ptr, row, label, factor_stride, 1, TILE, CLASSES), tl.maximum(a, 1e-300))
        for column in range(0, num2, TILE):
            b = tl.load(tile_at(fitted2_ptr + second, column, label, factor_stride, 1, TILE, CLASSES)).to(
                tl.float64
            )
            _store_part(out2_ptr, b, column, label, size2, classes, TILE, CLASSES)
            tl.store(tile_at(b_ptr, column, label, factor_stride, 1, TILE, CLASSES), tl.maximum(b, 1e-300))
    tl.debug_barrier()
    for row in range(0, num1, TILE):
        for column in range(0, num2, TILE):
            w = factored(a_ptr, b_ptr, row, column, num_classes, factor_stride, TILE, CLASSES)
            tl.store(tile_at(log_w_ptr, row, column, r_stride, 1, TILE, TILE), tl.log(w + 1e-300))
            r = tl.load(tile_at(r_ptr + pair, row, column, r_stride, 1, TILE, TILE)).to(tl.float64)
            _store_part(out_r_ptr, r, row, column, size1, size2, TILE, TILE)
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


class Marginals(NamedTuple):
    """Tables (B, K1, C) and (B, K2, C) with zeros up to whole tiles, and what follows from them alone."""

    p1: Tensor
    """(B, M1, W) float64."""
    p2: Tensor
    q1: Tensor
    """The same in float32."""
    q2: Tensor
    a: Tensor
    """Zeros, like q1."""
    mass1: Tensor
    """(B, M1) float64: P(x1)."""
    mass2: Tensor
    lower: Tensor
    """(B,) float64: the bounds of the marginals, in bits."""
    upper: Tensor


def marginals(given1: Tensor, given2: Tensor, tile: int, class_block: int) -> Marginals:
    """`Marginals` of float64 tables (B, K1, C) and (B, K2, C), in tiles of so many rows and classes."""
    (num_tables, size1, classes), size2 = given1.shape, given2.shape[1]
    num1, num2 = (-(-size // tile) * tile for size in (size1, size2))
    num_classes = -(-classes // class_block) * class_block
    shapes = [(num_tables, num1, num_classes), (num_tables, num2, num_classes)]
    p1, p2 = (given1.new_empty(shape) for shape in shapes)
    q1, q2, a = (given1.new_empty(shape, dtype=torch.float32) for shape in (*shapes, shapes[0]))
    mass1, mass2, lower, upper = (
        given1.new_empty(shape) for shape in ((num_tables, num1), (num_tables, num2), num_tables, num_tables)
    )
    found = Marginals(p1, p2, q1, q2, a, mass1, mass2, lower, upper)
    sizes = (size1, size2, classes, num1, num2, num_classes)
    _marginals[(num_tables,)](
        aligned(given1),
        aligned(given2),
        *found,
        *sizes,
        LN2=LN2,
        TILE=TILE,
        CLASSES=CLASSES,
        **options(4),
    )
    return found


class Certified(NamedTuple):
    """A solution in float64, without the zeros around it."""

    lower: Tensor
    """(B,): the certified lower bound, in bits."""
    gap: Tensor
    factor1: Tensor
    """(B, K1, C): A."""
    factor2: Tensor
    coupling: Tensor
    """(B, K1, K2): R."""


def certify(given1: Tensor, given2: Tensor, found: Marginals, fitted2: Tensor, r: Tensor) -> Certified:
    """Bounds of the factors A (where `found` had zeros), B and R, in float32 and whole tiles."""
    (num_tables, num1, num_classes), num2 = found.p1.shape, found.p2.shape[1]
    (_, size1, classes), size2 = given1.shape, given2.shape[1]
    certified = Certified(
        torch.empty_like(found.lower),
        torch.empty_like(found.lower),
        found.p1.new_empty(num_tables, size1, classes),
        found.p1.new_empty(num_tables, size2, classes),
        found.p1.new_empty(num_tables, size1, size2),
    )
    a, b, a_low, b_low = (torch.empty_like(p) for p in (found.p1, found.p2, found.p1, found.p2))
    log_w = found.p1.new_empty(num_tables, num1, num2)
    state = (a, b, a_low, b_low, log_w, torch.empty_like(found.mass1), torch.empty_like(found.mass2))
    sizes = (size1, size2, classes, num1, num2, num_classes, num2, num_classes)
    given = (found.p1, found.p2, found.mass1, found.mass2, found.a, fitted2, r, found.lower, found.upper)
    _certify[(num_tables,)](
        *given, *certified, *state, *sizes, LN2=LN2, TILE=TILE, CLASSES=CLASSES, **options(4)
    )
    return certified


def variants() -> list[Variant]:
    """Every compilation that the launchers can ask for."""
    constants = {"LN2": LN2, "TILE": TILE, "CLASSES": CLASSES}
    sizes = dict.fromkeys(("size1", "size2", "classes", "num1", "num2", "num_classes"), "i32")
    doubles = ["given1", "given2", "p1", "p2", "mass1", "mass2", "lower", "upper"]
    marginals_types = {f"{name}_ptr": "*fp64" for name in doubles}
    marginals_types |= {f"{name}_ptr": "*fp32" for name in ("q1", "q2", "a")} | sizes
    doubles = ["p1", "p2", "mass1", "mass2", "marginal_lower", "marginal_upper", "lower", "gap"]
    doubles += ["out1", "out2", "out_r", "a", "b", "a_low", "b_low", "log_w", "shift1", "shift2"]
    types = {f"{name}_ptr": "*fp64" for name in doubles}
    types |= {f"{name}_ptr": "*fp32" for name in ("fitted1", "fitted2", "r")} | sizes
    types |= dict.fromkeys(("r_stride", "factor_stride"), "i32")
    return [
        Variant(_marginals, marginals_types, constants, num_warps=4),
        Variant(_certify, types, constants, num_warps=4),
    ]
