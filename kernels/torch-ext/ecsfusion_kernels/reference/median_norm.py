"""The median of positive numbers, in plain PyTorch."""

import torch
from torch import Tensor

__all__ = ["median_norm"]


def median_norm(norms: Tensor) -> Tensor:
    """(B,) of norms (B, N). See the op of this name."""
    # False for NaN.
    counted = norms > 0
    ordered = torch.where(counted, norms, torch.inf).sort(-1).values
    middle = (counted.sum(-1, keepdim=True) - 1) // 2
    median = ordered.gather(-1, middle.clamp_min(0)).squeeze(-1)
    return torch.where(middle.squeeze(-1) < 0, 1.0, median)
