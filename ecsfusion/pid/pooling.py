"""One calibrated posterior from several readouts: q(y | x) ~ p(y) exp(sum_k w_k z_k(y | x)) with weights w >= 0.

The weights minimize the log-loss of held-out rows. This contains calibration by a temperature (one readout), the
product of the posteriors of modalities that are independent given the label (weights of 1), and "knows nothing"
(weights of 0).
"""

from typing import NamedTuple

import torch
from ecsfusion_kernels import pool_weights
from ecsfusion_kernels.precision import in_full_precision
from ecsfusion_kernels.reference.pool_weights import MAX_FITTED_ROWS, bounded
from torch import Tensor

SMALL = 1e3
"""Logits within it are far from overflow."""


class Pool(NamedTuple):
    """B pooled posteriors."""

    log_posterior: Tensor
    """(B, N, C) float32, natural logarithm."""
    weights: Tensor
    """(B, K) float64."""


@in_full_precision
def pool(logits: Tensor, labels: Tensor, log_prior: Tensor, max_fitted_rows: int = MAX_FITTED_ROWS) -> Pool:
    """Fit the weights of B pools to held-out logits by damped Newton steps; on a GPU the host reads nothing.

    A weight costs 2 / N nats, so that few rows give no weight to noise; less for logits that are small.

    Args:
        logits: (B, K, N, C): the logarithm of each readout's posterior over the prior, up to a constant by row. Zeros
            where a pool is without a readout.
        labels: (N,) int64.
        log_prior: (C,) log p(y), natural logarithm.
        max_fitted_rows: the most rows that the weights are fitted on.
    """
    base = log_prior.to(logits.dtype)
    weights = pool_weights(logits, labels, base, max_fitted_rows=max_fitted_rows)[0]
    return Pool(_log_posterior(logits, weights, base), weights)


def _log_posterior(logits: Tensor, weights: Tensor, base: Tensor) -> Tensor:
    """The pooled log posteriors (B, N, C) of logits (B, K, N, C) by weights (B, K), with log p(y) in `base` (C,)."""
    batch, _, rows, classes = logits.shape
    if logits.device.type == "cpu" and logits.numel():
        low, high = (float(end) for end in logits.aminmax())
        # The softmax does not need small logits to be centered. A NaN fails the comparison.
        if not (low > -SMALL and high < SMALL):
            logits = bounded(logits)
    else:
        logits = bounded(logits)
    pooled = (weights.to(logits.dtype).unsqueeze(1) @ logits.flatten(2)).view(batch, rows, classes) + base
    # Of a few classes by long vectors: row by row it takes a CPU ten times as long.
    return torch.log_softmax(pooled.mT, 1).mT
