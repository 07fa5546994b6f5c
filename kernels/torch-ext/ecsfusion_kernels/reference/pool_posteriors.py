"""Posteriors of pools of readouts, in plain PyTorch."""

import torch
from torch import Tensor

__all__ = ["pool_posteriors"]


def pool_posteriors(logits: Tensor, weights: Tensor, part: Tensor, log_prior: Tensor) -> Tensor:
    """Posteriors (B, N, C) float64, ~ p(y) exp(sum of weight times logit), with the weights of the other part.

    Logits (B, K, N, C), weights (2, B, K), part (N,), log_prior (C,); see the op of this name.
    """
    of_rows = weights.flip(0)[part].permute(1, 2, 0).unsqueeze(-1)
    total = log_prior.repeat(len(logits), logits.shape[2], 1)
    # Readout by readout: a product of all takes a CPU up to three times as long.
    for number in range(logits.shape[1]):
        total.addcmul_(of_rows[:, number], logits[:, number].double())
    return torch.softmax(total, -1)
