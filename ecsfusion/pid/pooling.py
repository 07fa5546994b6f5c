"""One calibrated posterior from several readouts: q(y | x) ~ p(y) exp(sum_k w_k z_k(y | x)) with weights w >= 0.

The weights minimize the log-loss of held-out rows. This contains calibration by a temperature (one readout), the
product of the posteriors of modalities that are independent given the label (weights of 1), and "knows nothing"
(weights of 0).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ITERATIONS = 8
MAX_FITTED_ROWS = 4096
"""The most rows that the weights are fitted on."""
FIRST_DAMPING = 1e-3


class Pool(NamedTuple):
    """A pooled posterior."""

    log_posterior: Tensor
    """(N, C) float32, natural logarithm."""
    weights: Tensor
    """(K,) float64."""


def pool(logits: Sequence[Tensor], labels: Tensor, log_prior: Tensor) -> Pool:
    """Fit the weights to held-out logits by damped Newton steps; the host reads nothing.

    Args:
        logits: K matrices (N, C): the logarithm of each readout's posterior over the prior, up to a constant by row.
        labels: (N,) int64.
        log_prior: (C,) log p(y), natural logarithm.
    """
    scores = torch.stack([_bounded(part) for part in logits], 1)
    step = max(1, -(-len(labels) // MAX_FITTED_ROWS))
    z, y, base = scores[::step], labels[::step], log_prior.to(scores.dtype)
    number = z.shape[1]
    at_label = z.gather(2, y[:, None, None].expand(-1, number, 1)).squeeze(2)
    eye = torch.eye(number, dtype=torch.float64, device=z.device)

    def at(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = torch.einsum("k,nkc->nc", w.to(z.dtype), z) + base
        log_norm = torch.logsumexp(s, -1)
        loss = (log_norm - s.gather(1, y[:, None]).squeeze(1)).double().mean()
        zq = z * torch.exp(s - log_norm[:, None]).unsqueeze(1)
        mean = zq.sum(2)
        gradient = (mean - at_label).double().mean(0)
        second = torch.einsum("nkc,nlc->kl", zq, z).double() - (mean.T @ mean).double()
        return loss, gradient, second / len(y)

    weights = torch.full((number,), 0.5 / number, dtype=torch.float64, device=z.device)
    # Where a start with weights overflows or does worse than the prior, the steps begin at the prior.
    loss, gradient, hessian = at(weights)
    prior = at(torch.zeros_like(weights))
    worse = ~(loss < prior[0])
    weights = torch.where(worse, 0.0, weights)
    loss, gradient, hessian = (
        torch.where(worse, p, v) for p, v in zip(prior, (loss, gradient, hessian), strict=True)
    )
    damping = torch.full_like(loss, FIRST_DAMPING)
    for _ in range(ITERATIONS):
        free = ((weights > 0) | (gradient < 0)).double()
        curvature = hessian * free[:, None] * free
        ridge = damping * hessian.diagonal() + 1e-9 * hessian.diagonal().amax() + 1e-12
        direction = torch.linalg.solve(curvature + torch.diag(ridge) + eye * (1 - free), gradient * free)
        candidate = (weights - direction).clamp_min(0.0)
        new = at(candidate)
        better = new[0] < loss
        weights = torch.where(better, candidate, weights)
        loss, gradient, hessian = (
            torch.where(better, n, o) for n, o in zip(new, (loss, gradient, hessian), strict=True)
        )
        damping = torch.where(better, damping / 5, damping * 10).clamp(1e-6, 1e6)
    pooled = torch.einsum("k,nkc->nc", weights.to(scores.dtype), scores) + base
    return Pool(torch.log_softmax(pooled, -1), weights)


def _bounded(logits: Tensor) -> Tensor:
    """Logits centered by row; a readout that overflowed says nothing."""
    centered = logits - logits.mean(-1, keepdim=True)
    return centered.nan_to_num(0.0, 0.0, 0.0).clamp(-1e4, 1e4)
