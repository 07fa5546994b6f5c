"""Random numbers without a state: a hash of (seed, counter), the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import (
    Variant,
    jit,
    options,
    runs_kernels,
    signed,
    skips_dispatch,
    tl,
    with_unaligned,
)
from ..reference.random import keys
from ..reference.random import uniform as reference_uniform

__all__ = ["uniform"]

BLOCK = 1024


@jit
def mix(x):
    """The 32-bit finalizer "lowbias32" (C. Wellons, 2018) of uint32 numbers."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@jit
def uniform_at(counter, key1, key2):
    """Numbers in (0, 1), float32, of counters (int64) under the two int32 keys of a seed."""
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    mixed = mix(low ^ key1.to(tl.uint32, bitcast=True))
    mixed = mix(mixed ^ high ^ key2.to(tl.uint32, bitcast=True))
    # For the largest number the sum rounds up to 1, which is excluded.
    return tl.minimum(((mixed >> 8).to(tl.float32) + 0.5) * (1.0 / 16777216.0), 0.99999994)


@jit(do_not_specialize=["num_values", "key1", "key2"])
def _uniform(counter_ptr, out_ptr, num_values: tl.int64, key1: tl.int32, key2: tl.int32, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_values
    counter = tl.load(counter_ptr + index, inside, other=0)
    tl.store(out_ptr + index, uniform_at(counter, key1, key2), inside)


def _launch_uniform(counter: Tensor, seed: int) -> Tensor:
    out = torch.empty(counter.shape, dtype=torch.float32, device=counter.device)
    if counter.numel():
        key1, key2 = (signed(key) for key in keys(seed))
        grid = (-(-counter.numel() // BLOCK),)
        _uniform[grid](counter, out, counter.numel(), key1, key2, BLOCK=BLOCK, **options(4))
    return out


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = {"counter_ptr": "*i64", "out_ptr": "*fp32", "num_values": "i64", "key1": "i32", "key2": "i32"}
    return with_unaligned(Variant(_uniform, types, {"BLOCK": BLOCK}, num_warps=4), ("counter_ptr",))


@custom_op(add_op_namespace_prefix("uniform"), mutates_args=())
def _uniform_op(counter: Tensor, seed: int) -> Tensor:
    # Contiguous before, so that the result is whatever computes it.
    counter = counter.contiguous()
    return _launch_uniform(counter, seed) if runs_kernels(counter) else reference_uniform(counter, seed)


@_uniform_op.register_fake
def _(counter: Tensor, seed: int) -> Tensor:
    return counter.new_empty(counter.shape, dtype=torch.float32)


def uniform(counter: Tensor, seed: int) -> Tensor:
    """Numbers in (0, 1) that depend on (seed, counter) alone; float32, the shape of `counter` (int64, >= 0)."""
    return reference_uniform(counter, seed) if skips_dispatch(counter) else _uniform_op(counter, seed)
