"""Rows scaled by their norms, in plain PyTorch."""

import torch
from torch import Tensor

__all__ = ["scaled_rows"]


def scaled_rows(embeddings: Tensor, norms: Tensor, radius: Tensor) -> Tensor:
    """(N, D) float32 of embeddings (N, D), norms (N,) and a radius. See the op of this name."""
    factor = torch.hypot(norms, radius).reciprocal().unsqueeze(-1)
    # The product in float64 is finite for every finite row.
    return (embeddings * factor).float().nan_to_num(0.0, 0.0, 0.0)
