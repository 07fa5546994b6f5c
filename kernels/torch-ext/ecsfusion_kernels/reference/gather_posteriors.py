"""Posteriors of rows in another order, in plain PyTorch."""

import torch
from torch import Tensor

__all__ = ["gather_posteriors"]


def gather_posteriors(logits: Tensor, order: Tensor) -> Tensor:
    """Posteriors (M, R, C) float64 of the rows `order` (R,) of logits (M, N, C), in which NaN is 0.

    See the op of this name.
    """
    return torch.softmax(logits.index_select(1, order).double().nan_to_num(), -1)
