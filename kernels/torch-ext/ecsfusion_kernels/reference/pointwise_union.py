"""The union information of each row, in plain PyTorch."""

import torch
from torch import Tensor

__all__ = ["pointwise_union"]

LEAST = 1e-300
"""Of a factor; there is no mass where it would count."""


def pointwise_union(
    posteriors: Tensor, clusters: Tensor, factor1: Tensor, factor2: Tensor, prior: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Log2 Q(y | clusters) / p(y) of each row, (B, N) at its label and (B, N) averaged over its posteriors.

    Posteriors (2 B, N, C) and clusters (2 B, N) are of the first sides of B pairs and then of the second ones, the
    factors of Q (B, K, C) of either side; see the op of this name.
    """
    batch = len(posteriors) // 2
    logs = torch.cat([factor1, factor2]).clamp_min(LEAST).log2()
    log_prior = prior.clamp_min(LEAST).log2()
    # Whole rows at once, several times faster than `gather`.
    begins = torch.arange(len(logs), device=logs.device)[:, None] * logs.shape[1]
    of_rows = logs.flatten(0, 1).index_select(0, (clusters + begins).flatten()).view(posteriors.shape)
    expected = -(posteriors[:batch] * log_prior).sum(-1)
    told = (posteriors * of_rows).sum(-1)
    at_label = of_rows.gather(2, labels.expand(2 * batch, -1).unsqueeze(-1)).squeeze(-1)
    return (
        -log_prior[labels].expand(batch, -1) + at_label[:batch] + at_label[batch:],
        expected + told[:batch] + told[batch:],
    )
