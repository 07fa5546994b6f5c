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
SOLVED = 1e-4
"""The squared error, in the metric of the sides and as a share of the start, at which they stop."""
MIN_TOLD = 5e-3
"""Nats that a readout must tell for its shrinkage to count."""
FEW_ROWS_PER_COLUMN = 16
"""With fewer rows per column logistic regression is tried with two shrinkages."""
TAIL = 12.0
"""Median deviations from the median where the tail of a column begins; of a Gaussian, 8 standard deviations."""
MAX_SAMPLED_ROWS = 1024
"""The most rows that the median of a column is taken of."""
JITTER = 1e-6


class TrainingSets(NamedTuple):
    """T sets of rows to fit on, each some of the F folds, and for every row the sets that may read it."""

    fold: Tensor
    """(N,) int64."""
    labels: Tensor
    """(N,) int64."""
    one_hot: Tensor
    """(N, C) float32."""
    folds_in: Tensor
    """(T, F) float32: 1 where a fold is in the set."""
    reader: Tensor
    """(R, N) int64: sets that a row is not in."""
    counts: Tensor
    """(T, C) float32: the rows of each class."""

    @classmethod
    def make(cls, fold: Tensor, num_folds: int, labels: Tensor, num_classes: int) -> "TrainingSets":
        """T = F + 2 sets of rows (N,) with their folds and labels: all but each fold; the even folds; the odd folds.

        Each row is read by the set without its fold, and by the half without its fold.
        """
        one_hot = torch.nn.functional.one_hot(labels, num_classes).float()
        each = torch.arange(num_folds, device=fold.device)
        even = (each % 2 == 0).float()
        folds_in = torch.cat([(each[:, None] != each).float(), even[None], 1 - even[None]])
        reader = torch.stack([fold, num_folds + 1 - fold % 2])
        by_fold = one_hot.new_zeros(num_folds, num_classes).index_add_(0, fold, one_hot)
        return cls(fold, labels, one_hot, folds_in, reader, folds_in @ by_fold)

    @property
    def num_folds(self) -> int:
        """F."""
        return self.folds_in.shape[1]

    @property
    def member(self) -> Tensor:
        """(N, T) float32: 1 where a row is in the set."""
        return self.folds_in.T[self.fold]

    @property
    def sizes(self) -> Tensor:
        """(T,) float32: the rows of each set."""
        return self.counts.sum(-1)

    @property
    def log_prior(self) -> Tensor:
        """(T, C) float32: the logarithm of the share of each class, with half a row added to each."""
        smoothed = self.counts + 0.5
        return (smoothed / smoothed.sum(-1, keepdim=True)).log()

    def folds(self) -> "TrainingSets":
        """Of the sets of `make`, those of all but one fold."""
        number = self.num_folds
        return self._replace(
            folds_in=self.folds_in[:number], reader=self.reader[:1], counts=self.counts[:number]
        )

    def halves(self) -> "TrainingSets":
        """Of the sets of `make`, the two halves."""
        number = self.num_folds
        return self._replace(
            folds_in=self.folds_in[number:], reader=self.reader[1:] - number, counts=self.counts[number:]
        )

    def sums(self, by_fold: Tensor) -> Tensor:
        """Sums (T, ...) over each set, of sums (F, ...) over each fold."""
        return (self.folds_in @ by_fold.flatten(1)).view(-1, *by_fold.shape[1:])

    @property
    def unseen(self) -> Tensor:
        """(R, N, C) bool: classes without a row in the sets that read the row."""
        return (self.counts == 0)[self.reader]

    def held_out(self, values: Tensor) -> Tensor:
        """Of values (N, T, ...) by every set, those by the sets that read the row: (R, N, ...)."""
        rows = torch.arange(len(self.fold), device=self.fold.device)
        return values[rows, self.reader]


def standardize(rows: Tensor) -> Tensor:
    """Rows (N, D) as float32 with columns of mean 0 and variance 1; constant columns become zeros.

    Values farther from the median than `TAIL` median deviations are drawn in by their logarithm, which keeps their
    order. Of a Gaussian column these are none.
    """
    step = max(1, -(-len(rows) // MAX_SAMPLED_ROWS))
    sample = rows[::step].double()
    # Not `median`, which is refused on a GPU where deterministic algorithms are asked for.
    middle = (len(sample) + 1) // 2
    center = sample.kthvalue(middle, 0).values
    distance = (sample - center).abs()
    unit = distance.kthvalue(middle, 0).values
    # Where half of the values are equal the others say how far is far.
    unit = torch.where(unit > 0, unit, distance.mean(0))
    wide = rows if rows.dtype == torch.float64 else rows.float()
    # Before the precision is reduced, so that neither large offsets nor units matter.
    wide = wide - center.to(wide.dtype)
    unit = torch.where(unit > 0, unit, wide.abs().amax(0).double())
    # A power of two, by which nothing is rounded.
    largest = 120 if wide.dtype == torch.float32 else 1000
    power = torch.exp2(-torch.frexp(unit).exponent.clamp(-largest, largest).double())
    scaled = wide.mul_(power.to(wide.dtype)).float()
    unit = TAIL * (unit * power).float()
    scaled /= torch.where(unit > 0, unit, 1.0)
    if scaled.device.type != "cpu" or bool(scaled.abs().amax() > 1):
        size = scaled.abs()
        scaled = torch.where(size > 1, scaled.sign() * (1 + size.clamp_min_(1).log_()), scaled)
    for _ in range(2):
        scaled -= scaled.mean(0)
        deviation = torch.linalg.vector_norm(scaled, dim=0) / len(scaled) ** 0.5
        scaled /= torch.where(deviation > JITTER, deviation, torch.inf)
        scaled.clamp_(-MAX_DEVIATION, MAX_DEVIATION)
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

    def folds(self) -> "LinearSums":
        """The sums of all but one fold."""
        number = self.sets.num_folds
        return LinearSums(
            self.rows,
            self.sets.folds(),
            self.center[:number],
            self.deviation[:number],
            self.within[:number],
        )

    def halves(self) -> "LinearSums":
        """The sums of the halves."""
        number = self.sets.num_folds
        return LinearSums(
            self.rows,
            self.sets.halves(),
            self.center[number:],
            self.deviation[number:],
            self.within[number:],
        )

    def factor(self, shrinkage: Tensor, index: list[int] | None = None) -> Tensor:
        """Cholesky factors (t, D, D) of the shrunk covariance; a factor that cannot be found makes its readout flat."""
        factor, failed = torch.linalg.cholesky_ex(self.shrunk(shrinkage, index))
        flat = 1e6 * torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        return torch.where((failed > 0)[:, None, None], flat, factor)

    def shrunk(self, shrinkage: Tensor, index: list[int] | None = None) -> Tensor:
        """The covariance (t, D, D), a share of which is replaced by the identity times its mean variance."""
        within = self.within if index is None else self.within[index]
        spread = within.diagonal(dim1=1, dim2=2).mean(-1)[:, None]
        shrunk = within * (1 - shrinkage)
        shrunk.diagonal(dim1=1, dim2=2).add_(shrinkage * spread + JITTER)
        return shrunk

    def discriminant(self, factor: Tensor, index: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Weights (t, D, C) and offsets (t, C) of linear discriminant analysis, without the prior."""
        deviation = self.deviation if index is None else self.deviation[index]
        center = self.center if index is None else self.center[index]
        weights = torch.cholesky_solve(deviation.mT, factor)
        offset = -0.5 * (deviation.mT * weights).sum(1) - (center[:, None] @ weights)[:, 0]
        return weights, offset

    def scores(self, weights: Tensor, offset: Tensor | None = None) -> Tensor:
        """Logits (N, t, C) of all rows by all weights (t, D, C) and offsets (t, C)."""
        number, dimension, classes = weights.shape
        flat = weights.permute(1, 0, 2).reshape(dimension, number * classes)
        logits = self.rows @ flat if offset is None else torch.addmm(offset.flatten(), self.rows, flat)
        return logits.view(len(self.rows), number, classes)


def fold_products(left: Tensor, right: Tensor, sets: TrainingSets) -> Tensor:
    """left^T right over the rows of each training set: (T, D1, D2)."""
    if left.device.type == "cpu":
        parts = [left[sets.fold == k].T @ right[sets.fold == k] for k in range(sets.num_folds)]
    else:
        # Without reading the sizes of the folds on the host.
        parts = [(left * (sets.fold == k)[:, None]).T @ right for k in range(sets.num_folds)]
    return sets.sums(torch.stack(parts))


def _class_sums(rows: Tensor, sets: TrainingSets) -> Tensor:
    """The sums of the rows of each class in each training set: (T, C, D)."""
    classes, folds = sets.one_hot.shape[1], sets.num_folds
    cell = sets.fold * classes + sets.labels
    sums = rows.new_zeros(folds * classes, rows.shape[1]).index_add_(0, cell, rows)
    return sets.sums(sums.view(folds, classes, -1))


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
    grid = torch.tensor(SHRINKAGE, dtype=sums.rows.dtype, device=sums.rows.device)
    place = choose_shrinkage(sums, grid, log_prior)
    shrinkage, larger = grid[place], grid[(place + 1).clamp_max(len(SHRINKAGE) - 1)]
    factor = sums.factor(shrinkage)
    weights, offset = sums.discriminant(factor)
    logits = [sums.sets.held_out(sums.scores(weights, offset))]
    # With many rows per column the shrinkage hardly matters.
    few = len(sums.rows) < FEW_ROWS_PER_COLUMN * sums.rows.shape[1]
    for each in (factor, sums.factor(larger)) if few else (factor,):
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
    posterior = pool(torch.stack(logits).unsqueeze(1), labels, log_prior).log_posterior
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
        cores.append(torch.eye(classes, dtype=span.dtype, device=span.device) + span.mT @ span)

    weights = [torch.zeros_like(side.deviation.mT) for side in sides]
    ahead, offset = list(weights), torch.zeros_like(prior)
    offset_ahead = offset
    for step in range(1, steps + 1):
        if step == 1:
            # From weights of zero the slopes are sums that are known.
            rest_sum = sets.counts - size.squeeze(-1) * prior.exp()
            slopes = [side.deviation.mT * sets.counts.unsqueeze(1) for side in sides]
        else:
            rest = torch.softmax(_centered_scores(sides, ahead, offset_ahead + prior), -1)
            rest = rest.neg_().add_(sets.one_hot[:, None]).mul_(member)
            rest_sum = rest.sum(0)
            flat = rest.view(len(rest), number * classes)
            slopes = [
                (side.rows.T @ flat).view(-1, number, classes).transpose(0, 1)
                - side.center[:, :, None] * rest_sum[:, None]
                for side in sides
            ]
        momentum = (step - 1) / (step + 2)
        new_offset = offset_ahead + 2 * rest_sum / size.squeeze(-1)
        new = []
        for factor, span, core, slope, start in zip(factors, spans, cores, slopes, ahead, strict=True):
            slope = torch.linalg.solve_triangular(factor, slope / size, upper=False)
            slope = slope - span @ torch.linalg.solve(core, span.mT @ slope)
            new.append(start + length * torch.linalg.solve_triangular(factor.mT, slope, upper=True))
        ahead = [n + momentum * (n - w) for n, w in zip(new, weights, strict=True)]
        offset_ahead = new_offset + momentum * (new_offset - offset)
        weights, offset = new, new_offset
    return _centered_scores(sides, weights, offset)


def _centered_scores(sides: list[LinearSums], weights: list[Tensor], offset: Tensor) -> Tensor:
    """Logits (N, T, C) of the columns of all sides, minus their centers."""
    for side, part in zip(sides, weights, strict=True):
        offset = offset - (side.center[:, None] @ part)[:, 0]
    logits = sides[0].scores(weights[0], offset)
    for side, part in zip(sides[1:], weights[1:], strict=True):
        logits += side.scores(part)
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
    sides, shrinkages = (first, second), (first_shrinkage, second_shrinkage)
    factors = [side.factor(shrinkage) for side, shrinkage in zip(sides, shrinkages, strict=True)]
    own = [side.shrunk(shrinkage) for side, shrinkage in zip(sides, shrinkages, strict=True)]
    sizes = (first.rows.shape[1], second.rows.shape[1])
    kept = ((1 - first_shrinkage) * (1 - second_shrinkage)).sqrt()
    between = covariance_between(first, second).mul_(kept)
    right = torch.cat([first.deviation.mT, second.deviation.mT], 1)

    def solve(v: Tensor) -> Tensor:
        parts = v.split(sizes, 1)
        return torch.cat([torch.cholesky_solve(p, f) for p, f in zip(parts, factors, strict=True)], 1)

    def apply(v: Tensor) -> Tensor:
        a, b = v.split(sizes, 1)
        return torch.cat([own[0] @ a + between @ b, own[1] @ b + between.mT @ a], 1)

    found = solve(right)
    rest = right - apply(found)
    z = solve(rest)
    direction, old = z, (rest * z).sum(1, keepdim=True)
    start = (right * found).sum(1, keepdim=True)
    for _ in range(CONJUGATE_STEPS):
        if rest.device.type == "cpu" and bool((old <= SOLVED * start).all()):
            break
        moved = apply(direction)
        length = old / (direction * moved).sum(1, keepdim=True).clamp_min(1e-20)
        found, rest = found + length * direction, rest - length * moved
        z = solve(rest)
        new = (rest * z).sum(1, keepdim=True)
        direction, old = z + (new / old.clamp_min(1e-20)) * direction, new
    return _centered_scores(list(sides), list(found.split(sizes, 1)), -0.5 * (right * found).sum(1))
