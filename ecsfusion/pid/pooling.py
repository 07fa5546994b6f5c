"""One calibrated posterior from several readouts: q(y | x) ~ p(y) exp(sum_k w_k z_k(y | x)) with weights w >= 0.

The weights minimize the log-loss of held-out rows. This contains calibration by a temperature (one readout), the
product of the posteriors of modalities that are independent given the label (weights of 1), and "knows nothing"
(weights of 0). Where a share of the rows is labelled at random the posterior says so (`ecsfusion.pid.lapses`).
"""

from typing import NamedTuple

import torch
from ecsfusion_kernels import pool_weights
from ecsfusion_kernels.precision import in_full_precision
from ecsfusion_kernels.reference.pool_weights import MAX_FITTED_ROWS, bounded
from torch import Tensor

from ecsfusion.pid.lapses import fit_lapses, may_lapse

SMALL = 1e3
"""Logits within it are far from overflow."""


class Pool(NamedTuple):
    """B pooled posteriors."""

    log_posterior: Tensor
    """(B, N, C) float32, natural logarithm."""
    weights: Tensor
    """(B, K) float64."""
    without_lapses: Tensor | None = None
    """(B, N, C) float32: the log posteriors of rows that are no lapses; None where no pool has any."""


@in_full_precision
def pool(
    logits: Tensor,
    labels: Tensor,
    log_prior: Tensor,
    max_fitted_rows: int = MAX_FITTED_ROWS,
    has_lapses: bool = False,
) -> Pool:
    """Fit the weights of B pools to held-out logits by damped Newton steps; on a GPU the host reads nothing.

    A weight costs 2 / N nats, so that few rows give no weight to noise; less for logits that are small.

    Args:
        logits: (B, K, N, C): the logarithm of each readout's posterior over the prior, up to a constant by row. Zeros
            where a pool is without a readout.
        labels: (N,) int64.
        log_prior: (C,) log p(y), natural logarithm.
        max_fitted_rows: the most rows that the weights are fitted on.
        has_lapses: whether a lapse rate is fitted in any case, as for readouts of rows that are no lapses.
    """
    base = log_prior.to(logits.dtype)
    weights = pool_weights(logits, labels, base, max_fitted_rows=max_fitted_rows)[0]
    log_posterior = _log_posterior(logits, weights, base)
    step = max(1, -(-len(labels) // max_fitted_rows))
    return _with_lapses(
        Pool(log_posterior, weights), logits, logits[:, :, ::step], labels, base, step, has_lapses
    )


@in_full_precision
def pool_with_part(
    logits: Tensor,
    number: int,
    labels: Tensor,
    log_prior: Tensor,
    max_fitted_rows: int = MAX_FITTED_ROWS,
    has_lapses: bool = False,
) -> Pool:
    """Two pools: of K readouts, and of the first of them alone, whose others have a weight of 0.

    Args:
        logits: (K, N, C), as in `pool`.
        number: of the readouts that are pooled alone.
        labels: (N,) int64.
        log_prior: (C,) log p(y), natural logarithm.
        max_fitted_rows: the most rows that the weights are fitted on.
        has_lapses: whether a lapse rate is fitted in any case, as for readouts of rows that are no lapses.
    """
    base = log_prior.to(logits.dtype)
    step = max(1, -(-len(labels) // max_fitted_rows))
    # Only what is fitted is there twice.
    fitted = logits[:, ::step].repeat(2, 1, 1, 1)
    fitted[1, number:] = 0
    weights = pool_weights(fitted, labels[::step], base, max_fitted_rows=max_fitted_rows)[0]
    weights[1, number:] = 0
    every = logits.unsqueeze(0)
    return _with_lapses(
        Pool(_log_posterior(every, weights, base), weights), every, fitted, labels, base, step, has_lapses
    )


def _with_lapses(
    pooled: Pool, logits: Tensor, fitted: Tensor, labels: Tensor, base: Tensor, step: int, has_lapses: bool
) -> Pool:
    """The pools, fitted anew with a lapse rate where that tells more.

    Args:
        pooled: B pools without lapses.
        logits: (B or 1, K, N, C) of all rows.
        fitted: (B, K, R, C) of every `step`th row.
        labels: (N,) int64.
        base: (C,), log p(y).
        step: the fitted rows are so far apart.
        has_lapses: as in `pool`.
    """
    if not logits.numel():
        return pooled
    y = labels[::step]
    told = (
        pooled.log_posterior[:, ::step].gather(2, y.expand(len(fitted), -1).unsqueeze(2)).squeeze(2).double()
    )
    if not has_lapses and not may_lapse(told, base[y].double()):
        return pooled
    weights, rates = fit_lapses(fitted, y, base, pooled.weights, told)
    log_posterior = _log_posterior(logits, weights, base)
    rates = rates.to(base.dtype).view(-1, 1, 1)
    if not bool((rates > 0).any()):
        return pooled
    return Pool(
        torch.logaddexp(torch.log1p(-rates) + log_posterior, rates.log() + base), weights, log_posterior
    )


def _log_posterior(logits: Tensor, weights: Tensor, base: Tensor) -> Tensor:
    """The pooled log posteriors (B, N, C) of logits (B or 1, K, N, C) by weights (B, K); `base` (C,) is log p(y)."""
    rows, classes = logits.shape[2:]
    if logits.device.type == "cpu" and logits.numel():
        low, high = (float(end) for end in logits.aminmax())
        # The softmax does not need small logits to be centered. A NaN fails the comparison.
        if not (low > -SMALL and high < SMALL):
            logits = bounded(logits)
    else:
        logits = bounded(logits)
    flat, weights = logits.flatten(2), weights.to(logits.dtype)
    pooled = weights @ flat[0] if len(flat) == 1 else (weights.unsqueeze(1) @ flat)
    pooled = pooled.view(len(weights), rows, classes) + base
    # Of a few classes by long vectors: row by row it takes a CPU ten times as long.
    return torch.log_softmax(pooled.mT, 1).mT
