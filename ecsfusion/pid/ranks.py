"""Ranks of columns in place of their values: what skewed columns and heavy tails hide from a line.

A column's ranks, as quantiles of a Gaussian, are the same for every increasing function of it, such as a probability
and its logarithm. They are looked at only of columns that are no Gaussians themselves.
"""

import torch
from torch import Tensor

from ecsfusion.pid.binned import sorted_columns
from ecsfusion.pid.linear import LinearSums, TrainingSets, linear_readouts, standardize
from ecsfusion.pid.trial import is_worth, some_rows, told_by

MAX_COLUMNS = 128
"""With more columns none is looked at: their covariances would cost as much again."""
MAX_SAMPLED_ROWS = 2048
"""The most rows that quantiles are taken of."""
MAX_QUANTILES = 256
MIN_CHANGE = 0.02
"""Share of a column's variance that its ranks do not tell by a line, above which it is no Gaussian."""
TINY = 1e-12


def rank_readouts(rows: Tensor, sets: TrainingSets, known: list[Tensor], log_prior: Tensor) -> list[Tensor]:
    """Held-out logits (2, N, C) by lines of the ranks, or none where by halves they tell nothing new.

    Args:
        rows: (N, D) standardized rows.
        sets: all training sets.
        known: (2, N, C) each, held-out logits of other readouts.
        log_prior: (C,).
    """
    if rows.shape[1] > MAX_COLUMNS:
        return []
    sample = sorted_columns(rows[:: max(1, -(-len(rows) // MAX_SAMPLED_ROWS))].T.contiguous())
    if not bool((_told_by_ranks(sample) < 1 - MIN_CHANGE).any()):
        return []
    number = min(MAX_QUANTILES, sample.shape[1])
    share = torch.linspace(0, 1, number, dtype=torch.float64, device=rows.device)
    edges = sample[:, (share * (sample.shape[1] - 1)).long()].contiguous()
    places = some_rows(len(rows), rows.device)
    tried = standardize(_ranks(rows[places], edges))
    if not is_worth(told_by(tried, sets, places), known, sets, places, log_prior):
        return []
    return linear_readouts(LinearSums.make(standardize(_ranks(rows, edges)), sets), log_prior).logits


def _told_by_ranks(columns: Tensor) -> Tensor:
    """The share (D,) of the variance of ascending columns (D, n) that a line of their ranks tells.

    It is the statistic of Shapiro and Francia (1972), near 1 of a Gaussian.
    """
    number = columns.shape[1]
    place = torch.arange(number, dtype=torch.float32, device=columns.device)
    scores = torch.special.ndtri((place + 0.5) / number)
    away = columns - columns.mean(1, keepdim=True)
    size = away.square().sum(1) * scores.square().sum()
    return torch.where(size > 0, (away @ scores).square() / size.clamp_min(TINY), 1.0)


def _ranks(rows: Tensor, edges: Tensor) -> Tensor:
    """The quantiles (N, D) of a Gaussian that have the ranks of the values among edges (D, E); of ties, the middle."""
    values = rows.T.contiguous()
    place = torch.searchsorted(edges, values) + torch.searchsorted(edges, values, right=True)
    return torch.special.ndtri((0.5 * place.float() + 0.5) / (edges.shape[1] + 1)).T.contiguous()
