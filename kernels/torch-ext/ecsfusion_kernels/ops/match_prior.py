"""Posteriors scaled to have the prior as their mean, one program a problem."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.match_prior import LARGEST_POWER, LARGEST_SCALE, MATCHED, RESCALINGS, TINY
from ..reference.match_prior import match_prior as reference_match_prior

__all__ = ["match_prior"]

WIDTHS = (16, 128, 1024)
"""Numbers of classes that a tile has; with more classes than the last the reference is used."""
VALUES = 4096
"""Of a tile of many classes: 8 float64 numbers in each thread, and as many sums."""
CONSTANTS = {"TINY": TINY, "LARGEST_SCALE": LARGEST_SCALE, "LARGEST_POWER": LARGEST_POWER}


@jit
def _tile_at(
    pointer, row, num_rows, num_classes, BY_CLASS: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr
):
    """Pointers to a tile (ROWS, CLASSES), and which of its entries there are; by class, or by row as given."""
    rows, classes = row + tl.arange(0, ROWS), tl.arange(0, CLASSES)
    if BY_CLASS:
        place = classes.to(tl.int64)[None, :] * num_rows + rows[:, None]
    else:
        place = rows.to(tl.int64)[:, None] * num_classes + classes[None, :]
    return pointer + place, (rows < num_rows)[:, None] & (classes < num_classes)[None, :]


@jit(do_not_specialize=["num_rows", "num_classes", "rescalings"])
def _match_prior(
    posteriors_ptr,
    prior_ptr,
    by_class_ptr,
    out_ptr,
    num_rows: tl.int32,
    num_classes: tl.int32,
    rescalings: tl.int32,
    nearly: tl.float32,
    TINY: tl.constexpr,
    LARGEST_SCALE: tl.constexpr,
    LARGEST_POWER: tl.constexpr,
    BY_CLASS: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """p(y) scale(y) / sum_y p(y) scale(y), with a scale that is multiplied by powers of prior / mean until they agree.

    Of few classes the rows are turned once, so that a thread has all classes of its rows and sums them alone.
    """
    problem = tl.program_id(0).to(tl.int64)
    posteriors_ptr += problem * num_rows * num_classes
    out_ptr += problem * num_rows * num_classes
    read_ptr = posteriors_ptr
    if BY_CLASS:
        read_ptr = by_class_ptr + problem * num_rows * num_classes
    classes = tl.arange(0, CLASSES)
    prior = tl.load(prior_ptr + classes, classes < num_classes, other=0.0)
    total, squares = tl.zeros((ROWS, CLASSES), tl.float64), tl.zeros((ROWS, CLASSES), tl.float64)
    for row in range(0, num_rows, ROWS):
        place, inside = _tile_at(posteriors_ptr, row, num_rows, num_classes, False, ROWS, CLASSES)
        posteriors = tl.load(place, inside, other=0.0)
        total += posteriors
        squares += posteriors * posteriors
        if BY_CLASS:
            place, inside = _tile_at(read_ptr, row, num_rows, num_classes, True, ROWS, CLASSES)
            tl.store(place, posteriors, inside)
    tl.debug_barrier()
    # At first the rows are as they are, whatever their sum.
    mean = tl.maximum(tl.sum(total, 0) / num_rows, TINY)
    grown = tl.maximum(1.0 - tl.sum(squares, 0) / num_rows / mean, TINY)
    power = tl.minimum(tl.maximum((1.0 - 1.0 / num_classes.to(tl.float64)) / grown, 1.0), LARGEST_POWER)
    scale, before = tl.full((CLASSES,), 1.0, tl.float64), tl.full((), LARGEST_SCALE, tl.float64)
    turn, done = 0, 0
    while done == 0:
        factor = prior / mean
        distance = tl.max(tl.where(classes < num_classes, tl.abs(factor - 1.0), 0.0), 0)
        # NaN ends it.
        done = tl.where((turn < rescalings) & (distance >= nearly), 0, 1)
        if done == 0:
            power = tl.where(distance > before, 1.0, power)
            before = distance
            # A class that no row has stays without mass.
            scale = tl.minimum(scale * tl.exp(power * tl.log(factor)), LARGEST_SCALE)
            turn += 1
            total = tl.zeros((ROWS, CLASSES), tl.float64)
            for row in range(0, num_rows, ROWS):
                place, inside = _tile_at(read_ptr, row, num_rows, num_classes, BY_CLASS, ROWS, CLASSES)
                posteriors = tl.load(place, inside, other=0.0)
                mass = tl.maximum(tl.sum(posteriors * scale[None, :], 1), TINY)
                total += posteriors * (1.0 / mass)[:, None]
            mean = tl.maximum(tl.sum(total, 0) / num_rows * scale, TINY)
    for row in range(0, num_rows, ROWS):
        place, inside = _tile_at(read_ptr, row, num_rows, num_classes, BY_CLASS, ROWS, CLASSES)
        scaled = tl.load(place, inside, other=0.0) * scale[None, :]
        mass = tl.where(turn > 0, tl.maximum(tl.sum(scaled, 1), TINY), 1.0)
        place, inside = _tile_at(out_ptr, row, num_rows, num_classes, False, ROWS, CLASSES)
        tl.store(place, scaled / mass[:, None], inside)


def configuration(num_classes: int) -> tuple[dict[str, Any], int]:
    """The tile for so many classes, and its warps."""
    classes = next(width for width in WIDTHS if num_classes <= width)
    by_class = classes == WIDTHS[0]
    rows, num_warps = (512, 8) if by_class else (VALUES // classes, 16)
    return {"BY_CLASS": by_class, "ROWS": rows, "CLASSES": classes}, num_warps


def _launch_match_prior(posteriors: Tensor, prior: Tensor, nearly: float, rescalings: int) -> Tensor:
    *_, num_rows, num_classes = posteriors.shape
    given = aligned(posteriors)
    out = torch.empty_like(given)
    if given.numel():
        constants, num_warps = configuration(num_classes)
        sizes = (num_rows, num_classes, rescalings)
        _match_prior[(given.numel() // (num_rows * num_classes),)](
            given,
            aligned(prior),
            torch.empty_like(given) if constants["BY_CLASS"] else given,
            out,
            *sizes,
            nearly,
            **CONSTANTS,
            **constants,
            **options(num_warps),
        )
    return out


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = dict.fromkeys(("posteriors_ptr", "prior_ptr", "by_class_ptr", "out_ptr"), "*fp64")
    types |= dict.fromkeys(("num_rows", "num_classes", "rescalings"), "i32") | {"nearly": "fp32"}
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

    Each rescaling multiplies the classes by powers of prior / mean, and divides each row by its sum. On a GPU a problem
    of up to 1 024 classes is one program, and the host reads nothing. The result has no gradient.

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
