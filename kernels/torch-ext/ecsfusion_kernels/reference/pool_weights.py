"""The weights of pooled readouts by damped Newton steps, on NumPy views of CPU tensors and on tensors elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

try:
    import numpy as np
# PyTorch works without NumPy, and so does the kernel package by itself.
except ImportError:
    np = None  # type: ignore[assignment]

from ..precision import in_full_precision

__all__ = ["pool_weights"]

# numpy.ndarray or torch.Tensor.
Array = Any

ITERATIONS = 14
MAX_FITTED_ROWS = 4096
"""The most rows that the weights are fitted on."""
FIRST_SUM = 0.8
"""Of the weights at the start."""
FIRST_DAMPING = 1e-3
SETTLED = 1e-5
"""Nats by which a step must change the loss for another step."""
WEIGHT_COST = 2.0
"""In nats and rows; of a useless readout the log-likelihood gains half a nat on average."""
MAX_RISE = 4.0
"""A weight rises in one step to at most so many times what it was, and the weight of the start."""
CAUTION = 1.25
"""How much more than a step to 0 would need is added to the curvature of a weight after each step that went too far."""
TINY = 1e-12
LARGEST = 1e4
"""Centered logits are clamped to it."""


@in_full_precision
def pool_weights(
    logits: Tensor,
    labels: Tensor,
    log_prior: Tensor,
    rows: Tensor | None = None,
    bounds: Tensor | None = None,
    max_fitted_rows: int = MAX_FITTED_ROWS,
    iterations: int = ITERATIONS,
) -> Tensor:
    """The weights (S, B, K) float64 of B pools of K readouts, fitted on each of S sets of rows.

    q(y | x) ~ p(y) exp(sum_k w_k z_k(y | x)) with the w >= 0 that minimize the log-loss, and a cost for each, by damped
    Newton steps from equal weights. On a CPU they end where no loss changes by `SETTLED`.

    Args:
        logits: (B, K, N, C) float32.
        labels: (N,) int64.
        log_prior: (C,) float32.
        rows: the rows (R,) int64 of all sets, one set after another; None for one set of all rows.
        bounds: where in `rows` each set begins, and the end of the last: (S + 1,) int64.
        max_fitted_rows: the most rows that the weights are fitted on; of more, evenly apart.
        iterations: the most steps.
    """
    if rows is None or bounds is None:
        step = max(1, -(-len(labels) // max_fitted_rows))
        return _fitted(logits[:, :, ::step], labels[::step], log_prior, iterations).unsqueeze(0)
    found = []
    for start, end in pairwise(bounds.tolist()):
        some = rows[start : end : max(1, -(-(end - start) // max_fitted_rows))]
        found.append(_fitted(logits[:, :, some], labels[some], log_prior, iterations))
    return torch.stack(found) if found else logits.new_zeros(0, *logits.shape[:2], dtype=torch.float64)


def _fitted(logits: Tensor, y: Tensor, log_prior: Tensor, iterations: int) -> Tensor:
    """The weights (B, K) that are fitted on all rows; 0 where there are none."""
    if not logits.numel():
        return logits.new_zeros(logits.shape[:2], dtype=torch.float64)
    # Classes before rows: sums over a few classes are then sums of long vectors.
    fitted = bounded(logits).mT.contiguous()
    base = log_prior.to(fitted.dtype)
    batch, number, classes, rows = fitted.shape
    z = fitted.flatten(2)
    cost = z.square().mean(2).sqrt().clamp_max(1.0).double() * (WEIGHT_COST / rows)
    # From the logit of the label: of rows that are told fully, sums of large logits would leave only rounding.
    fitted -= fitted.gather(2, y.expand(batch, number, 1, rows))
    prior_told = base[y].double().mean()

    # The algebra of a few weights costs a fraction in NumPy; on a GPU it stays there.
    xp: Any = np if z.device.type == "cpu" and np is not None else torch

    def array(values: Tensor) -> Array:
        return values.numpy() if xp is np else values

    def at(weights: Array) -> tuple[Array, Array, Array]:
        """Log-loss (B,), its gradient (B, K) and curvature (B, K, K)."""
        w = torch.as_tensor(weights, device=z.device)
        s = (w.to(z.dtype).unsqueeze(1) @ z).view(batch, classes, rows).add_(base[:, None])
        largest = s.amax(1, keepdim=True)
        q = s.sub_(largest).exp_()
        norm = q.sum(1, keepdim=True)
        log_norm = norm.log().add_(largest).mean((1, 2), dtype=torch.float64)
        share = fitted * q.div_(norm).unsqueeze(1)
        mean = share.sum(2)
        gradient = mean.mean(2, dtype=torch.float64) + cost
        curvature = (share.flatten(2) @ z.mT).double() - (mean @ mean.mT).double()
        loss = log_norm - prior_told + (cost * w).sum(1)
        return array(loss), array(gradient), array(curvature / rows)

    start = torch.full((batch, number), FIRST_SUM / number, dtype=torch.float64, device=z.device)
    weights = newton(
        xp,
        at,
        array(start),
        array(-prior_told),
        array(torch.eye(number, dtype=start.dtype, device=z.device)),
        iterations,
    )
    return torch.as_tensor(weights, device=z.device)


def newton(
    xp: Any,
    at: Callable[[Array], tuple[Array, Array, Array]],
    weights: Array,
    nothing: Array,
    identity: Array,
    iterations: int,
) -> Array:
    """The weights (B, K) that minimize a loss, none of them below 0, by damped Newton steps.

    Args:
        xp: numpy or torch.
        at: loss (B,), gradient (B, K) and curvature (B, K, K) of weights.
        weights: the start.
        nothing: () the loss of the prior.
        identity: (K, K).
        iterations: the most steps.
    """
    start = weights
    # Where a start with weights overflows or does worse than the prior, the steps begin at the prior.
    state = at(weights)
    worse = ~(state[0] < nothing)
    if xp is torch or worse.any():
        weights = xp.where(worse[:, None], 0 * weights, weights)
        state = _chosen(xp, worse, at(0 * weights), state)
    damping, rejected = 0 * state[0] + FIRST_DAMPING, 0 * state[0]
    for _ in range(iterations):
        loss, gradient, curvature = state
        free = xp.asarray((weights > 0) | (gradient < 0), dtype=xp.float64)
        diagonal = xp.diagonal(curvature, 0, 1, 2)
        ridge = damping[:, None] * diagonal + 1e-9 * xp.amax(diagonal, 1)[:, None] + 1e-12
        # After a step that went too far no weight falls to 0 at once, however flat the loss is around it.
        ridge = ridge + CAUTION * rejected[:, None] * xp.clip(gradient, 0, None) / xp.clip(
            weights, TINY, None
        )
        system = curvature * free[:, :, None] * free[:, None] + (ridge + 1 - free)[:, :, None] * identity
        direction = xp.linalg.solve(system, (gradient * free)[:, :, None])[:, :, 0]
        # Where the loss is nearly flat its curvature says nothing about what is far away.
        candidate = xp.minimum(xp.maximum(weights - direction, 0 * weights), MAX_RISE * weights + start)
        new = at(candidate)
        better = new[0] < loss
        rejected = xp.where(better, xp.clip(rejected, None, 1), rejected + 1)
        weights = xp.where(better[:, None], candidate, weights)
        state = _chosen(xp, better, new, state)
        damping = xp.clip(xp.where(better, damping / 5, damping * 10), 1e-6, 1e6)
        if xp is np and (abs(loss - new[0]) < SETTLED).all():
            break
    return weights


def _chosen(
    xp: Any, condition: Array, new: Sequence[Array], old: Sequence[Array]
) -> tuple[Array, Array, Array]:
    """Loss, gradient and curvature of `new` where the condition (B,) holds, else of `old`."""
    loss, gradient, curvature = (
        xp.where(condition.reshape(-1, *[1] * (n.ndim - 1)), n, o) for n, o in zip(new, old, strict=True)
    )
    return loss, gradient, curvature


def bounded(logits: Tensor) -> Tensor:
    """Logits centered by row; a readout that overflowed says nothing."""
    centered = logits - logits.mean(-1, keepdim=True)
    return centered.nan_to_num_(0.0, 0.0, 0.0).clamp_(-LARGEST, LARGEST)
