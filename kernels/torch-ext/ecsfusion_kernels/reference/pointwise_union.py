"""The union information of each row, in plain PyTorch."""

from torch import Tensor

__all__ = ["pointwise_union"]


def pointwise_union(
    posteriors: Tensor, clusters: Tensor, logs: Tensor, log_prior: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Log Q(y | clusters) / p(y) of each row, (B, N) at its label and (B, N) averaged over its posteriors.

    Posteriors (2 B, N, C), clusters (2 B, N) and the logarithms (2 B, K, C) of the factors of Q are of the first sides
    of B pairs and then of the second ones; see the op of this name.
    """
    batch = len(posteriors) // 2
    of_rows = logs.gather(1, clusters.unsqueeze(-1).expand(-1, -1, logs.shape[-1]))
    expected = -(posteriors[:batch] * log_prior).sum(-1)
    told = (posteriors * of_rows).sum(-1)
    at_label = of_rows.gather(2, labels.expand(2 * batch, -1).unsqueeze(-1)).squeeze(-1)
    return (
        -log_prior[labels].expand(batch, -1) + at_label[:batch] + at_label[batch:],
        expected + told[:batch] + told[batch:],
    )
