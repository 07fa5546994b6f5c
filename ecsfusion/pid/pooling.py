"""One calibrated posterior from several readouts: q(y | x) ~ p(y) exp(sum_k w_k z_k(y | x)) with weights w >= 0.

The weights minimize the log-loss of held-out rows. This contains calibration by a temperature (one readout), the
product of the posteriors of modalities that are independent given the label (weights of 1), and "knows nothing"
(weights of 0).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from ecsfusion_kernels.precision import in_full_precision
from torch import Tensor

ITERATIONS = 14
MAX_FITTED_ROWS = 4096
"""The most rows that the weights are fitted on."""
FIRST_DAMPING = 1e-3
SETTLED = 1e-5
"""Nats by which a step must change the loss for another step."""
WEIGHT_COST = 2.0
"""In nats and rows; of a useless readout the log-likelihood gains half a nat on average."""
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

    A weight costs `WEIGHT_COST` / N nats, so that few rows give no weight to noise; less for logits that are small.

    Args:
        logits: (B, K, N, C): the logarithm of each readout's posterior over the prior, up to a constant by row. Zeros
            where a pool is without a readout.
        labels: (N,) int64.
        log_prior: (C,) log p(y), natural logarithm.
        max_fitted_rows: the most rows that the weights are fitted on.
    """
    step = max(1, -(-len(labels) // max_fitted_rows))
    # Classes before rows: sums over a few classes are then sums of long vectors.
    fitted = _bounded(logits[:, :, ::step]).mT.contiguous()
    y, base = labels[::step], log_prior.to(fitted.dtype)
    batch, number, classes, rows = fitted.shape
    z = fitted.flatten(2)
    cost = z.square().mean(2).sqrt().clamp_max(1.0).double() * (WEIGHT_COST / rows)
    at_label = fitted.gather(2, y.expand(batch, number, 1, rows)).squeeze(2)
    told = at_label.double().mean(2)
    prior_told = base[y].double().mean()

    def at(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-loss (B,), its gradient (B, K) and curvature (B, K, K)."""
        s = (weights.to(z.dtype).unsqueeze(1) @ z).view(batch, classes, rows).add_(base[:, None])
        largest = s.amax(1, keepdim=True)
        q = s.sub_(largest).exp_()
        norm = q.sum(1, keepdim=True)
        loss = (norm.log().add_(largest)).squeeze(1).double().mean(1)
        loss = loss - (weights * told).sum(1) - prior_told + (cost * weights).sum(1)
        share = fitted * q.div_(norm).unsqueeze(1)
        mean = share.sum(2)
        gradient = mean.double().mean(2) - told + cost
        curvature = (share.flatten(2) @ z.mT).double() - (mean @ mean.mT).double()
        return loss, gradient, curvature / rows

    weights = torch.full((batch, number), 0.8 / number, dtype=torch.float64, device=z.device)
    # Where a start with weights overflows or does worse than the prior, the steps begin at the prior.
    state = at(weights)
    worse = ~(state[0] < -prior_told)
    if z.device.type != "cpu" or bool(worse.any()):
        weights = torch.where(worse[:, None], 0.0, weights)
        state = _chosen(worse, at(torch.zeros_like(weights)), state)
    damping = torch.full_like(state[0], FIRST_DAMPING)
    for _ in range(ITERATIONS):
        loss, gradient, curvature = state
        free = ((weights > 0) | (gradient < 0)).double()
        diagonal = curvature.diagonal(dim1=1, dim2=2)
        ridge = damping[:, None] * diagonal + 1e-9 * diagonal.amax(1, keepdim=True) + 1e-12
        system = curvature * free[:, :, None] * free[:, None] + torch.diag_embed(ridge + 1 - free)
        direction = torch.linalg.solve(system, gradient * free)
        candidate = (weights - direction).clamp_min(0.0)
        new = at(candidate)
        better = new[0] < loss
        weights = torch.where(better[:, None], candidate, weights)
        state = _chosen(better, new, state)
        damping = torch.where(better, damping / 5, damping * 10).clamp(1e-6, 1e6)
        if z.device.type == "cpu" and bool(((loss - new[0]).abs() < SETTLED).all()):
            break
    return Pool(_log_posterior(logits, weights, base), weights)


def _log_posterior(logits: Tensor, weights: Tensor, base: Tensor) -> Tensor:
    """The pooled log posteriors (B, N, C) of logits (B, K, N, C) by weights (B, K), with log p(y) in `base` (C,)."""
    batch, _, rows, classes = logits.shape
    if logits.device.type == "cpu" and logits.numel():
        low, high = (float(end) for end in logits.aminmax())
        # The softmax does not need small logits to be centered. A NaN fails the comparison.
        if not (low > -SMALL and high < SMALL):
            logits = _bounded(logits)
    else:
        logits = _bounded(logits)
    pooled = (weights.to(logits.dtype).unsqueeze(1) @ logits.flatten(2)).view(batch, rows, classes) + base
    return torch.log_softmax(pooled, -1)


def _chosen(condition: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and curvature of `new` where the condition (B,) holds, else of `old`."""
    loss, gradient, curvature = (
        torch.where(condition.view(-1, *[1] * (n.ndim - 1)), n, o) for n, o in zip(new, old, strict=True)
    )
    return loss, gradient, curvature


def _bounded(logits: Tensor) -> Tensor:
    """Logits centered by row; a readout that overflowed says nothing."""
    centered = logits - logits.mean(-1, keepdim=True)
    return centered.nan_to_num_(0.0, 0.0, 0.0).clamp_(-1e4, 1e4)
