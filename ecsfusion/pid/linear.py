"""Linear readouts of embeddings, fitted on some folds and read on the others.

Two kinds: linear discriminant analysis with a shrunk covariance, which is closed form, and a few accelerated steps of
logistic regression in the metric of the same covariance, which does better where the classes are no Gaussians. Every
sum over rows is made once per fold; the readouts of all training sets come from these sums.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ecsfusion.pid.pooling import pool

SHRINKAGE = (1e-5, 1e-3, 0.03, 0.2, 0.6, 1.0)
"""Shares of the identity in the covariance that are tried on two folds."""
STEPS = 4
"""Steps of logistic regression. More of them fit the training rows more closely and tell less about others."""
MAX_DEVIATION = 8.0
"""Values farther from the mean, in standard deviations, are moved there."""
CONJUGATE_STEPS = 8
"""Of conjugate gradients, for both sides together."""
MIN_TOLD = 5e-3
"""Nats that a readout must tell for its shrinkage to count."""
TAIL = 12.0
"""Median deviations from the median where the tail of a column begins; of a Gaussian, 8 standard deviations."""
MAX_SAMPLED_ROWS = 1024
"""The most rows that the median of a column is taken of."""
JITTER = 1e-6


class TrainingSets(NamedTuple):
    """T = F + 2 sets of rows to fit on: all but fold k, for k = 0 .. F - 1; the even folds; the odd folds."""

    fold: Tensor
    """(N,) int64."""
    num_folds: int
    """F, even."""
    labels: Tensor
    """(N,) int64."""
    one_hot: Tensor
    """(N, C) float32."""
    member: Tensor
    """(N, T) float32: 1 where a row is in the set."""
    counts: Tensor
    """(T, C) float32: the rows of each class."""

    @classmethod
    def make(cls, fold: Tensor, num_folds: int, labels: Tensor, num_classes: int) -> "TrainingSets":
        """The sets of rows (N,) with their folds and labels."""
        each = torch.arange(num_folds, device=fold.device)
        odd = fold % 2 == 1
        member = torch.cat([fold[:, None] != each, ~odd[:, None], odd[:, None]], 1).float()
        one_hot = torch.nn.functional.one_hot(labels, num_classes).float()
        return cls(fold, num_folds, labels, one_hot, member, member.T @ one_hot)

    @property
    def sizes(self) -> Tensor:
        """(T,) float32: the rows of each set."""
        return self.counts.sum(-1)

    @property
    def log_prior(self) -> Tensor:
        """(T, C) float32: the logarithm of the share of each class, with half a row added to each."""
        smoothed = self.counts + 0.5
        return (smoothed / smoothed.sum(-1, keepdim=True)).log()

    def held_out(self, values: Tensor) -> Tensor:
        """Of values (N, T, ...) by every set, those by sets that the row is not in: (2, N, ...), F folds and halves."""
        halves = self.num_folds + 1 - self.fold % 2
        index = torch.stack([self.fold, halves])
        rows = torch.arange(len(self.fold), device=self.fold.device)
        return values[rows, index]


def standardize(rows: Tensor) -> Tensor:
    """Rows (N, D) as float32 with columns of mean 0 and variance 1; constant columns become zeros.

    Values farther from the median than `TAIL` median deviations are drawn in by their logarithm, which keeps their
    order. Of a Gaussian column these are none.
    """
    # So that the dtype does not matter, and large offsets do not either.
    wide = rows.double()
    step = max(1, -(-len(rows) // MAX_SAMPLED_ROWS))
    sample = wide[::step]
    center = sample.median(0).values
    distance = (sample - center).abs()
    unit = distance.median(0).values
    # Where half of the values are equal the others say how far is far.
    unit = torch.where(unit > 0, unit, distance.mean(0))
    unit = TAIL * torch.where(unit > 0, unit, (wide - center).abs().amax(0))
    scaled = ((wide - center) / torch.where(unit > 0, unit, 1.0)).float()
    size = scaled.abs()
    scaled = torch.where(size > 1, scaled.sign() * (1 + size.clamp_min(1).log()), scaled)
    for _ in range(2):
        scaled = scaled - scaled.mean(0)
        deviation = scaled.square().mean(0).sqrt()
        scaled = scaled / torch.where(deviation > JITTER, deviation, torch.inf)
        scaled = scaled.clamp_(-MAX_DEVIATION, MAX_DEVIATION)
    return scaled


class LinearSums(NamedTuple):
    """What linear readouts of standardized rows (N, D) need, for each training set."""

    rows: Tensor
    """(N, D) float32."""
    sets: TrainingSets
    center: Tensor
    """(T, D)."""
    deviation: Tensor
    """(T, C, D): the mean of each class minus `center`; 0 for a class without rows."""
    within: Tensor
    """(T, D, D): the covariance within the classes."""

    @classmethod
    def make(cls, rows: Tensor, sets: TrainingSets) -> "LinearSums":
        """One pass over the rows for the Gram matrices and one for the class sums."""
        grams = fold_products(rows, rows, sets)
        sums = _class_sums(rows, sets)
        center = sums.sum(1) / sets.sizes[:, None].clamp_min(1)
        present = (sets.counts > 0).float().unsqueeze(-1)
        deviation = (sums / sets.counts.clamp_min(1).unsqueeze(-1) - center[:, None]) * present
        within = grams / sets.sizes[:, None, None].clamp_min(1)
        within = within - center[:, :, None] * center[:, None, :]
        weighted = deviation * (sets.counts / sets.sizes[:, None].clamp_min(1))[..., None]
        within = within - weighted.mT @ deviation
        return cls(rows, sets, center, deviation, within)

    @property
    def share(self) -> Tensor:
        """(T, C): the share of each class."""
        return self.sets.counts / self.sets.sizes[:, None].clamp_min(1)

    def factor(self, shrinkage: Tensor, index: list[int] | None = None) -> Tensor:
        """Cholesky factors (t, D, D) of the shrunk covariance; a factor that cannot be found makes its readout flat."""
        within = self.within if index is None else self.within[index]
        spread = within.diagonal(dim1=1, dim2=2).mean(-1)[:, None]
        shrunk = within * (1 - shrinkage)
        shrunk.diagonal(dim1=1, dim2=2).add_(shrinkage * spread + JITTER)
        factor, failed = torch.linalg.cholesky_ex(shrunk)
        flat = 1e6 * torch.eye(within.shape[-1], device=within.device)
        return torch.where((failed > 0)[:, None, None], flat, factor)

    def discriminant(self, factor: Tensor, index: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Weights (t, D, C) and offsets (t, C) of linear discriminant analysis, without the prior."""
        deviation = self.deviation if index is None else self.deviation[index]
        center = self.center if index is None else self.center[index]
        weights = torch.cholesky_solve(deviation.mT, factor)
        offset = -0.5 * (deviation.mT * weights).sum(1) - (center[:, None] @ weights)[:, 0]
        return weights, offset

    def scores(self, weights: Tensor, offset: Tensor) -> Tensor:
        """Logits (N, t, C) of all rows by all weights (t, D, C)."""
        number, dimension, classes = weights.shape
        flat = weights.permute(1, 0, 2).reshape(dimension, number * classes)
        return (self.rows @ flat).view(len(self.rows), number, classes) + offset


def fold_products(left: Tensor, right: Tensor, sets: TrainingSets) -> Tensor:
    """left^T right over the rows of each training set: (T, D1, D2)."""
    if left.device.type == "cpu":
        parts = [left[sets.fold == k].T @ right[sets.fold == k] for k in range(sets.num_folds)]
    else:
        # Without reading the sizes of the folds on the host.
        parts = [(left * (sets.fold == k)[:, None]).T @ right for k in range(sets.num_folds)]
    each = torch.stack(parts)
    whole = each.sum(0)
    return torch.cat([whole - each, each[0::2].sum(0, keepdim=True), each[1::2].sum(0, keepdim=True)])


def _class_sums(rows: Tensor, sets: TrainingSets) -> Tensor:
    """The sums of the rows of each class in each training set: (T, C, D)."""
    classes, folds = sets.one_hot.shape[1], sets.num_folds
    cell = sets.fold * classes + sets.labels
    sums = rows.new_zeros(folds * classes, rows.shape[1]).index_add_(0, cell, rows)
    each = sums.view(folds, classes, -1)
    whole = each.sum(0)
    return torch.cat([whole - each, each[0::2].sum(0, keepdim=True), each[1::2].sum(0, keepdim=True)])


def covariance_between(first: LinearSums, second: LinearSums) -> Tensor:
    """The covariance of the columns of two sides within the classes: (T, D1, D2)."""
    products = fold_products(first.rows, second.rows, first.sets)
    means = first.center[:, :, None] * second.center[:, None, :]
    between = (first.deviation * first.share[..., None]).mT @ second.deviation
    return products / first.sets.sizes[:, None, None].clamp_min(1) - means - between


class LinearReadouts(NamedTuple):
    """Held-out logits of the linear readouts of one side."""

    logits: list[Tensor]
    """K tensors (2, N, C): log posterior over prior, by folds and by halves."""
    shrinkage: Tensor
    """() float32: the shrinkage of the discriminant analysis."""
    factor: Tensor
    """(T, D, D): its Cholesky factors."""


def linear_readouts(sums: LinearSums, log_prior: Tensor) -> LinearReadouts:
    """Fit both kinds of readout; the shrinkage is chosen by the log-loss of two held-out folds."""
    grid = torch.tensor(SHRINKAGE, device=sums.rows.device)
    place = choose_shrinkage(sums, grid, log_prior)
    shrinkage, larger = grid[place], grid[(place + 1).clamp_max(len(SHRINKAGE) - 1)]
    factor = sums.factor(shrinkage)
    weights, offset = sums.discriminant(factor)
    logits = [sums.sets.held_out(sums.scores(weights, offset))]
    for each in (factor, sums.factor(larger)):
        logits.append(sums.sets.held_out(logistic_path([sums], [each])))
    return LinearReadouts(logits, shrinkage, factor)


def choose_shrinkage(sums: LinearSums, grid: Tensor, log_prior: Tensor) -> Tensor:
    """The place in `grid` of the shrinkage whose discriminant analysis tells most about two held-out folds; ()."""
    sets = sums.sets
    tried = [0, sets.num_folds // 2]
    in_first = sets.fold == tried[0]
    chosen = (in_first | (sets.fold == tried[1])).nonzero().squeeze(1)
    labels = sets.labels[chosen]
    part = sums._replace(rows=sums.rows[chosen])
    logits = []
    for shrinkage in grid:
        scores = part.scores(*sums.discriminant(sums.factor(shrinkage, tried), tried))
        logits.append(torch.where(in_first[chosen, None], scores[:, 0], scores[:, 1]))
    posterior = pool(torch.stack(logits).unsqueeze(2), labels, log_prior).log_posterior
    loss = -posterior.gather(2, labels.expand(len(grid), -1).unsqueeze(2)).mean((1, 2))
    # Where no shrinkage tells anything alone, the side may still tell something together with another: as little
    # shrinkage as its rows allow.
    untold = SHRINKAGE.index(1e-3 if len(sums.rows) >= 4 * sums.rows.shape[1] else 0.2)
    tells = loss.amin() < -log_prior[labels].mean() - MIN_TOLD
    return torch.where(tells, loss.argmin(), untold)


def logistic_path(sides: list[LinearSums], factors: list[Tensor], steps: int = STEPS) -> Tensor:
    """Logits (N, T, C) after a few steps of logistic regression from zero on the columns of all sides.

    The metric of a step is the shrunk covariance of each side, to which the covariance of the class means is added; so
    a step of length 2 never overshoots for one side (Böhning 1992, "Multinomial logistic regression algorithm").

    Args:
        sides: the sums of one or more modalities with the same training sets.
        factors: their Cholesky factors (T, D, D).
        steps: the number of steps.
    """
    sets = sides[0].sets
    size, prior = sets.sizes[:, None, None].clamp_min(1), sets.log_prior
    number, classes = sets.counts.shape
    member = sets.member[..., None]
    length = 2.0 / len(sides)
    spans, cores = [], []
    for side, factor in zip(sides, factors, strict=True):
        span = torch.linalg.solve_triangular(
            factor, (side.deviation * side.share.sqrt()[..., None]).mT, upper=False
        )
        spans.append(span)
        cores.append(torch.eye(classes, device=span.device) + span.mT @ span)

    weights = [torch.zeros_like(side.deviation.mT) for side in sides]
    ahead, offset = list(weights), torch.zeros_like(prior)
    offset_ahead = offset
    for step in range(1, steps + 1):
        logits = _centered_scores(sides, ahead, offset_ahead) if step > 1 else torch.zeros_like(prior)[None]
        rest = (sets.one_hot[:, None] - torch.softmax(logits + prior, -1)) * member
        rest_sum = rest.sum(0)
        momentum = (step - 1) / (step + 2)
        new_offset = offset_ahead + 2 * rest_sum / size.squeeze(-1)
        new = []
        for side, factor, span, core, start in zip(sides, factors, spans, cores, ahead, strict=True):
            flat = side.rows.T @ rest.reshape(len(rest), number * classes)
            slope = (
                flat.view(-1, number, classes).transpose(0, 1) - side.center[:, :, None] * rest_sum[:, None]
            )
            slope = torch.linalg.solve_triangular(factor, slope / size, upper=False)
            slope = slope - span @ torch.linalg.solve(core, span.mT @ slope)
            new.append(start + length * torch.linalg.solve_triangular(factor.mT, slope, upper=True))
        ahead = [n + momentum * (n - w) for n, w in zip(new, weights, strict=True)]
        offset_ahead = new_offset + momentum * (new_offset - offset)
        weights, offset = new, new_offset
    return _centered_scores(sides, weights, offset)


def _centered_scores(sides: list[LinearSums], weights: list[Tensor], offset: Tensor) -> Tensor:
    logits = offset
    for side, part in zip(sides, weights, strict=True):
        logits = logits + side.scores(part, -(side.center[:, None] @ part)[:, 0])
    return logits


def joint_discriminant(
    first: LinearSums, second: LinearSums, first_shrinkage: Tensor, second_shrinkage: Tensor
) -> Tensor:
    """Logits (N, T, C) of discriminant analysis on the columns of both sides together.

    The covariance of both is never factorized: conjugate gradients use the factors of the sides as preconditioner, so
    that modalities that are independent given the label need no iteration.

    Args:
        first: the sums of one side.
        second: those of the other, with the same training sets.
        first_shrinkage: the share of the identity in the covariance of the one.
        second_shrinkage: the same of the other.
    """
    factors = first.factor(first_shrinkage), second.factor(second_shrinkage)
    sizes = (first.rows.shape[1], second.rows.shape[1])
    sides = (first, second)
    kept = ((1 - first_shrinkage) * (1 - second_shrinkage)).sqrt()
    scaled = covariance_between(first, second) * kept
    right = torch.cat([first.deviation.mT, second.deviation.mT], 1)

    def solve(v: Tensor) -> Tensor:
        parts = v.split(sizes, 1)
        return torch.cat([torch.cholesky_solve(p, f) for p, f in zip(parts, factors, strict=True)], 1)

    def apply(v: Tensor) -> Tensor:
        a, b = v.split(sizes, 1)
        own = [f @ (f.mT @ p) for f, p in zip(factors, (a, b), strict=True)]
        return torch.cat([own[0] + scaled @ b, own[1] + scaled.mT @ a], 1)

    found = solve(right)
    rest = right - apply(found)
    z = solve(rest)
    direction = z
    old = (rest * z).sum(1, keepdim=True)
    for _ in range(CONJUGATE_STEPS):
        moved = apply(direction)
        length = old / (direction * moved).sum(1, keepdim=True).clamp_min(1e-20)
        found, rest = found + length * direction, rest - length * moved
        z = solve(rest)
        new = (rest * z).sum(1, keepdim=True)
        direction, old = z + (new / old.clamp_min(1e-20)) * direction, new
    offset = -0.5 * (right * found).sum(1)
    logits = offset
    for side, part in zip(sides, found.split(sizes, 1), strict=True):
        logits = logits + side.scores(part, -(side.center[:, None] @ part)[:, 0])
    return logits
