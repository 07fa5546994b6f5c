"""What chance adds to the information of pairs: one program a pair."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.broja import LN2
from ..reference.pair_noise import MIN_FREEDOM
from ..reference.pair_noise import pair_noise as reference_pair_noise
from ..reference.table_sums import NUMBERS

__all__ = ["pair_noise"]

CONSTANTS = {"NUMBERS": NUMBERS, "LN2": LN2, "MIN_FREEDOM": MIN_FREEDOM, "BLOCK": 128}


@jit(do_not_specialize=["num_replicates"])
def _pair_noise(
    sums_ptr,
    noise_ptr,
    num_replicates: tl.int32,
    NUMBERS: tl.constexpr,
    LN2: tl.constexpr,
    MIN_FREEDOM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The mean information of the replicates, times the freedom of the table in shares of theirs."""
    pair = tl.program_id(0)
    sums_ptr += pair * (num_replicates + 1) * NUMBERS
    own = tl.load(sums_ptr + 12) - tl.load(sums_ptr + 8) - tl.load(sums_ptr + 9) + 1.0
    bits, freedom = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for first in range(1, num_replicates + 1, BLOCK):
        number = first + tl.arange(0, BLOCK)
        there = number <= num_replicates
        place = sums_ptr + number * NUMBERS
        nats = tl.load(place + 5, there, other=0.0)
        nats -= tl.load(place + 1, there, other=0.0) + tl.load(place + 2, there, other=0.0)
        bits += tl.maximum(nats / LN2, 0.0)
        left = tl.load(place + 12, there, other=0.0) - tl.load(place + 8, there, other=0.0)
        left -= tl.load(place + 9, there, other=0.0)
        freedom += tl.where(there, left + 1.0, 0.0)
    # Of one number, so that the functions of it are those of tensors.
    mean = tl.zeros((1,), tl.float64) + tl.sum(freedom, 0) / num_replicates
    share = tl.minimum(tl.maximum(own / tl.maximum(mean, MIN_FREEDOM), 0.0), 1.0)
    tl.store(noise_ptr + pair + tl.arange(0, 1), tl.sum(bits, 0) / num_replicates * share)


def _launch_pair_noise(sums: Tensor) -> Tensor:
    noise = sums.new_empty(len(sums))
    if noise.numel():
        _pair_noise[(len(sums),)](aligned(sums), noise, sums.shape[1] - 1, **CONSTANTS, **options(4))
    return noise


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = {"sums_ptr": "*fp64", "noise_ptr": "*fp64", "num_replicates": "i32"}
    return [Variant(_pair_noise, types, CONSTANTS, 4)]


@custom_op(add_op_namespace_prefix("pair_noise"), mutates_args=())
def _pair_noise_op(sums: Tensor) -> Tensor:
    return (_launch_pair_noise if runs_kernels(sums) else reference_pair_noise)(sums)


@_pair_noise_op.register_fake
def _(sums: Tensor) -> Tensor:
    return sums.new_empty(len(sums))


def pair_noise(sums: Tensor) -> Tensor:
    """What chance adds to the plug-in information of pairs of variables, by replicates in which they are independent.

    Where variables depend on each other fewer cells are reachable, and the mean information of the replicates counts
    in proportion to the degrees of freedom, as in the Miller-Madow term: occupied cells - rows - columns + 1.

    Args:
        sums: (P, 1 + R, 15) float64, `table_sums` of P tables (K1, K2, 1) of counts, each before its R replicates.

    Returns:
        (P,) float64, in bits.

    Raises:
        TypeError: for sums that are not float64.
        ValueError: for sums of another shape, or without replicates.
    """
    if sums.dtype != torch.float64:
        raise TypeError(f"sums must be float64, got {sums.dtype}; convert with .double()")
    if sums.ndim != 3 or sums.shape[1] < 2 or sums.shape[2] != NUMBERS:
        raise ValueError(f"sums must be (P, 1 + R, {NUMBERS}) with R at least 1, got {tuple(sums.shape)}")
    return (reference_pair_noise if skips_dispatch(sums) else _pair_noise_op)(sums)
