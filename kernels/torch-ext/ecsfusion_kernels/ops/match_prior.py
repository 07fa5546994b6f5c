"""Posteriors scaled to have the prior as their mean, one program a problem."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.match_prior import LARGEST_SCALE, MATCHED, RESCALINGS, TINY
from ..reference.match_prior import match_prior as reference_match_prior

__all__ = ["match_prior"]

WIDTHS = (16, 128, 1024)
"""Numbers of classes that a tile has; with more classes than the last the reference is used."""
NUM_WARPS = 16
VALUES = 8 * 32 * NUM_WARPS
"""Of a tile: 8 float64 numbers in each thread, and as many sums."""
CONSTANTS = {"TINY": TINY, "LARGEST_SCALE": LARGEST_SCALE}


@jit
def _rows_at(posteriors_ptr, row, num_rows, num_classes, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """Pointers to a tile (ROWS, CLASSES) of rows, and which of its entries there are."""
    rows, classes = row + tl.arange(0, ROWS), tl.arange(0, CLASSES)
    place = rows.to(tl.int64)[:, None] * num_classes + classes[None, :]
    return posteriors_ptr + place, (rows < num_rows)[:, None] & (classes < num_classes)[None, :]


@jit(do_not_specialize=["num_rows", "num_classes", "rescalings"])
def _match_prior(
    posteriors_ptr,
    prior_ptr,
    out_ptr,
    num_rows: tl.int32,
    num_classes: tl.int32,
    rescalings: tl.int32,
    nearly: tl.float32,
    TINY: tl.constexpr,
    LARGEST_SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """p(y) scale(y) / sum_y p(y) scale(y), with a scale that is multiplied by prior / mean until they agree."""
    problem = tl.program_id(0).to(tl.int64)
    posteriors_ptr += problem * num_rows * num_classes
    out_ptr += problem * num_rows * num_classes
    classes = tl.arange(0, CLASSES)
    prior = tl.load(prior_ptr + classes, classes < num_classes, other=0.0)
    scale = tl.full((CLASSES,), 1.0, tl.float64)
    # At first the rows are as they are, whatever their sum.
    turn = 0
    while turn <= rescalings:
        total = tl.zeros((ROWS, CLASSES), tl.float64)
        for row in range(0, num_rows, ROWS):
            place, inside = _rows_at(posteriors_ptr, row, num_rows, num_classes, ROWS, CLASSES)
            posteriors = tl.load(place, inside, other=0.0)
            mass = tl.maximum(tl.sum(posteriors * scale[None, :], 1), TINY)
            mass = tl.where(turn > 0, mass, 1.0)
            total += posteriors * (1.0 / mass)[:, None]
        factor = prior / tl.maximum(tl.sum(total, 0) / num_rows * scale, TINY)
        far = tl.where((tl.abs(factor - 1.0) < nearly) | (classes >= num_classes), 0, 1)
        if (turn == rescalings) | (tl.max(far, 0) == 0):
            for row in range(0, num_rows, ROWS):
                place, inside = _rows_at(posteriors_ptr, row, num_rows, num_classes, ROWS, CLASSES)
                scaled = tl.load(place, inside, other=0.0) * scale[None, :]
                mass = tl.where(turn > 0, tl.maximum(tl.sum(scaled, 1), TINY), 1.0)
                place, inside = _rows_at(out_ptr, row, num_rows, num_classes, ROWS, CLASSES)
                tl.store(place, scaled / mass[:, None], inside)
            turn = rescalings + 1
        else:
            # A class that no row has stays without mass.
            scale = tl.where(turn > 0, tl.minimum(scale * factor, LARGEST_SCALE), factor)
            turn += 1


def configuration(num_classes: int) -> dict[str, int]:
    """The tile for so many classes."""
    classes = next(width for width in WIDTHS if num_classes <= width)
    return {"ROWS": VALUES // classes, "CLASSES": classes}


def _launch_match_prior(posteriors: Tensor, prior: Tensor, nearly: float, rescalings: int) -> Tensor:
    *_, num_rows, num_classes = posteriors.shape
    given = aligned(posteriors)
    out = torch.empty_like(given)
    if given.numel():
        sizes = (num_rows, num_classes, rescalings)
        _match_prior[(given.numel() // (num_rows * num_classes),)](
            given,
            aligned(prior),
            out,
            *sizes,
            nearly,
            **CONSTANTS,
            **configuration(num_classes),
            **options(NUM_WARPS),
        )
    return out


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = dict.fromkeys(("posteriors_ptr", "prior_ptr", "out_ptr"), "*fp64")
    types |= dict.fromkeys(("num_rows", "num_classes", "rescalings"), "i32") | {"nearly": "fp32"}
    return [
        Variant(_match_prior, types, {**CONSTANTS, **configuration(width)}, NUM_WARPS) for width in WIDTHS
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

    Each rescaling multiplies the classes by prior / mean, and divides each row by its sum. On a GPU a problem of up to
    1 024 classes is one program, and the host reads nothing. The result has no gradient.

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
