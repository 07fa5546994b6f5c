"""Keys of rows by their values, in plain PyTorch."""

import torch
from torch import Tensor

from .random import uniform

__all__ = ["hash_rows"]

HASHED_VALUES = 1 << 18
"""Values that are hashed at a time."""
MULTIPLIER = 6364136223846793005
MIXER = 1442695040888963407


def hash_rows(
    rows: Tensor, columns: Tensor | None, seed: int, keys: Tensor | None = None, bits: int = 0
) -> Tensor:
    """A hash (N,) int64 of the values (N, d) of some columns (d,) int64, added to multiples of earlier keys (N,).

    The sum of bits times odd factors, modulo 2^64. Rows that are equal in float32 have equal keys. With `bits` it is
    mixed.
    """
    if columns is None:
        columns = torch.arange(rows.shape[1], device=rows.device)
    factors = (uniform(columns, seed).double() * 2**31).to(torch.int64) * 2 + 1
    parts = []
    for chunk in rows.split(max(1, HASHED_VALUES // max(1, rows.shape[1]))):
        # The same values in another dtype have the same key; adding zero makes -0 into 0.
        values = (chunk.float() + 0).contiguous().view(torch.int32).to(torch.int64)
        parts.append(values.mul_(factors).sum(-1))
    found = torch.cat(parts)
    if keys is not None:
        found = keys * MULTIPLIER + found
    return mixed(found, bits) if bits else found


def mixed(keys: Tensor, bits: int) -> Tensor:
    """Keys (N,) int64 of so many bits, below 64, each of which depends on all bits of the given keys (N,) int64."""
    keys = (keys ^ (keys >> 29)) * MIXER
    return (keys ^ (keys >> 31)) & ((1 << bits) - 1)
