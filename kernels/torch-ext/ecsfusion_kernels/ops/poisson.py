"""Poisson numbers from a hash of (seed, counter)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, jit, options, runs_kernels, signed, tl, with_unaligned
from ..reference.poisson import MAX_COUNT, MIN_EXPANSION_MEAN
from ..reference.poisson import poisson as reference_poisson
from ..reference.random import keys
from .random import uniform_at

__all__ = ["poisson"]

# Numbers per block. 32 replicates of 4 000 cells are 500 blocks, enough for every multiprocessor.
BLOCK = 256


@jit
def normal_quantile(u):
    """Phi^-1(u) for float64 u in [2^-25, 1 - 2^-25]: algorithm AS 241 (Wichura 1988), PPND7."""
    q = u - 0.5
    r = 0.180625 - q * q
    middle = q * (((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179)
    middle = middle / (((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1.0)
    s = tl.sqrt(-tl.log(tl.minimum(u, 1.0 - u))) - 1.6
    tail = ((0.17023821103 * s + 1.3067284816) * s + 2.7568153900) * s + 1.4234372777
    tail = tail / ((0.12021132975 * s + 0.73700164250) * s + 1.0)
    return tl.where(tl.abs(q) <= 0.425, middle, tl.where(q < 0.0, -tail, tail))


@jit(do_not_specialize=["num_values", "num_cells", "key1", "key2"])
def _poisson(
    expected_ptr,
    out_ptr,
    num_values: tl.int64,
    num_cells: tl.int64,
    key1: tl.int32,
    key2: tl.int32,
    MIN_EXPANSION_MEAN: tl.constexpr,
    MAX_COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The quantile of a hashed uniform number: the smallest k with P(X <= k) >= u."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_values
    mean = tl.load(expected_ptr + index % num_cells, inside, other=0.0)
    u = uniform_at(index, key1, key2).to(tl.float64)

    small = tl.minimum(mean, MIN_EXPANSION_MEAN)
    probability = tl.exp(-small)
    # P(X <= k).
    cumulative = probability
    count = tl.zeros([BLOCK], tl.float64)
    for k in range(1, MAX_COUNT):
        count += tl.where(u > cumulative, 1.0, 0.0)
        probability = probability * small / k
        cumulative += probability

    w = normal_quantile(u)
    root = tl.sqrt(tl.maximum(mean, MIN_EXPANSION_MEAN))
    terms = (1.0 / 3.0 + w * w / 6.0) - (w / 36.0 + w * w * w / 72.0) / root
    terms += (-8.0 / 405.0 + 7.0 * w * w / 810.0 + w * w * w * w / 270.0) / (root * root)
    expansion = tl.floor(mean + root * w + terms)
    tl.store(out_ptr + index, tl.where(mean < MIN_EXPANSION_MEAN, count, expansion), inside)


def _launch_poisson(expected: Tensor, num_replicates: int, seed: int) -> Tensor:
    expected = expected.to(torch.float64).contiguous()
    out = torch.empty((num_replicates, *expected.shape), dtype=torch.float64, device=expected.device)
    if out.numel():
        key1, key2 = (signed(key) for key in keys(seed))
        grid = (-(-out.numel() // BLOCK),)
        constants = {"MIN_EXPANSION_MEAN": MIN_EXPANSION_MEAN, "MAX_COUNT": MAX_COUNT, "BLOCK": BLOCK}
        _poisson[grid](expected, out, out.numel(), expected.numel(), key1, key2, **constants, **options(4))
    return out


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = {"expected_ptr": "*fp64", "out_ptr": "*fp64", "num_values": "i64", "num_cells": "i64"}
    types |= {"key1": "i32", "key2": "i32"}
    constants = {"MIN_EXPANSION_MEAN": MIN_EXPANSION_MEAN, "MAX_COUNT": MAX_COUNT, "BLOCK": BLOCK}
    return with_unaligned(Variant(_poisson, types, constants, num_warps=4), ("expected_ptr",))


@custom_op(add_op_namespace_prefix("poisson"), mutates_args=())
def poisson(expected: Tensor, num_replicates: int, seed: int) -> Tensor:
    """Independent Poisson numbers that depend on the expectations, their positions and the seed alone.

    A number is the quantile of a hashed uniform number. For expectations below 16 it is found by summing
    probabilities; above, by the Cornish-Fisher expansion, by which less than 3 in 10 000 numbers are off by one.

    Args:
        expected: (...) floating point, >= 0.
        num_replicates: independent numbers for each expectation.
        seed: any whole number.

    Returns:
        (num_replicates, ...) float64. Another device may differ where exp and log round differently.
    """
    function = _launch_poisson if runs_kernels(expected) else reference_poisson
    return function(expected, num_replicates, seed)


@poisson.register_fake
def _(expected: Tensor, num_replicates: int, seed: int) -> Tensor:
    return expected.new_empty((num_replicates, *expected.shape), dtype=torch.float64)
