"""The median of positive numbers, by rank: the number that half of the others are before."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.median_norm import median_norm as reference_median_norm

__all__ = ["median_norm"]

MAX_NUMBERS = 1 << 14
"""Each is compared with all: more of them are sooner sorted."""
CONSTANTS = {"OWN": 32, "BLOCK": 64}


@jit(do_not_specialize=["num_values", "num_blocks"])
def _median_norm(
    norms_ptr, median_ptr, num_values: tl.int32, num_blocks: tl.int32, OWN: tl.constexpr, BLOCK: tl.constexpr
):
    """Stores the number, of the own ones, that (count - 1) // 2 positive numbers are before; equal ones by place."""
    problem, block = (tl.program_id(0) // num_blocks).to(tl.int64), tl.program_id(0) % num_blocks
    norms_ptr += problem * num_values
    place = block * OWN + tl.arange(0, OWN)
    own = tl.load(norms_ptr + place, place < num_values, other=0.0)
    # Summed after the loop: a sum is for threads what many comparisons are.
    found = tl.zeros((OWN, BLOCK), tl.int32)
    counts = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, num_values, BLOCK):
        other_place = first + tl.arange(0, BLOCK)
        other = tl.load(norms_ptr + other_place, other_place < num_values, other=0.0)
        # False for NaN.
        counted = other > 0
        counts += counted.to(tl.int32)
        ties = (other[None, :] == own[:, None]) & (other_place[None, :] < place[:, None])
        before = counted[None, :] & ((other[None, :] < own[:, None]) | ties)
        found += before.to(tl.int32)
    rank = tl.sum(found, 1)
    middle = (tl.sum(counts, 0) - 1) // 2
    tl.store(median_ptr + problem + place * 0, own, (own > 0) & (rank == middle))
    # None is positive.
    is_first = (place == 0) & (place * 0 + tl.sum(counts, 0) == 0)
    tl.store(median_ptr + problem + place * 0, tl.full((OWN,), 1.0, tl.float64), is_first)


def _launch_median_norm(norms: Tensor) -> Tensor:
    num_problems, num_values = norms.shape
    if not norms.numel() or num_values > MAX_NUMBERS:
        return reference_median_norm(norms)
    median = norms.new_empty(num_problems)
    num_blocks = -(-num_values // CONSTANTS["OWN"])
    _median_norm[(num_problems * num_blocks,)](
        aligned(norms), median, num_values, num_blocks, **CONSTANTS, **options(4)
    )
    return median


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = {"norms_ptr": "*fp64", "median_ptr": "*fp64", "num_values": "i32", "num_blocks": "i32"}
    return [Variant(_median_norm, types, CONSTANTS, 4)]


@custom_op(add_op_namespace_prefix("median_norm"), mutates_args=())
def _median_norm_op(norms: Tensor) -> Tensor:
    return (_launch_median_norm if runs_kernels(norms) else reference_median_norm)(norms)


@_median_norm_op.register_fake
def _(norms: Tensor) -> Tensor:
    return norms.new_empty(len(norms))


def median_norm(norms: Tensor) -> Tensor:
    """The lower median of the positive numbers of each problem; 1 where there is none.

    Args:
        norms: (B, N) float64, N at least 1; what is zero, negative or NaN is left out.

    Returns:
        (B,) float64.

    Raises:
        TypeError: for norms that are not float64.
        ValueError: for norms of another shape.
    """
    if norms.dtype != torch.float64:
        raise TypeError(f"norms must be float64, got {norms.dtype}; convert with .double()")
    if norms.ndim != 2 or not norms.shape[1]:
        raise ValueError(f"norms must be (B, N) with N at least 1, got shape {tuple(norms.shape)}")
    return (reference_median_norm if skips_dispatch(norms) else _median_norm_op)(norms)
