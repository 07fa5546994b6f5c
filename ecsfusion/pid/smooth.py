"""Smooth readouts: curves, steps and products of a few directions, of which lines see nothing and clusters too little.

The directions are those that other readouts of a side, or of two, have found. Their squares and products, and waves
across them (random Fourier features, Rahimi and Recht 2007), are the columns of a multinomial logistic regression. A
few accelerated steps in the metric of the columns' covariance fit it, by the bound of Böhning (1992) on the curvature.
"""

import torch
from ecsfusion_kernels import uniform
from torch import Tensor

from ecsfusion.pid.cholesky import factored, solved
from ecsfusion.pid.linear import TrainingSets, tells_more

WAVES = 64
"""Of each width."""
WIDTHS = (1.0, 3.0)
"""Standard deviations of the waves' frequencies, for coordinates of variance 1."""
RIDGE = 0.02
"""Added to the variance of the columns, beside which the largest of them are of size 1."""
STEPS = 8
MAX_COORDINATE = 4.0
"""Coordinates farther from their mean, in standard deviations of the widest, are moved there."""
MAX_FITTED_ROWS = 8192
"""The most rows that a regression is fitted on; more do not tell more of so few columns."""
MAX_TRIED_ROWS = 2048
"""The most rows that it is tried on."""
TINY = 1e-12


def smooth_readout(points: Tensor, sets: TrainingSets, log_prior: Tensor, random_seed: int) -> Tensor:
    """Held-out logits (N, C) of a smooth function of each row's coordinates.

    Args:
        points: (N, T, q) coordinates by every training set, of widths that say how much they count; (N, 1, q) where
            those of all sets are the same.
        sets: T training sets, one of which reads each row.
        log_prior: (C,).
        random_seed: of the waves.
    """
    logits = torch.zeros_like(sets.one_hot)
    for number in range(len(sets.counts)):
        own = points[:, min(number, points.shape[1] - 1)]
        is_read = sets.reader[0] == number
        fitted, read = _some(sets.member[:, number], MAX_FITTED_ROWS), is_read.nonzero().squeeze(1)
        fit = SmoothFit(own[fitted], sets.one_hot[fitted], log_prior, random_seed)
        logits[read] = fit.logits(own[read])
    return logits


def is_worth(points: Tensor, known: Tensor, sets: TrainingSets, log_prior: Tensor, random_seed: int) -> bool:
    """Whether a smooth readout, fitted on some rows of the first half, tells some of the others what is not known.

    Args:
        points: as in `smooth_readout`.
        known: (K, N, C) held-out logits of other readouts.
        sets: two halves.
        log_prior: (C,).
        random_seed: of the waves.
    """
    fitted = _some(sets.member[:, 0], MAX_TRIED_ROWS)
    read = _some((sets.reader[0] == 0).float(), MAX_TRIED_ROWS)
    if not len(fitted) or not len(read):
        return False
    own = points[:, 0]
    fit = SmoothFit(own[fitted], sets.one_hot[fitted], log_prior, random_seed)
    return tells_more([*known[:, read]], [fit.logits(own[read])], sets.labels[read], log_prior)


def _some(chosen: Tensor, most: int) -> Tensor:
    """The places of at most so many of the rows (N,) that are not 0."""
    places = chosen.nonzero().squeeze(1)
    return places[:: max(1, -(-len(places) // most))]


class SmoothFit:
    """A multinomial logistic regression, without the prior, on columns that are made of coordinates (n, q).

    Args:
        points: (n, q) coordinates.
        one_hot: (n, C).
        log_prior: (C,).
        random_seed: of the waves.
    """

    def __init__(self, points: Tensor, one_hot: Tensor, log_prior: Tensor, random_seed: int) -> None:
        share = torch.full_like(points[:, :1], 1.0 / max(len(points), 1))
        self._waves = waves(points.shape[1], random_seed, points.device)
        self._center = (share * points).sum(0)
        self._width = (share * (points - self._center).square()).sum(0).amax().sqrt().clamp_min(TINY)
        columns = self._columns(points)
        mean = (share * columns).sum(0)
        columns -= mean
        metric = (columns * share).T @ columns
        metric.diagonal().add_(RIDGE)
        factor = factored(metric.unsqueeze(0))
        # Classes before rows: a softmax over a few classes is then one of long vectors.
        told, share, prior = one_hot.T.contiguous(), share.T, log_prior[:, None]
        weights = ahead = columns.new_zeros(one_hot.shape[1], columns.shape[1])
        for step in range(1, STEPS + 1):
            found = torch.softmax(torch.addmm(prior, ahead, columns.T), 0)
            rest = torch.sub(told, found, out=found).mul_(share)
            slope = torch.addmm(ahead, rest, columns, beta=-0.5 * RIDGE)
            # The curvature is at most half of the metric.
            new = torch.add(ahead, solved(factor, slope.T.unsqueeze(0))[0].T, alpha=2)
            weights, ahead = new, new + (step - 1) / (step + 2) * (new - weights)
        self._weights, self._offset = weights.T, -(weights @ mean)

    def logits(self, points: Tensor) -> Tensor:
        """Logits (n, C) of coordinates (n, q)."""
        return torch.addmm(self._offset, self._columns(points), self._weights)

    def _columns(self, points: Tensor) -> Tensor:
        """The columns (n, E) of coordinates (n, q): themselves, their squares and products, and waves across them."""
        points = ((points - self._center) / self._width).clamp(-MAX_COORDINATE, MAX_COORDINATE)
        first, second = torch.triu_indices(points.shape[1], points.shape[1], device=points.device)
        frequencies, phases = self._waves
        products = points[:, first] * points[:, second]
        return torch.cat([points, products, torch.addmm(phases, points, frequencies).cos_()], 1)


def waves(dimension: int, random_seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Frequencies (q, F) and phases (F,) of cosines, float32."""
    number = WAVES * len(WIDTHS)
    places = torch.arange((2 * dimension + 1) * number, device=device)
    values = uniform(places, random_seed + 17).view(2 * dimension + 1, number)
    # Box and Muller.
    radius = (-2 * values[:dimension].clamp_min(TINY).log()).sqrt()
    normal = radius * (2 * torch.pi * values[dimension : 2 * dimension]).cos()
    widths = torch.tensor(WIDTHS, dtype=torch.float32, device=device).repeat_interleave(WAVES)
    return normal * widths, 2 * torch.pi * values[-1]
