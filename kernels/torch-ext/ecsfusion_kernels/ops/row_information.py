"""What the posterior of each row says: of its label, and of all classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.broja import LN2
from ..reference.match_prior import TINY
from ..reference.row_information import row_information as reference_row_information

__all__ = ["row_information"]

CONSTANTS = {"LN2": LN2, "TINY": TINY, "ROWS": 32, "CLASSES": 16}
NUM_WARPS = 4


@jit(do_not_specialize=["num_rows", "num_classes", "num_blocks"])
def _row_information(
    posteriors_ptr,
    labels_ptr,
    log_prior_ptr,
    told_ptr,
    unsure_ptr,
    roots_ptr,
    num_rows: tl.int32,
    num_classes: tl.int32,
    num_blocks: tl.int32,
    LN2: tl.constexpr,
    TINY: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """log2 p(label) / prior, -sum of p log2 p and sqrt(p) of a block of rows of one problem."""
    problem = (tl.program_id(0) // num_blocks).to(tl.int64)
    row = (tl.program_id(0) % num_blocks) * ROWS + tl.arange(0, ROWS)
    inside = row < num_rows
    here = problem * num_rows + row
    posteriors_ptr += here * num_classes
    roots_ptr += here * num_classes
    label = tl.load(labels_ptr + row, inside, other=0)
    at_label = tl.load(posteriors_ptr + label, inside, other=1.0)
    log_prior = tl.load(log_prior_ptr + label, inside, other=0.0)
    # As it stands a small constant would be a float32 number.
    least = tl.full((ROWS,), TINY, tl.float64)
    tl.store(told_ptr + here, (tl.log(tl.maximum(at_label, least)) - log_prior) / LN2, inside)
    unsure = tl.zeros((ROWS,), tl.float64)
    for start in range(0, num_classes, CLASSES):
        place = (start + tl.arange(0, CLASSES))[None, :]
        within = inside[:, None] & (place < num_classes)
        rounded = tl.load(posteriors_ptr[:, None] + place, within, other=0.0).to(tl.float32)
        tl.store(roots_ptr[:, None] + place, tl.sqrt_rn(rounded), within)
        unsure -= tl.sum((rounded * tl.log2(tl.maximum(rounded, TINY))).to(tl.float64), 1)
    tl.store(unsure_ptr + here, unsure, inside)


def _launch_row_information(
    posteriors: Tensor, labels: Tensor, log_prior: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    num_problems, num_rows, num_classes = posteriors.shape
    told, unsure = (posteriors.new_empty(num_problems, num_rows) for _ in range(2))
    roots = posteriors.new_empty(posteriors.shape, dtype=torch.float32)
    if posteriors.numel():
        given = [aligned(tensor) for tensor in (posteriors, labels, log_prior)]
        num_blocks = -(-num_rows // CONSTANTS["ROWS"])
        sizes = (num_rows, num_classes, num_blocks)
        _row_information[(num_problems * num_blocks,)](
            *given, told, unsure, roots, *sizes, **CONSTANTS, **options(NUM_WARPS)
        )
    return told, unsure, roots


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    names = ("posteriors", "log_prior", "told", "unsure")
    types = {f"{name}_ptr": "*fp64" for name in names} | {"labels_ptr": "*i64", "roots_ptr": "*fp32"}
    types |= dict.fromkeys(("num_rows", "num_classes", "num_blocks"), "i32")
    return [Variant(_row_information, types, CONSTANTS, NUM_WARPS)]


@custom_op(add_op_namespace_prefix("row_information"), mutates_args=())
def _row_information_op(
    posteriors: Tensor, labels: Tensor, log_prior: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    function = _launch_row_information if runs_kernels(posteriors) else reference_row_information
    return function(posteriors.contiguous(), labels, log_prior)


@_row_information_op.register_fake
def _(posteriors: Tensor, labels: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    told, unsure = (posteriors.new_empty(posteriors.shape[:2]) for _ in range(2))
    return told, unsure, posteriors.new_empty(posteriors.shape, dtype=torch.float32)


def row_information(posteriors: Tensor, labels: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the posterior of each row says of its label, how unsure it is, and its square root.

    Distances of square roots are those of Hellinger, by which posteriors are clustered. No result has a gradient.

    Args:
        posteriors: (Q, N, C) float64.
        labels: (N,) int64 from 0 to below C.
        log_prior: (C,) float64, the natural logarithm of p(y).

    Returns:
        log2 of p(label) / prior, (Q, N) float64 in bits, with 1e-30 for what is below; the entropy of each posterior,
        (Q, N) float64 in bits, to the 1e-6 of float32 logarithms; sqrt(p) of the posteriors as float32,
        (Q, N, C) float32.

    Raises:
        TypeError: the posteriors or log_prior are not float64.
        ValueError: labels and log_prior do not have the rows and classes of the posteriors.
    """
    if posteriors.dtype != torch.float64 or log_prior.dtype != torch.float64:
        raise TypeError(
            f"posteriors and log_prior must be float64, got {posteriors.dtype} and {log_prior.dtype}; "
            "convert with .double()"
        )
    if labels.shape != posteriors.shape[1:2] or log_prior.shape != posteriors.shape[2:]:
        raise ValueError(
            f"labels must be (N,) and log_prior (C,) with the N and C of posteriors {tuple(posteriors.shape)}, "
            f"got {tuple(labels.shape)} and {tuple(log_prior.shape)}"
        )
    skips = skips_dispatch(posteriors, labels, log_prior)
    function = reference_row_information if skips else _row_information_op
    return function(posteriors, labels, log_prior)
