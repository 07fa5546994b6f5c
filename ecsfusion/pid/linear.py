"""Linear readouts of embeddings, fitted on some folds and read on the others.

Two kinds: linear discriminant analysis with a shrunk covariance, which is closed form, and a few accelerated steps of
logistic regression in the metric of the same covariance, which does better where the classes are no Gaussians. Every
sum over rows is made once per fold; the readouts of all training sets come from these sums.
"""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ecsfusion.pid.cholesky import factored, half_solved, solved, transposed_solved
from ecsfusion.pid.pooling import pool, pool_with_part

SHRINKAGE = (1e-5, 1e-3, 0.03, 0.2, 0.6, 1.0)
"""Shares of the identity in the covariance that are tried on two folds."""
FEWEST_STEPS = 4
"""Steps of logistic regression. More of them fit the training rows more closely and tell less about others."""
MOST_STEPS = 20
"""Of many classes, for which a step goes less far: its bound on the curvature is that of two classes."""
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
ROWS_PER_COLUMN_OF_HALVES = 8
"""With fewer rows per column a half does not show whether logistic regression tells more than the discriminant
analysis."""
TAIL = 12.0
"""Median deviations from the median where the tail of a column begins; of a Gaussian, 8 standard deviations."""
MAX_SAMPLED_ROWS = 512
"""The most rows that the median of a column is taken of."""
MIN_LEFT = 5e-3
"""Nats of the label that must be left to tell for readouts beside the discriminant analysis."""
MIN_GAIN = 2.0
"""Log-likelihood, in nats, that a readout must add by halves to be fitted on all training sets,"""
MIN_GAIN_PER_ROW = 1e-3
"""and per row, where many rows resolve what is not worth it."""
MIN_DEPENDENCE = 2.0
"""Standard errors by which the noise of two sides must be correlated for readouts of both together,"""
MIN_SHARED = 2e-3
"""and the share of the noise in the discriminants of one side, summed over them, that the other must tell."""
MAX_COMPARED_ROWS = 2048
"""The most rows that weights are fitted on where readouts are only compared."""
MAX_JUDGED_ROWS = 4096
"""The most rows that judge a shrinkage, or whether a readout tells more than others."""
FEW_COLUMNS = 128
"""With so few columns every shrinkage is tried at once; with more their factors cost."""
ENOUGH_JUDGED_ROWS = 2048
"""Rows of a fold that judge it alone."""
MAX_FITTED = 0.8
"""The largest share of its rows that a covariance is taken to be fitted to."""
TINY = 1e-12
LARGEST = 1e38
JITTER = 1e-6
SMALLEST_BLOCK = 128
"""The fewest columns of a block of the product of a matrix with itself,"""
MOST_BLOCKS = 6
"""and the most blocks, unless they would be smaller."""
BLOCK_VALUES = 1 << 16
"""Values that are standardized at a time, so many that they stay in the cache of a core,"""
SCORED_VALUES = 1 << 19
"""and values that weights are applied to at a time."""


@lru_cache(maxsize=64)
def _on_device(readers: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Numbers of training sets (R, F) int64; on a GPU a copy lets the host wait, and they are asked for often."""
    return torch.tensor(readers, dtype=torch.int64, device=device)


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
    readers: tuple[tuple[int, ...], ...]
    """R times F: a set that each fold is not in."""
    counts: Tensor
    """(T, C) float32: the rows of each class."""
    cells: tuple[int, ...] | None
    """Where the rows are sorted by fold and class: F C + 1 places where a fold and class begins."""

    @classmethod
    def make(cls, fold: Tensor, num_folds: int, labels: Tensor, num_classes: int) -> "TrainingSets":
        """T = F + 2 sets of rows (N,) with their folds and labels: all but each fold; the first folds; the others.

        Each row is read by the set without its fold, and by the half without its fold. Rows that are sorted by fold and
        class are read in slices, without a copy.
        """
        one_hot = torch.nn.functional.one_hot(labels, num_classes).float()
        each = torch.arange(num_folds, device=fold.device)
        first = (each < num_folds // 2).float()
        folds_in = torch.cat([(each[:, None] != each).float(), first[None], 1 - first[None]])
        readers = (
            tuple(range(num_folds)),
            tuple(num_folds + int(k < num_folds // 2) for k in range(num_folds)),
        )
        cell = fold * num_classes + labels
        sizes = torch.zeros(num_folds * num_classes, dtype=torch.int64, device=fold.device)
        sizes.index_add_(0, cell, torch.ones_like(cell))
        cells = None
        if bool((cell[1:] >= cell[:-1]).all()):
            cells = (0, *sizes.cumsum(0).tolist())
        counts = folds_in @ sizes.view(num_folds, num_classes).float()
        return cls(fold, labels, one_hot, folds_in, readers, counts, cells)

    @property
    def is_in_pieces(self) -> bool:
        """Whether sorted rows are read piece by piece: from the caches of a CPU. A GPU reads all at once."""
        return self.cells is not None and self.fold.device.type == "cpu"

    @property
    def num_folds(self) -> int:
        """F."""
        return self.folds_in.shape[1]

    @property
    def num_classes(self) -> int:
        """C."""
        return self.one_hot.shape[1]

    @property
    def reader(self) -> Tensor:
        """(R, N) int64: sets that a row is not in."""
        return _on_device(self.readers, self.fold.device)[:, self.fold]

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
            folds_in=self.folds_in[:number], readers=self.readers[:1], counts=self.counts[:number]
        )

    def halves(self) -> "TrainingSets":
        """Of the sets of `make`, the two halves."""
        number = self.num_folds
        readers = (tuple(place - number for place in self.readers[1]),)
        return self._replace(folds_in=self.folds_in[number:], readers=readers, counts=self.counts[number:])

    def slices(self) -> list[slice]:
        """The rows of each fold, where they are sorted."""
        bounds = (self.cells or ())[:: self.num_classes]
        return [slice(start, end) for start, end in pairwise(bounds)]

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


def standardize(rows: Tensor, order: Tensor | None = None) -> Tensor:
    """Rows (N, D), in some order (N,), as float32 with columns of mean 0 and variance 1; constant columns become zeros.

    Values farther from the median than `TAIL` median deviations are drawn in by their logarithm, which keeps their
    order. Of a Gaussian column these are none.
    """
    order = torch.arange(len(rows), device=rows.device) if order is None else order
    on_cpu = rows.device.type == "cpu"
    step = max(1, -(-len(rows) // MAX_SAMPLED_ROWS))
    sample = rows[order[::step]].double()
    center = _medians(sample)
    distance = (sample - center).abs()
    unit = _medians(distance)
    # Where half of the values are equal the others say how far is far.
    unit = torch.where(unit > 0, unit, distance.mean(0))
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    center = center.to(dtype)
    if not on_cpu or not bool((unit > 0).all()):
        unit = torch.where(unit > 0, unit, (rows.to(dtype) - center).abs().amax(0).double())
    # First by a power of two, so that the smallest and the largest units do not overflow.
    largest = 120 if dtype == torch.float32 else 1000
    power = torch.exp2(-torch.frexp(unit).exponent.clamp(-largest, largest).double())
    unit = TAIL * (unit * power).float()
    power, scale = power.to(dtype), torch.where(unit > 0, unit, 1.0).reciprocal()
    once = power.float() * scale
    # Of usual units, both factors are one.
    is_usual = on_cpu and rows.dtype == torch.float32 and bool(((once > 1e-30) & (once < 1e30)).all())
    # The memory of NumPy is in huge pages where the system has them, which a first write reaches several times faster.
    scaled = (
        torch.from_numpy(np.empty(rows.shape, np.float32))
        if on_cpu
        else torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    )
    # In the cache of a CPU; all at once on a GPU.
    blocks = scaled.split(max(1, BLOCK_VALUES // rows.shape[1]) if on_cpu else len(rows))
    square = torch.empty_like(blocks[0])
    sums = torch.zeros(2, rows.shape[1], dtype=torch.float64, device=rows.device)

    def add_moments(block: Tensor) -> None:
        # The mean is about a deviation from the median at most, so the difference of moments is exact enough.
        sums[0] += block.sum(0)
        sums[1] += torch.mul(block, block, out=square[: len(block)]).sum(0)

    for block, chosen in zip(blocks, order.split(len(blocks[0])), strict=True):
        # Before the precision is reduced, so that neither large offsets nor units matter.
        if is_usual:
            torch.index_select(rows, 0, chosen, out=block).sub_(center).mul_(once)
        else:
            # A value may be farther from the others, in their units, than float32 reaches.
            moved = rows.index_select(0, chosen).to(dtype).sub_(center).mul_(power)
            block.copy_(moved.clamp_(-LARGEST, LARGEST)).mul_(scale)
        if not on_cpu or _exceeds(block, 1.0):
            size = block.abs()
            block.copy_(torch.where(size > 1, block.sign() * (1 + size.clamp_min_(1).log_()), block))
        add_moments(block)
    for attempt in range(2):
        if attempt:
            sums.zero_()
            for block in blocks:
                add_moments(block)
        mean = sums[0] / len(rows)
        deviation = (sums[1] / len(rows) - mean.square()).clamp_min(0.0).sqrt()
        scale = torch.where(deviation > JITTER, deviation, torch.inf).reciprocal()
        shift, scale = (-mean * scale).float(), scale.float()
        far = not on_cpu
        for block in blocks:
            torch.addcmul(shift, block, scale, out=block)
            if not on_cpu or _exceeds(block, MAX_DEVIATION):
                block.clamp_(-MAX_DEVIATION, MAX_DEVIATION)
                far = True
        if not far:
            break
    return scaled


def _medians(rows: Tensor) -> Tensor:
    """The median of each column of rows (n, D), of an even number the lower: (D,)."""
    columns, place = rows.T.contiguous(), (len(rows) - 1) // 2
    if columns.device.type == "cpu":
        # Ten times faster.
        return torch.from_numpy(np.partition(columns.numpy(), place, 1)[:, place].copy())
    # Not `median`, which is refused on a GPU where deterministic algorithms are asked for.
    return columns.kthvalue(place + 1, 1).values


def _exceeds(block: Tensor, bound: float) -> bool:
    """Whether any value is larger than `bound`, or smaller than its negative."""
    low, high = block.aminmax()
    return float(high) > bound or float(low) < -bound


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
        within = fold_products(rows, rows, sets)
        sums = _class_sums(rows, sets)
        center = sums.sum(1) / sets.sizes[:, None].clamp_min(1)
        present = (sets.counts > 0).float().unsqueeze(-1)
        deviation = (sums / sets.counts.clamp_min(1).unsqueeze(-1) - center[:, None]) * present
        within /= sets.sizes[:, None, None].clamp_min(1)
        within -= center[:, :, None] * center[:, None, :]
        weighted = deviation * (sets.counts / sets.sizes[:, None].clamp_min(1))[..., None]
        within.baddbmm_(weighted.mT, deviation, alpha=-1)
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

    def one_set(self, place: int) -> "LinearSums":
        """The sums of one training set, which nobody reads."""
        one = slice(place, place + 1)
        sets = self.sets._replace(folds_in=self.sets.folds_in[one], readers=(), counts=self.sets.counts[one])
        return LinearSums(self.rows, sets, self.center[one], self.deviation[one], self.within[one])

    def factor(self, shrinkage: Tensor, index: list[int] | None = None) -> Tensor:
        """Cholesky factors (t, D, D) of the shrunk covariance; a factor that cannot be found makes its readout flat."""
        return factored(self.shrunk(shrinkage, index))

    def shrunk(self, shrinkage: Tensor, index: list[int] | None = None) -> Tensor:
        """The covariance (t, D, D), a share of which is replaced by the identity times its mean variance."""
        # Not by a list, which is a copy to a GPU that the host waits for.
        within = self.within if index is None else torch.stack([self.within[place] for place in index])
        spread = within.diagonal(dim1=1, dim2=2).mean(-1)[:, None]
        shrunk = within * (1 - shrinkage)
        shrunk.diagonal(dim1=1, dim2=2).add_(shrinkage * spread + JITTER)
        return shrunk

    def discriminant(self, factor: Tensor, index: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Weights (t, D, C) and offsets (t, C) of linear discriminant analysis, without the prior."""
        deviation, center = (
            part if index is None else torch.stack([part[place] for place in index])
            for part in (self.deviation, self.center)
        )
        weights = solved(factor, deviation.mT)
        offset = -0.5 * (deviation.mT * weights).sum(1) - (center[:, None] @ weights)[:, 0]
        return weights, offset

    def scores(self, weights: Tensor, offset: Tensor) -> Tensor:
        """Logits (N, t, C) of all rows by all weights (t, D, C) and offsets (t, C)."""
        return self.scores_by_class(weights, offset).permute(2, 0, 1)

    def scores_by_class(self, weights: Tensor, offset: Tensor) -> Tensor:
        """The same as (t, C, N): a product with few columns is read fastest from the left."""
        flat, base = weights.mT.flatten(0, 1), offset.flatten()[:, None]
        step = max(1, SCORED_VALUES // self.rows.shape[1])
        if self.rows.device.type != "cpu" or len(self.rows) <= step:
            return torch.addmm(base, flat, self.rows.T).view(*offset.shape, -1)
        parts = [torch.addmm(base, flat, part.T) for part in self.rows.split(step)]
        return torch.cat(parts, 1).view(*offset.shape, -1)

    def read(self, weights: Tensor, offset: Tensor) -> Tensor:
        """Held-out logits (R, N, C) by weights (T, D, C) and offsets (T, C): every row by the sets that may read it."""
        sets = self.sets
        if not sets.is_in_pieces:
            return sets.held_out(self.scores(weights, offset))
        logits = self.rows.new_empty(len(sets.readers), len(self.rows), weights.shape[2])
        by_class = weights.mT.contiguous()
        for part, readers in zip(sets.slices(), zip(*sets.readers, strict=True), strict=True):
            # By all sets that read a fold at once: its rows come from the memory once.
            base, chosen = (torch.cat([of[k] for k in readers]) for of in (offset, by_class))
            found = torch.addmm(base[:, None], chosen, self.rows[part].T)
            logits[:, part] = found.view(len(readers), weights.shape[2], -1).mT
        return logits


def fold_products(left: Tensor, right: Tensor, sets: TrainingSets) -> Tensor:
    """left^T right over the rows of each training set: (T, D1, D2)."""
    if sets.cells is None:
        parts = [(left * (sets.fold == k)[:, None]).T @ right for k in range(sets.num_folds)]
        return sets.sums(torch.stack(parts))
    return sets.sums(products_of_slices(left, right, sets.slices()))


def products_of_slices(left: Tensor, right: Tensor, slices: list[slice]) -> Tensor:
    """left^T right over each of S slices of the rows, (S, D1, D2)."""
    columns = left.shape[1]
    if left is not right or left.device.type != "cpu" or columns < 2 * SMALLEST_BLOCK:
        return torch.stack([left[part].T @ right[part] for part in slices])
    # Of the product of a matrix with itself half is computed, by blocks of its columns.
    block = max(SMALLEST_BLOCK, -(-columns // MOST_BLOCKS))
    found = left.new_empty(len(slices), columns, columns)
    for product, part in zip(found, slices, strict=True):
        rows = left[part]
        for start in range(0, columns, block):
            end = min(start + block, columns)
            torch.mm(rows[:, start:].T, rows[:, start:end], out=product[start:, start:end])
            product[start:end, end:] = product[end:, start:end].T
    return found


def _class_sums(rows: Tensor, sets: TrainingSets) -> Tensor:
    """The sums of the rows of each class in each training set: (T, C, D)."""
    classes, folds = sets.num_classes, sets.num_folds
    if sets.is_in_pieces:
        sums = torch.stack([rows[start:end].sum(0) for start, end in pairwise(sets.cells or ())])
    elif sets.cells is not None:
        sums = torch.stack([sets.one_hot[part].T @ rows[part] for part in sets.slices()])
    else:
        cell = sets.fold * classes + sets.labels
        sums = rows.new_zeros(folds * classes, rows.shape[1]).index_add_(0, cell, rows)
    return sets.sums(sums.view(folds, classes, -1))


def covariance_between(first: LinearSums, second: LinearSums, products: Tensor) -> Tensor:
    """The covariance of the columns of two sides within the classes, from `fold_products`: (T, D1, D2)."""
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
    weights: Tensor
    """(T, D, C): its weights."""
    tells_all: bool
    """Whether hardly anything of the label is left for other readouts to tell."""


def linear_readouts(sums: LinearSums, log_prior: Tensor) -> LinearReadouts:
    """Fit both kinds of readout; the shrinkage is chosen by the log-loss of two held-out folds.

    Logistic regression is fitted on all training sets where, fitted on one half, it tells what the discriminant
    analysis does not.
    """
    grid = torch.tensor(SHRINKAGE, dtype=sums.rows.dtype, device=sums.rows.device)
    place, loss = choose_shrinkage(sums, grid, log_prior)
    tells_all = loss < MIN_LEFT
    last = len(SHRINKAGE) - 1
    shrinkage, other = grid[place], grid[torch.where(place < last, place + 1, last - 1)]
    factor = sums.factor(shrinkage)
    weights, offset = sums.discriminant(factor)
    logits = [sums.read(weights, offset)]
    if tells_all:
        return LinearReadouts(logits, shrinkage, factor, weights, tells_all)
    logits += without_noise(sums, sums.deviation @ weights, logits[0], shrinkage, log_prior)
    # With many rows per column the shrinkage hardly matters.
    few = len(sums.rows) < FEW_ROWS_PER_COLUMN * sums.rows.shape[1]
    factors = [factor, sums.factor(other)] if few else [factor]
    logits += told_by_half([sums], [[each] for each in factors], logits, log_prior)
    return LinearReadouts(logits, shrinkage, factor, weights, tells_all)


def without_noise(
    sums: LinearSums, gram: Tensor, logits: Tensor, shrinkage: Tensor, log_prior: Tensor
) -> list[Tensor]:
    """Held-out logits (2, N, C) of a discriminant analysis whose class means are freed of noise, or none.

    There are none of two classes, where noise changes nothing but the length of the one direction, and where by halves
    they do not tell what the discriminant analysis does not.

    Args:
        sums: of standardized rows, for all training sets.
        gram: (T, C, C), see `class_mixing`.
        logits: (2, N, C), held-out logits of the discriminant analysis.
        shrinkage: () of its covariance.
        log_prior: (C,).
    """
    sets, number = sums.sets, sums.sets.num_folds
    if sets.num_classes < 3:
        return []
    mixing, shift = class_mixing(gram, sets, sums.rows.shape[1], shrinkage)
    half = mixed(logits[1:], mixing[number:], shift[number:], sets.halves())
    if not tells_more([logits[1]], [half[0]], sets.labels, log_prior):
        return []
    return [torch.cat([mixed(logits[:1], mixing[:number], shift[:number], sets.folds()), half])]


def class_mixing(gram: Tensor, sets: TrainingSets, columns: int, shrinkage: Tensor) -> tuple[Tensor, Tensor]:
    """How the logits of a discriminant analysis are mixed across classes, so that its class means are freed of noise.

    In the metric of the covariance the means of C classes, each times the root of its share, are a matrix of C - 1
    directions, most of which may be noise of variance 1 / n, or larger where the metric is fitted to few rows. Its
    singular values are shrunk as is optimal for large matrices (Gavish and Donoho 2017, "Optimal shrinkage of singular
    values").

    Args:
        gram: (T, C, C) products of the means in the metric, each less the mean of all rows.
        sets: T training sets.
        columns: D.
        shrinkage: () of the covariance.

    Returns:
        (T, C, C), which logits (N, C) are multiplied with, and (T, C), which is then added.
    """
    root = (sets.counts / sets.sizes[:, None].clamp_min(1)).sqrt().double()
    values, vectors = torch.linalg.eigh(root[:, :, None] * gram.double() * root[:, None])
    sizes = sets.sizes.double()[:, None].clamp_min(1)
    fitted = ((1 - shrinkage.double()) * columns / sizes).clamp_max(MAX_FITTED)
    less, more = sorted((sets.num_classes - 1, columns))
    ratio = less / more
    # In units of the noise.
    size = values * sizes * (1 - fitted) / more
    kept = ((size - ratio - 1).square() - 4 * ratio).clamp_min(0.0).sqrt() / size.clamp_min(TINY)
    kept = torch.where(size > (1 + ratio**0.5) ** 2, kept, 0.0)
    mixing = (vectors * kept[:, None]) @ vectors.mT
    mixing = (root[:, :, None] * mixing / root[:, None].clamp_min(TINY)).to(gram.dtype)
    length = gram.diagonal(dim1=1, dim2=2)[:, None] @ mixing
    return mixing, 0.5 * (length[:, 0] - (mixing * (gram @ mixing)).sum(1))


def mixed(logits: Tensor, mixing: Tensor, shift: Tensor, sets: TrainingSets) -> Tensor:
    """Held-out logits (R, N, C) by T training sets, mixed across classes as `class_mixing` (T, C, C), (T, C) says."""
    found = torch.empty_like(logits)
    if sets.cells is not None:
        for part, readers in zip(sets.slices(), zip(*sets.readers, strict=True), strict=True):
            for place, reader in enumerate(readers):
                found[place, part] = torch.addmm(shift[reader], logits[place, part], mixing[reader])
        return found
    for number in range(len(mixing)):
        found = torch.where(
            (sets.reader == number)[..., None], logits @ mixing[number] + shift[number], found
        )
    return found


def told_by_half(
    sides: list[LinearSums], factors: list[list[Tensor]], known: list[Tensor], log_prior: Tensor
) -> list[Tensor]:
    """Held-out logits (2, N, C) of logistic regressions, or none where by a half they add nothing to what is known.

    Args:
        sides: the sums of one or more modalities.
        factors: for each regression the Cholesky factors (T, D, D) of each side.
        known: K tensors (2, N, C): logits of other readouts.
        log_prior: (C,).
    """
    sets = sides[0].sets
    number = sets.num_folds
    halves = [side.halves() for side in sides]
    # Of few rows a column, a half tells much less than all folds but one. A few groups leave a half without rows.
    enough = len(sets.labels) >= ROWS_PER_COLUMN_OF_HALVES * sum(side.rows.shape[1] for side in sides)
    read = None if sets.cells is None else halves_of(sets)[0][1]
    if enough and read is not None and read.start < read.stop:
        # One half is enough to see whether the other is worth it.
        new = []
        for each in factors:
            weights, offset = _logistic_weights(
                [_rows_of_half(half, 0) for half in halves], [f[number, None] for f in each]
            )
            new.append(_scores_of(sides, weights, offset, read))
        if not tells_more([k[1, read] for k in known], new, sets.labels[read], log_prior):
            return []
    by_half = [logistic_path(halves, [f[number:] for f in each]) for each in factors]
    folds = [side.folds() for side in sides]
    by_fold = [logistic_path(folds, [f[:number] for f in each]) for each in factors]
    return [torch.cat(both) for both in zip(by_fold, by_half, strict=True)]


def _scores_of(sides: list[LinearSums], weights: list[Tensor], offset: Tensor, rows: slice) -> Tensor:
    """Logits (n, C) of some rows by weights (1, D, C) of each side and offsets (1, C)."""
    chosen = [side._replace(rows=side.rows[rows]) for side in sides]
    return _sum_of_scores(chosen, weights, offset)[0].T


def tells_more(
    known: list[Tensor], new: list[Tensor], labels: Tensor, log_prior: Tensor, min_gain: float = MIN_GAIN
) -> bool:
    """Whether held-out logits (N, C) tell the labels better with others than without them, by more than chance.

    In nats that are summed over the rows it must be more than `min_gain`.
    """
    if not len(labels):
        return False
    step = max(1, -(-len(labels) // MAX_JUDGED_ROWS))
    rows, labels = len(labels), labels[::step]
    every = torch.stack([part[::step] for part in (*known, *new)])
    pooled = pool_with_part(every, len(known), labels, log_prior, MAX_COMPARED_ROWS)
    told = pooled.log_posterior.gather(2, labels.expand(2, -1).unsqueeze(2)).double().mean((1, 2))
    return bool(told[0] - told[1] > max(min_gain / rows, MIN_GAIN_PER_ROW))


def choose_shrinkage(sums: LinearSums, grid: Tensor, log_prior: Tensor) -> tuple[Tensor, float]:
    """The place () in `grid` of the shrinkage whose discriminant analysis tells most about held-out rows.

    They are those of two folds, or of one that has enough. The second result is its log-loss in nats.
    """
    sets = sums.sets
    tried = [0, sets.num_folds // 2]
    if len(sums.rows) >= ENOUGH_JUDGED_ROWS * sets.num_folds:
        tried = [0, 0]
    in_first = sets.fold == tried[0]
    chosen = (in_first | (sets.fold == tried[1])).nonzero().squeeze(1)
    step = max(1, -(-len(chosen) // MAX_JUDGED_ROWS))
    chosen, in_first = chosen[::step], in_first[chosen[::step], None]
    labels = sets.labels[chosen]
    part = sums._replace(rows=sums.rows[chosen])

    def loss(places: list[int]) -> Tensor:
        fitted = sorted(set(tried))
        factor = factored(torch.cat([sums.shrunk(grid[place], fitted) for place in places]))
        scores = part.scores(*sums.discriminant(factor, fitted * len(places))).unflatten(1, (len(places), -1))
        logits = torch.where(in_first[:, None], scores[:, :, 0], scores[:, :, -1]).transpose(0, 1)
        posterior = pool(logits.unsqueeze(1), labels, log_prior, MAX_COMPARED_ROWS).log_posterior
        return -posterior.gather(2, labels.expand(len(places), -1).unsqueeze(2)).mean((1, 2))

    # Where no shrinkage tells anything alone, the side may still tell something together with another: as little
    # shrinkage as its rows allow.
    enough = len(sums.rows) >= 4 * sums.rows.shape[1]
    untold = SHRINKAGE.index(1e-3 if enough else 0.2)
    nothing = -log_prior[labels].mean() - MIN_TOLD
    if sums.rows.shape[1] <= FEW_COLUMNS:
        losses = loss(list(range(len(SHRINKAGE))))
        place = torch.where(losses.amin() < nothing, losses.argmin(), untold)
        return place, float(losses.amin())
    # From a likely place as long as it gets better. Where all around tells nothing, everywhere: beside directions of
    # large variance a side may tell something by the least shrinkage alone.
    losses_at: dict[int, float] = {}
    missing = [untold, untold + 1]
    while missing:
        losses_at.update(zip(missing, loss(missing).tolist(), strict=True))
        best = min(losses_at, key=lambda place: losses_at[place])
        near = (best - 1, best + 1) if losses_at[best] < float(nothing) else range(len(SHRINKAGE))
        missing = [p for p in near if 0 <= p < len(SHRINKAGE) and p not in losses_at]
    found = best if losses_at[best] < float(nothing) else untold
    return torch.tensor(found, device=grid.device), losses_at[best]


def steps_for(classes: int) -> int:
    """How many steps of logistic regression tell most about other rows, as was found on sentence embeddings."""
    return min(max(FEWEST_STEPS, round(2 * classes**0.5 - 2)), MOST_STEPS)


def logistic_path(sides: list[LinearSums], factors: list[Tensor]) -> Tensor:
    """Held-out logits (R, N, C) of a few steps of logistic regression from zero on the columns of all sides.

    The metric of a step is the shrunk covariance of each side, to which the covariance of the class means is added; so
    a step of length 2 never overshoots for one side (Böhning 1992, "Multinomial logistic regression algorithm").

    Args:
        sides: the sums of one or more modalities with the same training sets.
        factors: their Cholesky factors (T, D, D).
    """
    sets = sides[0].sets
    if sets.cells is None or len(sets.counts) != 2:
        weights, offset = _logistic_weights(sides, factors)
    else:
        # The halves have no rows in common: each is fitted on its own.
        each = [
            _logistic_weights([_rows_of_half(side, half) for side in sides], [f[half, None] for f in factors])
            for half in range(2)
        ]
        weights = [torch.cat(parts) for parts in zip(*(w for w, _ in each), strict=True)]
        offset = torch.cat([part for _, part in each])
    logits = sides[0].read(weights[0], offset)
    for side, part in zip(sides[1:], weights[1:], strict=True):
        logits += side.read(part, torch.zeros_like(offset))
    return logits


def _rows_of_half(side: LinearSums, half: int) -> LinearSums:
    """The sums of one of two halves, with its own rows alone, which nobody reads."""
    sets, middle = side.sets, side.sets.slices()[side.sets.num_folds // 2].start
    part = slice(0, middle) if half == 0 else slice(middle, None)
    own = side.one_set(half)
    rows = own.sets._replace(
        fold=sets.fold[part], labels=sets.labels[part], one_hot=sets.one_hot[part], cells=None
    )
    return own._replace(rows=side.rows[part], sets=rows)


def _logistic_weights(sides: list[LinearSums], factors: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The weights (T, D, C) of each side and the offsets (T, C) of `logistic_path`."""
    sets = sides[0].sets
    size, prior = sets.sizes[:, None, None].clamp_min(1), sets.log_prior
    number, classes = sets.counts.shape
    told, member = sets.one_hot.T.contiguous(), sets.member.T[:, None]
    length = 2.0 / len(sides)
    spans, cores = [], []
    for side, factor in zip(sides, factors, strict=True):
        span = half_solved(factor, (side.deviation * side.share.sqrt()[..., None]).mT)
        spans.append(span)
        # In float64: where classes lie far apart the eigenvalues reach from 1 to millions. And no `linalg.solve`:
        # after `torch.set_num_threads` its factors of several matrices are wrong (torch 2.13 on a CPU).
        wide = span.double()
        cores.append(factored(torch.eye(classes, dtype=wide.dtype, device=span.device) + wide.mT @ wide))

    weights = [torch.zeros_like(side.deviation.mT) for side in sides]
    ahead, offset = list(weights), torch.zeros_like(prior)
    offset_ahead = offset
    for step in range(1, steps_for(classes) + 1):
        if step == 1:
            # From weights of zero the slopes are sums that are known.
            rest_sum = sets.counts - size.squeeze(-1) * prior.exp()
            slopes = [side.deviation.mT * sets.counts.unsqueeze(1) for side in sides]
        else:
            # Classes before rows: a softmax over a few classes is then one of long vectors.
            logits = _sum_of_scores(sides, ahead, _with_centers(sides, ahead, offset_ahead + prior))
            found = torch.softmax(logits, 1)
            rest = torch.sub(told, found, out=found).mul_(member)
            rest_sum = rest.sum(2)
            flat = rest.flatten(0, 1)
            slopes = [
                (flat @ side.rows).view(number, classes, -1).mT - side.center[:, :, None] * rest_sum[:, None]
                for side in sides
            ]
        momentum = (step - 1) / (step + 2)
        new_offset = offset_ahead + 2 * rest_sum / size.squeeze(-1)
        new = []
        for factor, span, core, slope, start in zip(factors, spans, cores, slopes, ahead, strict=True):
            slope = half_solved(factor, slope / size)
            slope = slope - span @ solved(core, (span.mT @ slope).double()).to(span.dtype)
            new.append(start + length * transposed_solved(factor, slope))
        ahead = [n + momentum * (n - w) for n, w in zip(new, weights, strict=True)]
        offset_ahead = new_offset + momentum * (new_offset - offset)
        weights, offset = new, new_offset
    return weights, _with_centers(sides, weights, offset)


def _with_centers(sides: list[LinearSums], weights: list[Tensor], offset: Tensor) -> Tensor:
    """Offsets (T, C) for columns as they are, from those for columns minus their centers."""
    for side, part in zip(sides, weights, strict=True):
        offset = offset - (side.center[:, None] @ part)[:, 0]
    return offset


def _sum_of_scores(sides: list[LinearSums], weights: list[Tensor], offset: Tensor) -> Tensor:
    """Logits (t, C, N) of the columns of all sides by their weights (t, D, C), with offsets (t, C)."""
    logits = sides[0].scores_by_class(weights[0], offset)
    for side, part in zip(sides[1:], weights[1:], strict=True):
        logits += side.scores_by_class(part, torch.zeros_like(offset))
    return logits


def are_dependent(
    first: LinearSums, second: LinearSums, linear: tuple[LinearReadouts, LinearReadouts]
) -> bool:
    """Whether one side tells the noise in the discriminants of the other, in held-out rows.

    The weights of a discriminant analysis of both sides together are those of each alone where, within the classes, the
    discriminants of each side are uncorrelated with the columns of the other. Both halves are tried.
    """
    number = first.sets.num_folds
    for own, other, readouts, others in (
        (first, second, linear[0], linear[1]),
        (second, first, linear[1], linear[0]),
    ):
        values = []
        for half, (fitted, read) in enumerate(halves_of(own.sets)):
            place = number + half
            weights = readouts.weights[place]

            def noise(side: LinearSums, weights: Tensor, rows: slice, place: int = place) -> Tensor:
                """(C, n): what the means of the classes leave of the scores."""
                means = (side.deviation[place] + side.center[place]) @ weights
                scores = _scores_of([side], [weights[None]], torch.zeros_like(means[None, 0]), rows).T
                return scores - means.T.index_select(1, side.sets.labels[rows])

            covariance = (noise(own, weights, fitted) @ other.rows[fitted]).T / (fitted.stop - fitted.start)
            slope = solved(others.factor[place, None], covariance[None])[0]
            # Of the rows that are read the discriminants are known.
            at_means = own.deviation[place] @ weights
            at_means = at_means - 0.5 * at_means.diagonal()
            here = (readouts.logits[0][1, read] - at_means[own.sets.labels[read]]).T
            scale = here.square().mean(1, keepdim=True).clamp_min(1e-12)
            values.append((here * noise(other, slope, read) / scale).sum(0))
        told = torch.cat(values).double()
        error = told.std(correction=0) / len(told) ** 0.5
        if bool(told.mean() > (MIN_DEPENDENCE * error).clamp_min(MIN_SHARED)):
            return True
    return False


def halves_of(sets: TrainingSets) -> list[tuple[slice, slice]]:
    """For each half the rows that it is fitted on, and those that it reads."""
    middle, number = sets.slices()[sets.num_folds // 2].start, len(sets.fold)
    parts = slice(0, middle), slice(middle, number)
    return [(parts[0], parts[1]), (parts[1], parts[0])]


def joint_discriminant(
    first: LinearSums, second: LinearSums, first_shrinkage: Tensor, second_shrinkage: Tensor, products: Tensor
) -> Tensor:
    """Held-out logits (R, N, C) of discriminant analysis on the columns of both sides together.

    The covariance of both is never factorized: conjugate gradients use the factors of the sides as preconditioner, so
    that modalities that are independent given the label need no iteration.

    Args:
        first: the sums of one side.
        second: those of the other, with the same training sets.
        first_shrinkage: the share of the identity in the covariance of the one.
        second_shrinkage: the same of the other.
        products: (T, D1, D2), `fold_products` of both.
    """
    sides, shrinkages = (first, second), (first_shrinkage, second_shrinkage)
    factors = [side.factor(shrinkage) for side, shrinkage in zip(sides, shrinkages, strict=True)]
    own = [side.shrunk(shrinkage) for side, shrinkage in zip(sides, shrinkages, strict=True)]
    sizes = (first.rows.shape[1], second.rows.shape[1])
    kept = ((1 - first_shrinkage) * (1 - second_shrinkage)).sqrt()
    between = covariance_between(first, second, products).mul_(kept)
    right = torch.cat([first.deviation.mT, second.deviation.mT], 1)

    def solve(v: Tensor) -> Tensor:
        parts = v.split(sizes, 1)
        return torch.cat([solved(f, p) for p, f in zip(parts, factors, strict=True)], 1)

    def apply(v: Tensor) -> Tensor:
        a, b = v.split(sizes, 1)
        return torch.cat([own[0] @ a + between @ b, own[1] @ b + between.mT @ a], 1)

    found = solve(right)
    rest = right - apply(found)
    z = solve(rest)
    direction, old = z, (rest * z).sum(1, keepdim=True)
    start = (right * found).sum(1, keepdim=True)
    for _ in range(CONJUGATE_STEPS):
        if bool((old <= SOLVED * start).all()):
            break
        moved = apply(direction)
        length = old / (direction * moved).sum(1, keepdim=True).clamp_min(1e-20)
        found, rest = found + length * direction, rest - length * moved
        z = solve(rest)
        new = (rest * z).sum(1, keepdim=True)
        direction, old = z + (new / old.clamp_min(1e-20)) * direction, new
    weights = list(found.split(sizes, 1))
    offset = _with_centers([first, second], weights, -0.5 * (right * found).sum(1))
    return first.read(weights[0], offset) + second.read(weights[1], torch.zeros_like(offset))
