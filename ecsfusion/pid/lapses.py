"""A share of the rows whose label has nothing to do with what the readouts say of it: the lapse rate of a pool.

Labels that are wrong, texts that belong to another picture, a recording of nothing: however sure the readouts are, a
row may be such a row, and no temperature of a softmax says so. The posterior is then (1 - e) q(y | x) + e p(y), where
q is the pool and e the lapse rate, as of an observer who does not look at every stimulus (Wichmann and Hill, Perception
& Psychophysics 63, 2001). The weights of the pool and the lapse rate are fitted together: without it the weights are
small for the sake of a few rows.
"""

import math
from typing import Any

import numpy as np
import torch
from ecsfusion_kernels.reference.pool_weights import FIRST_SUM, WEIGHT_COST, bounded, newton
from torch import Tensor

TRIED_RATES = (0.003, 0.03, 0.2)
"""Lapse rates that are tried beside the weights as they are. Where none of them gains"""
MIN_TRIED = 0.5
"""nats, none is fitted; of rows without lapses it is less in nearly all cases."""
MIN_GAIN = 4.0
"""A rate that is fitted must gain so many nats."""
FIRST_RATE = 0.05
ITERATIONS = 20
TINY = 1e-12


def may_lapse(told: Tensor, prior: Tensor) -> bool:
    """Whether a lapse rate would gain anything beside weights that were fitted without one; the host reads it.

    Args:
        told: (B, N), log q(y_n | x_n) of B pools.
        prior: (N,), log p(y_n).
    """
    rates = torch.tensor(TRIED_RATES, dtype=torch.float64, device=told.device).view(-1, 1, 1)
    gains = torch.logaddexp(torch.log1p(-rates) + told, rates.log() + prior) - told
    return bool((gains.sum(-1) > MIN_TRIED).any())


def fit_lapses(
    logits: Tensor, labels: Tensor, log_prior: Tensor, weights: Tensor, told: Tensor
) -> tuple[Tensor, Tensor]:
    """The weights (B, K) of B pools and their lapse rates (B,), float64; 0 where none gains `MIN_GAIN`.

    By Fisher scoring, damped.

    Args:
        logits: (B, K, N, C), as in `pool`.
        labels: (N,) int64.
        log_prior: (C,).
        weights: (B, K) float64, fitted without lapses.
        told: (B, N) float64, log q(y_n | x_n) by them.
    """
    batch, number, rows, classes = logits.shape
    # Classes before rows, and from the logit of the label, as in `pool_weights`.
    z = bounded(logits).mT.contiguous()
    cost = z.flatten(2).square().mean(2).sqrt().clamp_max(1.0).double() * (WEIGHT_COST / rows)
    z = z - z.gather(2, labels.expand(batch, number, 1, rows))
    prior = log_prior.double().exp()
    of_label = prior[labels]
    place = labels.expand(batch, 1, rows)
    xp: Any = np if z.device.type == "cpu" else torch

    def array(values: Tensor) -> Any:
        return values.numpy() if xp is np else values

    def at(parameters: Any) -> tuple[Any, Any, Any]:
        """Log-loss (B,), gradient (B, K + 1) and Fisher information (B, K + 1, K + 1) of weights and odds."""
        w, odds = torch.as_tensor(parameters, device=z.device).split([number, 1], 1)
        s = (w.to(z.dtype).unsqueeze(1) @ z.flatten(2)).view(batch, classes, rows) + log_prior[:, None]
        q = s.softmax(1)
        of_all = q.double() + odds.unsqueeze(2) * prior[:, None]
        likelihood = of_all.gather(1, place).squeeze(1).clamp_min(TINY)
        loss = odds[:, 0].log1p() - likelihood.log().mean(1) + (cost * w).sum(1)
        # The share of the likelihood of a row that is not a lapse; -d log q / d w is `mean`.
        kept = (q.gather(1, place).squeeze(1) / likelihood).unsqueeze(1)
        mean = (z * q.unsqueeze(1)).sum(2).double()
        lapse = of_label / likelihood
        gradient = torch.cat(
            [(kept * mean).mean(2) + cost, (1 / (1 + odds) - lapse.mean(1, keepdim=True))], 1
        )
        # Sums over classes of products of d p / d parameter over p, where p = (q + odds * prior) / (1 + odds).
        inverse = 1 / (of_all.clamp_min(TINY) * (1 + odds).unsqueeze(2))
        slope = (z - mean.to(z.dtype).unsqueeze(2)) * q.unsqueeze(1)
        scaled = slope * inverse.to(z.dtype).unsqueeze(1)
        of_odds = (prior[:, None] - q) / (1 + odds).unsqueeze(2)
        fisher = z.new_empty(batch, number + 1, number + 1, dtype=torch.float64)
        fisher[:, :number, :number] = (scaled.flatten(2) @ slope.flatten(2).mT).double()
        fisher[:, :number, number] = (scaled.flatten(2) @ of_odds.to(z.dtype).flatten(1).unsqueeze(2))[
            ..., 0
        ].double()
        fisher[:, number, :number] = fisher[:, :number, number]
        fisher[:, number, number] = (of_odds.square() * inverse).sum((1, 2))
        return array(loss), array(gradient), array(fisher / rows)

    # A readout that a pool is without keeps no weight.
    is_there = (z != 0).flatten(2).any(2).double()
    start = FIRST_SUM * is_there / is_there.sum(1, keepdim=True).clamp_min(1)
    start = torch.cat([start, start.new_full((batch, 1), FIRST_RATE)], 1)
    before = -told.mean(1) + (cost * weights).sum(1)
    found = newton(
        xp,
        at,
        array(start),
        array(torch.full_like(before, math.inf)),
        array(torch.eye(number + 1, dtype=torch.float64, device=z.device)),
        ITERATIONS,
    )
    after = torch.as_tensor(at(found)[0], device=z.device)
    found = torch.as_tensor(found, device=z.device)
    gains = (before - after) * rows > MIN_GAIN
    odds = found[:, number]
    return torch.where(gains[:, None], found[:, :number], weights), torch.where(gains, odds / (1 + odds), 0.0)
