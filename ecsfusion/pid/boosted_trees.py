"""Readouts by boosted trees of thresholds: rules of several columns, which no line, direction or pair of them shows.

Gradient boosting of the log-loss (Friedman 2001) with histograms of binned columns. One tree a round splits all classes
at once: its splits serve the squared sums of their gradients, of many classes of a few random combinations of these
(SketchBoost, Iosipoi and Vakhrushev 2022), and its leaves hold a Newton step of each class. The trees of all training
sets grow side by side. Sums are of integers, so that the order of rows changes nothing.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from ecsfusion_kernels import uniform
from torch import Tensor

from ecsfusion.pid.binned import sorted_columns
from ecsfusion.pid.components import components
from ecsfusion.pid.linear import TrainingSets, tells_more
from ecsfusion.pid.pooling import pool
from ecsfusion.pid.screening import columns_of, telling_columns
from ecsfusion.pid.trial import some_rows

FINE_BINS = 256
"""Of each column, with about equally many values."""
JOINED = 8
"""Neighbouring bins that are joined for a tree, each time others, so that trees together have fine thresholds."""
MAX_ROWS = 16384
"""The most rows that choose the splits of a tree, each time others; all rows fill its leaves."""
MAX_SAMPLED_ROWS = 4096
"""The most rows that the edges of the bins are taken of."""
MIN_ROWS_OF_LEAF = 5
PRIOR_ROWS = 1.0
"""Rows without a gradient that every leaf starts with."""
MAX_VALUES = 1 << 20
"""The most rows times classes; each is a logit of every training set."""
UNIT = 2.0**-16
"""Of the integers that stand for gradients: sums of `MAX_ROWS` of them stay under 2^31."""
MIN_GAIN = 8.0
"""Log-likelihood, in nats, that trees must add by halves: of rows that stand twice chance adds twice as much."""
MIN_GAIN_OF_TRIAL = 2.0
"""And in a trial, which costs little."""
MIN_GAIN_OF_COMPONENTS = 16.0
"""And that the components of their logits must add, whose weights take chance for more,"""
MIN_GAIN_OF_COMPONENTS_OF_TRIAL = 8.0
"""and in a trial."""
MAX_TRIAL_ROWS = 2048
"""The most rows of a trial."""


class Trees(NamedTuple):
    """A tree of each of T training sets; level l has 2^l nodes."""

    columns: list[Tensor]
    """(T, 2^l) int64 of each level: the column of a node,"""
    thresholds: list[Tensor]
    """(T, 2^l) int64: and the largest of its fine bins that goes to the first child."""
    told: Tensor
    """(T, M): the most that one threshold of each column tells at a node."""


class Bins(NamedTuple):
    """Rows by the bins of their columns."""

    rows: Tensor
    """(N, D) uint8."""
    kept: Tensor
    """(T, M) int64: the columns of each training set that may be split."""

    def of_sets(self, some: slice) -> "Bins":
        """Those of some training sets."""
        return self._replace(kept=self.kept[some])


class Plan(NamedTuple):
    """How trees are grown."""

    stages: tuple[tuple[int, float], ...]
    """Of each stage how many trees a training set grows, and how much of a Newton step their leaves take."""
    depth: int
    """Levels of splits."""
    screened: int
    """Of more columns, those that tell most by one threshold are split, by training set."""
    columns: int
    """Of more, those whose best threshold tells most in the first tree are split further."""
    gradients: int
    """The most gradients, or combinations of them, that choose the splits."""


TRIAL = Plan(stages=((4, 1.0),), depth=5, screened=32, columns=16, gradients=2)
# What is known after the first stage is little fitted to noise, and after the second intricate rules are known, too.
WHOLE = Plan(stages=((10, 0.1), (22, 0.4)), depth=6, screened=128, columns=32, gradients=4)


def tree_readouts(
    sides: Sequence[Tensor],
    sets: TrainingSets,
    known: list[Tensor],
    log_prior: Tensor,
    with_trial: bool = True,
) -> list[Tensor]:
    """Held-out logits (2, N, C) by boosted trees, or none where by halves they tell nothing new.

    They are the components of those of each stage: what trees learn of noise between some classes would hide what they
    tell of others.

    Args:
        sides: (N, D_s) standardized rows, of one side or of several together.
        sets: all training sets.
        known: (2, N, C) each, held-out logits of other readouts.
        log_prior: (C,).
        with_trial: whether a trial on some rows decides first.
    """
    if len(sets.labels) * sets.num_classes > MAX_VALUES:
        return []
    if with_trial and not _trial_tells_more(sides, sets, known, log_prior):
        return []
    bins, number = binned(sides, sets, WHOLE.screened), sets.num_folds
    halves = boosted(bins.of_sets(slice(number, None)), sets.halves(), WHOLE)
    if not _tell_more(halves, [part[1] for part in known], sets, log_prior, MIN_GAIN, MIN_GAIN_OF_COMPONENTS):
        return []
    folds = boosted(bins.of_sets(slice(number)), sets.folds(), WHOLE)
    parts = [_components(stages, sets) for stages in (folds, halves)]
    return [torch.stack(both) for both in zip(*parts, strict=True)]


def _components(stages: list[Tensor], sets: TrainingSets) -> list[Tensor]:
    """The components (N, C) of the logits (N, C) of each stage."""
    return [part for logits in stages for part in components(logits, sets)]


def _tell_more(
    stages: list[Tensor],
    known: list[Tensor],
    sets: TrainingSets,
    log_prior: Tensor,
    min_gain: float,
    min_gain_of_components: float,
) -> bool:
    """Whether logits (N, C) of trees tell what others (N, C) do not, or their components what those of these do not.

    Both are held out, by halves.
    """
    if tells_more(known, stages, sets.labels, log_prior, min_gain):
        return True
    if sets.num_classes < 3:
        return False
    pooled = pool(torch.stack(known).unsqueeze(0), sets.labels, log_prior).log_posterior[0] - log_prior
    base, parts = components(pooled, sets), _components(stages, sets)
    return tells_more(base, parts, sets.labels, log_prior, min_gain_of_components)


def _trial_tells_more(
    sides: Sequence[Tensor], sets: TrainingSets, known: list[Tensor], log_prior: Tensor
) -> bool:
    """Whether a few trees, grown on half of some rows, tell more of the other half than is known."""
    rows = len(sets.labels)
    number = min(rows, MAX_TRIAL_ROWS)
    places = torch.arange(number, device=sets.labels.device) * rows // number
    own = TrainingSets.make(sets.fold[places], sets.num_folds, sets.labels[places], sets.num_classes)
    halves = own.halves()
    bins = binned([rows[places] for rows in sides], halves, TRIAL.screened)
    trial = boosted(bins, halves, TRIAL)
    least = MIN_GAIN_OF_TRIAL, MIN_GAIN_OF_COMPONENTS_OF_TRIAL
    return _tell_more(trial, [part[1, places] for part in known], own, log_prior, *least)


def binned(sides: Sequence[Tensor], sets: TrainingSets, screened: int) -> Bins:
    """The bins of the rows (N, D_s) of all sides, of so many columns of each training set."""
    columns = sum(rows.shape[1] for rows in sides)
    if columns <= screened:
        kept = torch.arange(columns, device=sets.labels.device).expand(len(sets.counts), -1)
        return Bins(fine_bins(torch.cat(list(sides), 1)), kept)
    kept = telling_columns(sides, sets, screened)
    used = kept.unique()
    return Bins(fine_bins(columns_of(sides, used)), torch.searchsorted(used, kept))


def fine_bins(rows: Tensor) -> Tensor:
    """The bin (N, D) uint8 of each value among those of its column."""
    sample = sorted_columns(rows[some_rows(len(rows), rows.device, MAX_SAMPLED_ROWS)].T.contiguous())
    places = torch.linspace(0, sample.shape[1] - 1, FINE_BINS + 1, dtype=torch.float32, device=rows.device)
    edges = sample[:, places.long()[1:-1]].contiguous()
    return torch.searchsorted(edges, rows.T.contiguous()).T.to(torch.uint8).contiguous()


def boosted(bins: Bins, sets: TrainingSets, plan: Plan) -> list[Tensor]:
    """Logits (N, C) of each row, less the prior, by all trees of its reader up to the end of each stage.

    Args:
        bins: of all rows, and of these training sets.
        sets: T training sets with one reader of each row.
        plan: of the trees.
    """
    rows, kept = bins
    number = len(rows)
    member = sets.member.T.contiguous()
    # (T, R): the rows of each set, and of smaller ones some that are not in it.
    own = member.argsort(dim=1, descending=True, stable=True)[:, : int(sets.sizes.max())]
    stride = max(1, -(-own.shape[1] // MAX_ROWS))
    label = sets.one_hot.T.contiguous()
    start = sets.log_prior.unsqueeze(2)
    # (T, C, N)
    logits = torch.zeros(len(member), sets.num_classes, number, dtype=torch.float32, device=rows.device)
    stages: list[Tensor] = []
    ends = list(accumulate(rounds for rounds, _ in plan.stages))
    for turn in range(ends[-1]):
        posterior = torch.softmax(logits + start, 1)
        gradient = (label - posterior).mul_(member.unsqueeze(1))
        some = own[:, turn % stride :: stride]
        values = torch.cat([member.unsqueeze(1), _combined(gradient, plan.gradients, turn)], 1)
        values = (values / UNIT).round_().int().gather(2, some.unsqueeze(1).expand(-1, values.shape[1], -1))
        trees = grow(rows[some.unsqueeze(2), kept.unsqueeze(1)], values, kept, plan.depth, turn)
        curvature = posterior.mul_(1 - posterior).mul_(member.unsqueeze(1))
        logits.add_(
            _steps(route(rows, trees), gradient, curvature, 1 << plan.depth),
            alpha=plan.stages[len(stages)][1],
        )
        if not turn and kept.shape[1] > plan.columns:
            kept = kept.gather(1, trees.told.topk(plan.columns).indices)
        if turn + 1 == ends[len(stages)]:
            stages.append(logits[sets.reader[0], :, torch.arange(number, device=rows.device)])
    return stages


def grow(bins: Tensor, values: Tensor, kept: Tensor, depth: int, turn: int) -> Trees:
    """Grow a tree for each of T training sets on some of its rows.

    Args:
        bins: (T, R, M) uint8, of the columns that are kept.
        values: (T, 1 + G, R) int32: one of each row, and its gradients; 0 of rows that are not in the set after all.
        kept: (T, M) int64: the columns.
        depth: levels of splits.
        turn: of the joined bins.
    """
    sets, rows, columns = bins.shape
    device = bins.device
    shift = (turn * 5) % JOINED
    width = FINE_BINS // JOINED + 1
    cell = (bins.short() + shift) >> JOINED.bit_length() - 1
    cell = cell + torch.arange(columns, device=device) * width
    each = torch.arange(sets, device=device).unsqueeze(1)
    channels = [part.unsqueeze(2).expand(cell.shape).flatten() for part in values.unbind(1)]
    node = torch.zeros(sets, rows, dtype=torch.int64, device=device)
    chosen, thresholds = [], []
    told = torch.zeros(kept.shape, dtype=torch.float32, device=device)
    for level in range(depth):
        nodes = 1 << level
        place = (cell + ((each * nodes + node) * (columns * width)).unsqueeze(2)).flatten()
        shape = (sets, nodes, columns, width)
        empty = torch.zeros(sets * nodes * columns * width, dtype=torch.int32, device=device)
        gain = _gain([empty.scatter_add(0, place, channel).view(shape) for channel in channels])
        told = torch.maximum(told, gain.amax((1, 3)))
        best, where = gain.flatten(2).max(2)
        column = where // width
        # A node that is not worth splitting sends all rows to its first child.
        threshold = (where % width + 1) * JOINED - 1 - shift
        threshold = torch.where(best > 0, threshold, FINE_BINS)
        chosen.append(kept.gather(1, column))
        thresholds.append(threshold)
        value = bins.gather(2, column.gather(1, node).unsqueeze(2)).squeeze(2)
        node = 2 * node + (value > threshold.gather(1, node))
    return Trees(chosen, thresholds, told)


def route(bins: Tensor, trees: Trees) -> Tensor:
    """The leaf (T, N) int64 of each row of `bins` (N, D) in each tree."""
    number, columns = bins.shape
    first = torch.arange(number, device=bins.device) * columns
    node = torch.zeros(len(trees.told), number, dtype=torch.int64, device=bins.device)
    for column, threshold in zip(trees.columns, trees.thresholds, strict=True):
        value = bins.flatten()[first + column.gather(1, node)]
        node = 2 * node + (value > threshold.gather(1, node))
    return node


def _gain(sums: list[Tensor]) -> Tensor:
    """What each threshold tells at each node: by how much squared gradients per row grow; (T, nodes, D, bins).

    Args:
        sums: (T, nodes, D, bins) int32 each: the rows in each bin, and the sums of their gradients.
    """
    # Of integers: deterministic mode refuses cumulated floats on a GPU.
    rows = sums[0].cumsum(3, dtype=torch.int32).float().mul_(UNIT)
    whole = rows[..., -1:].clone()
    others = whole - rows
    is_large = torch.minimum(rows, others) >= MIN_ROWS_OF_LEAF
    left, right, together = torch.zeros_like(rows), torch.zeros_like(rows), torch.zeros_like(whole)
    for part in sums[1:]:
        below = part.cumsum(3, dtype=torch.int32).float().mul_(UNIT)
        every = below[..., -1:]
        together.addcmul_(every, every)
        above = every - below
        left.addcmul_(below, below)
        right.addcmul_(above, above)
    gain = left.div_(rows.add_(PRIOR_ROWS)).add_(right.div_(others.add_(PRIOR_ROWS)))
    return gain.sub_(together / (whole + PRIOR_ROWS)).mul_(is_large).clamp_min_(0.0)


def _combined(gradient: Tensor, most: int, turn: int) -> Tensor:
    """The gradients (T, G, N) that choose the splits, at most so many, of those of the classes (T, C, N)."""
    classes = gradient.shape[1]
    if classes == 2:
        return gradient[:, 1:]
    if classes <= most:
        return gradient
    counter = torch.arange(most * classes, device=gradient.device)
    signs = (uniform(counter, turn) < 0.5).float().mul_(2).sub_(1).view(most, classes)
    return (signs @ gradient) / 2


def _steps(leaf: Tensor, gradient: Tensor, curvature: Tensor, leaves: int) -> Tensor:
    """What a tree adds to the logits (T, C, N), by the leaf (T, N), gradients and curvatures (T, C, N) of rows."""
    sets, classes, _ = gradient.shape
    place = leaf.unsqueeze(1).expand(gradient.shape)
    sums = []
    for part in (gradient, curvature):
        whole = torch.zeros(sets, classes, leaves, dtype=torch.int64, device=leaf.device)
        sums.append(whole.scatter_add_(2, place, (part / UNIT).round_().long()).float().mul_(UNIT))
    share = (classes - 1) / classes
    return (share * sums[0] / (sums[1] + PRIOR_ROWS)).gather(2, place)
