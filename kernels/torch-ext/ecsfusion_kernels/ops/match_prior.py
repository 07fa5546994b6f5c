"""Posteriors scaled to have the prior as their mean; programs share the rows of a problem."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..grid_barrier import resident_programs, wait_for_programs
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.match_prior import LARGEST_POWER, LARGEST_SCALE, MATCHED, RESCALINGS, TINY
from ..reference.match_prior import match_prior as reference_match_prior

__all__ = ["match_prior"]

WIDTHS = (16, 128, 1024)
"""Numbers of classes that a tile has; with more classes than the last the reference is used."""
VALUES = 4096
"""Of a tile of many classes: 8 float64 numbers in each thread, and as many sums."""
TILES_OF_PART = 4
"""The fewest: fewer are sooner read than another program is waited for."""
MAX_PARTS = 128
MAX_SUMS = 32_768
"""The most parts of the rows of a problem, and sums of their classes: every program adds up those of all parts."""
CONSTANTS = {"TINY": TINY, "LARGEST_SCALE": LARGEST_SCALE, "LARGEST_POWER": LARGEST_POWER}


@jit
def _rows_at(pointer, row, end, num_classes, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """Pointers to a tile (ROWS, CLASSES) of the rows below `end`, and which of its entries there are."""
    rows, classes = row + tl.arange(0, ROWS), tl.arange(0, CLASSES)
    place = rows.to(tl.int64)[:, None] * num_classes + classes[None, :]
    return pointer + place, (rows < end)[:, None] & (classes < num_classes)[None, :]


@jit
def _columns_at(pointer, row, end, num_rows, num_classes, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """The same as a tile (CLASSES, ROWS), of rows beside rows."""
    rows, classes = row + tl.arange(0, ROWS), tl.arange(0, CLASSES)
    place = classes.to(tl.int64)[:, None] * num_rows + rows[None, :]
    return pointer + place, (classes < num_classes)[:, None] & (rows < end)[None, :]


@jit
def _sums_as_given(
    posteriors_ptr,
    by_class_ptr,
    begin,
    end,
    num_rows,
    num_classes,
    BY_CLASS: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Sums (CLASSES,) over rows and of their squares; of few classes the rows are turned."""
    sums, squares = tl.zeros((ROWS, CLASSES), tl.float64), tl.zeros((ROWS, CLASSES), tl.float64)
    for row in range(begin, end, ROWS):
        place, inside = _rows_at(posteriors_ptr, row, end, num_classes, ROWS, CLASSES)
        posteriors = tl.load(place, inside, other=0.0)
        sums += posteriors
        squares += posteriors * posteriors
        if BY_CLASS:
            place, inside = _columns_at(by_class_ptr, row, end, num_rows, num_classes, ROWS, CLASSES)
            tl.store(place, tl.trans(posteriors), inside)
    return tl.sum(sums, 0), tl.sum(squares, 0)


@jit
def _sums_of_scaled(
    posteriors_ptr,
    by_class_ptr,
    scale,
    begin,
    end,
    num_rows,
    num_classes,
    TINY: tl.constexpr,
    BY_CLASS: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Sums (CLASSES,) of p(y) / sum_y p(y) scale(y) over rows; of few classes a thread has all those of its rows."""
    if BY_CLASS:
        sums = tl.zeros((CLASSES, ROWS), tl.float64)
        for row in range(begin, end, ROWS):
            place, inside = _columns_at(by_class_ptr, row, end, num_rows, num_classes, ROWS, CLASSES)
            posteriors = tl.load(place, inside, other=0.0)
            mass = tl.maximum(tl.sum(posteriors * scale[:, None], 0), TINY)
            sums += posteriors * (1.0 / mass)[None, :]
        return tl.sum(sums, 1)
    else:
        sums = tl.zeros((ROWS, CLASSES), tl.float64)
        for row in range(begin, end, ROWS):
            place, inside = _rows_at(posteriors_ptr, row, end, num_classes, ROWS, CLASSES)
            posteriors = tl.load(place, inside, other=0.0)
            mass = tl.maximum(tl.sum(posteriors * scale[None, :], 1), TINY)
            sums += posteriors * (1.0 / mass)[:, None]
        return tl.sum(sums, 0)


@jit
def _store_scaled(
    posteriors_ptr,
    by_class_ptr,
    out_ptr,
    scale,
    is_scaled,
    begin,
    end,
    num_rows,
    num_classes,
    TINY: tl.constexpr,
    BY_CLASS: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Stores p(y) scale(y) / sum_y p(y) scale(y) of the rows, or p(y) if nothing was scaled."""
    for row in range(begin, end, ROWS):
        if BY_CLASS:
            place, inside = _columns_at(by_class_ptr, row, end, num_rows, num_classes, ROWS, CLASSES)
            scaled = tl.load(place, inside, other=0.0) * scale[:, None]
            mass = tl.where(is_scaled, tl.maximum(tl.sum(scaled, 0), TINY), 1.0)
            found = tl.trans(scaled / mass[None, :])
        else:
            place, inside = _rows_at(posteriors_ptr, row, end, num_classes, ROWS, CLASSES)
            scaled = tl.load(place, inside, other=0.0) * scale[None, :]
            mass = tl.where(is_scaled, tl.maximum(tl.sum(scaled, 1), TINY), 1.0)
            found = scaled / mass[:, None]
        place, inside = _rows_at(out_ptr, row, end, num_classes, ROWS, CLASSES)
        tl.store(place, found, inside)


@jit
def _sum_of_parts(sums_ptr, num_parts, num_classes, PARTS: tl.constexpr, CLASSES: tl.constexpr):
    """The sum over the parts, in an order that does not depend on who has stored them."""
    total = tl.zeros((PARTS, CLASSES), tl.float64)
    for part in range(0, num_parts, PARTS):
        place, inside = _rows_at(sums_ptr, part, num_parts, num_classes, PARTS, CLASSES)
        total += tl.load(place, inside, other=0.0, cache_modifier=".cg")
    return tl.sum(total, 0)


@jit(do_not_specialize=["num_rows", "num_classes", "rows_of_part", "num_parts", "num_programs", "rescalings"])
def _match_prior(
    posteriors_ptr,
    prior_ptr,
    by_class_ptr,
    out_ptr,
    sums_ptr,
    arrivals_ptr,
    num_rows: tl.int32,
    num_classes: tl.int32,
    rows_of_part: tl.int32,
    num_parts: tl.int32,
    num_programs: tl.int32,
    rescalings: tl.int32,
    nearly: tl.float32,
    TINY: tl.constexpr,
    LARGEST_SCALE: tl.constexpr,
    LARGEST_POWER: tl.constexpr,
    BY_CLASS: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    PARTS: tl.constexpr,
):
    """p(y) scale(y) / sum_y p(y) scale(y), with a scale that is multiplied by powers of prior / mean until they agree.

    The programs of a problem share the parts of its rows. Each adds up the sums of all parts, and scales alike.
    """
    problem, program = (tl.program_id(0) // num_programs).to(tl.int64), tl.program_id(0) % num_programs
    posteriors_ptr += problem * num_rows * num_classes
    by_class_ptr += problem * num_rows * num_classes
    out_ptr += problem * num_rows * num_classes
    arrivals_ptr += problem
    # Sums of the parts: of the squares, and of the rows by turns in two places, so that a program that is ahead does
    # not change what another still reads.
    size = num_parts * num_classes
    sums_ptr += problem * 3 * size
    squares_ptr = sums_ptr + 2 * size
    classes = tl.arange(0, CLASSES)
    inside = classes < num_classes
    prior = tl.load(prior_ptr + classes, inside, other=0.0)
    sums, squares = tl.zeros((CLASSES,), tl.float64), tl.zeros((CLASSES,), tl.float64)
    for part in range(program, num_parts, num_programs):
        begin = part * rows_of_part
        end = tl.minimum(begin + rows_of_part, num_rows)
        sums, squares = _sums_as_given(
            posteriors_ptr, by_class_ptr, begin, end, num_rows, num_classes, BY_CLASS, ROWS, CLASSES
        )
        tl.store(sums_ptr + part * num_classes + classes, sums, inside)
        tl.store(squares_ptr + part * num_classes + classes, squares, inside)
    wait_for_programs(arrivals_ptr, 1, num_programs)
    if num_parts > 1:
        sums = _sum_of_parts(sums_ptr, num_parts, num_classes, PARTS, CLASSES)
        squares = _sum_of_parts(squares_ptr, num_parts, num_classes, PARTS, CLASSES)
    # At first the rows are as they are, whatever their sum.
    mean = tl.maximum(sums / num_rows, TINY)
    grown = tl.maximum(1.0 - squares / num_rows / mean, TINY)
    power = tl.minimum(tl.maximum((1.0 - 1.0 / num_classes.to(tl.float64)) / grown, 1.0), LARGEST_POWER)
    # What is not finite makes all rows NaN: maxima and minima would lose it on the way.
    is_finite = tl.abs(tl.sum(sums + prior, 0)) < float("inf")
    scale = tl.where(is_finite, 1.0, float("nan")) + tl.zeros((CLASSES,), tl.float64)
    before = tl.full((), LARGEST_SCALE, tl.float64)
    turn, done = 0, tl.where(is_finite, 0, 1)
    while done == 0:
        factor = prior / mean
        distance = tl.max(tl.where(inside, tl.abs(factor - 1.0), 0.0), 0)
        done = tl.where((turn < rescalings) & (distance >= nearly), 0, 1)
        if done == 0:
            power = tl.where(distance > before, 1.0, power)
            before = distance
            # A class that no row has stays without mass.
            scale = tl.minimum(scale * tl.exp(power * tl.log(factor)), LARGEST_SCALE)
            turn += 1
            now_ptr = sums_ptr + turn % 2 * size
            for part in range(program, num_parts, num_programs):
                begin = part * rows_of_part
                end = tl.minimum(begin + rows_of_part, num_rows)
                sums = _sums_of_scaled(
                    posteriors_ptr,
                    by_class_ptr,
                    scale,
                    begin,
                    end,
                    num_rows,
                    num_classes,
                    TINY,
                    BY_CLASS,
                    ROWS,
                    CLASSES,
                )
                tl.store(now_ptr + part * num_classes + classes, sums, inside)
            if num_parts > 1:
                wait_for_programs(arrivals_ptr, turn + 1, num_programs)
                sums = _sum_of_parts(now_ptr, num_parts, num_classes, PARTS, CLASSES)
            mean = tl.maximum(sums / num_rows * scale, TINY)
    for part in range(program, num_parts, num_programs):
        begin = part * rows_of_part
        end = tl.minimum(begin + rows_of_part, num_rows)
        _store_scaled(
            posteriors_ptr,
            by_class_ptr,
            out_ptr,
            scale,
            turn > 0,
            begin,
            end,
            num_rows,
            num_classes,
            TINY,
            BY_CLASS,
            ROWS,
            CLASSES,
        )


def configuration(num_classes: int) -> tuple[dict[str, Any], int]:
    """The tile for so many classes, and its warps."""
    classes = next(width for width in WIDTHS if num_classes <= width)
    by_class = classes == WIDTHS[0]
    rows, num_warps = (512, 8) if by_class else (VALUES // classes, 16)
    parts = min(MAX_PARTS, VALUES // classes)
    return {"BY_CLASS": by_class, "ROWS": rows, "CLASSES": classes, "PARTS": parts}, num_warps


def _launch_match_prior(posteriors: Tensor, prior: Tensor, nearly: float, rescalings: int) -> Tensor:
    *_, num_rows, num_classes = posteriors.shape
    given = aligned(posteriors)
    out = torch.empty_like(given)
    if not given.numel():
        return out
    num_problems = given.numel() // (num_rows * num_classes)
    constants, num_warps = configuration(num_classes)
    # A function of the shape of a problem alone: the order of the sums must not depend on the batch.
    tiles, most = -(-num_rows // constants["ROWS"]), min(MAX_PARTS, MAX_SUMS // constants["CLASSES"])
    rows_of_part = constants["ROWS"] * max(TILES_OF_PART, -(-tiles // most))
    num_parts = -(-num_rows // rows_of_part)
    num_programs = max(1, min(num_parts, resident_programs(given.device) // num_problems))
    sums = given.new_empty(num_problems, 3, num_parts, num_classes)
    make_arrivals = torch.zeros if num_programs > 1 else torch.empty
    _match_prior[(num_problems * num_programs,)](
        given,
        aligned(prior),
        torch.empty_like(given) if constants["BY_CLASS"] else given,
        out,
        sums,
        make_arrivals(num_problems, dtype=torch.int32, device=given.device),
        num_rows,
        num_classes,
        rows_of_part,
        num_parts,
        num_programs,
        rescalings,
        nearly,
        **CONSTANTS,
        **constants,
        **options(num_warps),
        launch_cooperative_grid=num_programs > 1,
    )
    return out


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = dict.fromkeys(("posteriors_ptr", "prior_ptr", "by_class_ptr", "out_ptr", "sums_ptr"), "*fp64")
    types |= {"arrivals_ptr": "*i32", "nearly": "fp32"}
    sizes = ("num_rows", "num_classes", "rows_of_part", "num_parts", "num_programs", "rescalings")
    types |= dict.fromkeys(sizes, "i32")
    return [
        Variant(_match_prior, types, {**CONSTANTS, **constants}, num_warps)
        for constants, num_warps in map(configuration, WIDTHS)
    ]


@custom_op(add_op_namespace_prefix("match_prior"), mutates_args=())
def _match_prior_op(posteriors: Tensor, prior: Tensor, nearly: float, rescalings: int) -> Tensor:
    if runs_kernels(posteriors) and posteriors.shape[-1] <= WIDTHS[-1]:
        return _launch_match_prior(posteriors, prior, nearly, rescalings)
    # An op must not return its own arguments.
    return reference_match_prior(posteriors, prior, nearly, rescalings).clone(
        memory_format=torch.contiguous_format
    )


@_match_prior_op.register_fake
def _(posteriors: Tensor, prior: Tensor, nearly: float, rescalings: int) -> Tensor:
    return torch.empty_like(posteriors, memory_format=torch.contiguous_format)


def match_prior(
    posteriors: Tensor, prior: Tensor, nearly: float = MATCHED, rescalings: int = RESCALINGS
) -> Tensor:
    """Posteriors scaled until their mean is the prior, or nearly so where they are certain.

    Each rescaling multiplies the classes by powers of prior / mean, and divides each row by its sum. On a GPU problems
    of up to 1 024 classes are one launch, whose programs wait for each other, and the host reads nothing. The result
    has no gradient, and of a problem with a NaN or an infinity it is NaN in all rows.

    Args:
        posteriors: (..., N, C) float64, of sum 1 over the classes.
        prior: (C,) float64.
        nearly: ends the scaling where the mean is within this relative distance, of every problem by itself on a GPU
            and of all problems in the reference; 0 for never.
        rescalings: the most.

    Returns:
        (..., N, C) float64.

    Raises:
        TypeError: for another dtype.
        ValueError: the prior has another number of classes.
    """
    if posteriors.dtype != torch.float64 or prior.dtype != torch.float64:
        raise TypeError(
            f"posteriors and prior must be float64, got {posteriors.dtype} and {prior.dtype}; convert with .double()"
        )
    if prior.shape != posteriors.shape[-1:]:
        raise ValueError(
            f"prior must be (C,) with the C of posteriors {tuple(posteriors.shape)}, got {tuple(prior.shape)}"
        )
    match = reference_match_prior if skips_dispatch(posteriors, prior) else _match_prior_op
    return match(posteriors, prior, nearly, rescalings)
