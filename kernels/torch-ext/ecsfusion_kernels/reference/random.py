"""Random numbers without a state, in plain PyTorch."""

import torch
from torch import Tensor

__all__ = ["uniform"]


def uniform(counter: Tensor, seed: int) -> Tensor:
    """Numbers in (0, 1) that depend on (seed, counter) alone; float32, the shape of `counter` (int64, >= 0).

    Two rounds of the 32-bit finalizer "lowbias32" (C. Wellons, 2018), 24 bits of it.
    """
    key1, key2 = keys(seed)
    mixed = _mix((counter & 0xFFFFFFFF) ^ key1)
    mixed = _mix(mixed ^ (counter >> 32) ^ key2)
    # For the largest number the sum rounds up to 1, which is excluded.
    return (((mixed >> 8).to(torch.float32) + 0.5) / 2**24).clamp_max(1 - 2**-24)


def keys(seed: int) -> tuple[int, int]:
    """Two unsigned 32-bit numbers that stand for a seed."""
    return _key(seed), _key(~seed)


def _mix(x: Tensor) -> Tensor:
    # int64 products wrap; only their lower 32 bits are used.
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _key(seed: int) -> int:
    return (seed * 0x9E3779B9 + 0x85EBCA6B) & 0xFFFFFFFF
