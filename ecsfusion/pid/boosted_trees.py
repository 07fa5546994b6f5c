"""Readouts by boosted trees of thresholds: rules of several columns, which no line, direction or pair of them shows.

Gradient boosting of the log-loss (Friedman 2001) with histograms of binned columns. One tree a round splits all classes
at once: its splits serve the squared sums of their gradients, of many classes of a few random combinations of these
(SketchBoost, Iosipoi and Vakhrushev 2022), and its leaves hold a Newton step of each class. The trees of all training
sets grow side by side. Sums are of integers, so that every device and order of rows gives the same trees.
"""

from typing import NamedTuple

import torch
from ecsfusion_kernels import uniform
from torch import Tensor

from ecsfusion.pid.binned import sorted_columns
from ecsfusion.pid.linear import TrainingSets, tells_more
from ecsfusion.pid.trial import is_worth, some_rows

MAX_COLUMNS = 128
"""With more columns no tree is grown: no single column of an embedding has a meaning."""
ROUNDS = 24
DEPTH = 6
STEP = 0.3
FINE_BINS = 256
"""Of each column, with about equally many values."""
JOINED = 8
"""Neighbouring bins that are joined for a tree, each time others, so that trees together have fine thresholds."""
MAX_SPLIT_COLUMNS = 32
"""Of more columns, those whose best threshold tells most in the first trees are split further, by training set."""
SCREENING_ROUNDS = 1
MAX_ROWS = 4096
"""The most rows that choose the splits of a tree, each time others; all rows fill its leaves."""
MIN_ROWS_OF_LEAF = 5
PRIOR_ROWS = 1.0
"""Rows without a gradient that every leaf starts with."""
MAX_GRADIENTS = 6
"""The most gradients, or combinations of them, that choose the splits."""
MAX_VALUES = 1 << 22
"""The most rows times classes; each is a logit of every training set."""
UNIT = 2.0**-18
"""Of the integers that stand for gradients: sums of `MAX_ROWS` of them stay under 2^31."""
MAX_TRIAL_ROWS = 2048
"""The most rows of a trial,"""
TRIAL_ROUNDS = 4
"""which takes few and whole steps."""
TRIAL_STEP = 1.0


class Trees(NamedTuple):
    """A tree of each of T training sets; level l has 2^l nodes."""

    columns: list[Tensor]
    """(T, 2^l) int64 of each level: the column of a node,"""
    thresholds: list[Tensor]
    """(T, 2^l) int64: and the largest of its fine bins that goes to the first child."""
    leaf: Tensor
    """(T, R) int64: the leaves of the rows that the tree was grown on."""
    told: Tensor
    """(T, D): the most that one threshold of each column tells at a node."""


def tree_readouts(rows: Tensor, sets: TrainingSets, known: list[Tensor], log_prior: Tensor) -> list[Tensor]:
    """Held-out logits (2, N, C) by boosted trees, or none where by halves they tell nothing new.

    Args:
        rows: (N, D) standardized rows.
        sets: all training sets.
        known: (2, N, C) each, held-out logits of other readouts.
        log_prior: (C,).
    """
    if rows.shape[1] > MAX_COLUMNS or len(rows) * sets.num_classes > MAX_VALUES:
        return []
    bins = fine_bins(rows)
    places = some_rows(len(rows), rows.device, MAX_TRIAL_ROWS)
    own = TrainingSets.make(sets.fold[places], sets.num_folds, sets.labels[places], sets.num_classes).halves()
    trial = boosted(bins[places], own, TRIAL_ROUNDS, TRIAL_STEP)
    if not is_worth([trial], known, sets, places, log_prior):
        return []
    halves = boosted(bins, sets.halves(), ROUNDS, STEP)
    if not tells_more([part[1] for part in known], [halves], sets.labels, log_prior):
        return []
    return [torch.stack([boosted(bins, sets.folds(), ROUNDS, STEP), halves])]


def fine_bins(rows: Tensor) -> Tensor:
    """The bin (N, D) uint8 of each value among those of its column."""
    sample = sorted_columns(rows[some_rows(len(rows), rows.device, MAX_ROWS)].T.contiguous())
    places = torch.linspace(0, sample.shape[1] - 1, FINE_BINS + 1, dtype=torch.float32, device=rows.device)
    edges = sample[:, places.long()[1:-1]].contiguous()
    return torch.searchsorted(edges, rows.T.contiguous()).T.to(torch.uint8).contiguous()


def boosted(bins: Tensor, sets: TrainingSets, rounds: int, step: float) -> Tensor:
    """Logits (N, C) of each row, less the prior, by trees of the training set that reads it.

    Args:
        bins: (N, D) uint8, of `fine_bins`.
        sets: T training sets with one reader of each row.
        rounds: trees of each set.
        step: how much of a Newton step a leaf takes.
    """
    number = len(bins)
    member = sets.member.T.contiguous()
    start = sets.log_prior.unsqueeze(1)
    logits = torch.zeros(len(member), number, sets.num_classes, device=bins.device)
    stride = max(1, -(-number // MAX_ROWS))
    kept = torch.arange(bins.shape[1], device=bins.device).expand(len(member), -1)
    told = torch.zeros(kept.shape, device=bins.device)
    for turn in range(rounds):
        posterior = torch.softmax(logits + start, 2)
        gradient = (sets.one_hot - posterior).mul_(member.unsqueeze(2))
        some = slice(turn % stride, None, stride)
        trees = grow(bins[some], member[:, some], _combined(gradient[:, some], turn), kept, DEPTH, turn)
        leaf = trees.leaf if stride == 1 else route(bins, trees)
        curvature = (posterior * (1 - posterior)).mul_(member.unsqueeze(2))
        logits += step * _steps(leaf, gradient, curvature)
        told += trees.told
        if turn + 1 == SCREENING_ROUNDS and bins.shape[1] > MAX_SPLIT_COLUMNS:
            kept = told.topk(MAX_SPLIT_COLUMNS).indices
            told = told.gather(1, kept)
    reader = sets.reader[0]
    return logits[reader, torch.arange(number, device=bins.device)]


def grow(bins: Tensor, member: Tensor, gradient: Tensor, kept: Tensor, depth: int, turn: int = 0) -> Trees:
    """Grow a tree for each of T training sets.

    Args:
        bins: (R, D) uint8.
        member: (T, R) float32: 1 where a row is in the set.
        gradient: (T, R, G) float32, 0 where a row is not in the set.
        kept: (T, M) int64: the columns that each set splits.
        depth: levels.
        turn: of the joined bins.
    """
    device = bins.device
    sets, columns = kept.shape
    shift = (turn * 5) % JOINED
    joined = (bins.int() + shift) // JOINED
    width = FINE_BINS // JOINED + 1
    own = joined.T[kept].mT if columns < bins.shape[1] else joined.expand(sets, -1, -1)
    cell = own + torch.arange(columns, device=device) * width
    each = torch.arange(sets, device=device).unsqueeze(1)
    values = (torch.cat([gradient, member.unsqueeze(2)], 2) / UNIT).round_().int()
    channels = [part.unsqueeze(2).expand(cell.shape).flatten() for part in values.unbind(2)]
    node = torch.zeros(member.shape, dtype=torch.int64, device=device)
    chosen, thresholds = [], []
    told = torch.zeros(kept.shape, device=device)
    for level in range(depth):
        nodes = 1 << level
        place = ((each * nodes + node) * (columns * width)).unsqueeze(2) + cell
        place = place.flatten()
        size = sets * nodes * columns * width
        sums = torch.stack(
            [
                torch.zeros(size, dtype=torch.int32, device=device).scatter_add_(0, place, channel)
                for channel in channels
            ]
        )
        gain = _gain(sums.view(len(channels), sets, nodes, columns, width))
        told = torch.maximum(told, gain.amax((1, 3)))
        best, where = gain.flatten(2).max(2)
        column = kept.gather(1, where // width)
        # A node that is not worth splitting sends all rows to its first child.
        threshold = (where % width + 1) * JOINED - 1 - shift
        threshold = torch.where(best > 0, threshold, FINE_BINS)
        chosen.append(column)
        thresholds.append(threshold)
        node = _children(bins, node, column, threshold)
    return Trees(chosen, thresholds, node, told)


def route(bins: Tensor, trees: Trees) -> Tensor:
    """The leaf (T, N) int64 of each row of `bins` (N, D) in each tree."""
    node = torch.zeros(len(trees.leaf), len(bins), dtype=torch.int64, device=bins.device)
    for column, threshold in zip(trees.columns, trees.thresholds, strict=True):
        node = _children(bins, node, column, threshold)
    return node


def _children(bins: Tensor, node: Tensor, column: Tensor, threshold: Tensor) -> Tensor:
    """The nodes (T, N) of the next level; `column` and `threshold` are (T, nodes)."""
    rows = torch.arange(len(bins), device=bins.device)
    value = bins.flatten()[rows * bins.shape[1] + column.gather(1, node)]
    return 2 * node + (value > threshold.gather(1, node))


def _gain(sums: Tensor) -> Tensor:
    """What each threshold tells at each node: by how much squared gradients per row grow; (T, nodes, D, bins).

    Args:
        sums: (G + 1, T, nodes, D, bins) int32: of gradients and rows.
    """
    left = sums.cumsum(4, dtype=torch.int32).float().mul_(UNIT)
    whole = left[..., -1:]
    right = whole - left
    rows = torch.stack([left[-1], right[-1]])
    split = left[:-1].square().sum(0) / (rows[0] + PRIOR_ROWS) + right[:-1].square().sum(0) / (rows[1] + PRIOR_ROWS)
    split -= whole[:-1].square().sum(0) / (whole[-1] + PRIOR_ROWS)
    return torch.where(rows.amin(0) >= MIN_ROWS_OF_LEAF, split, 0.0).clamp_min_(0.0)


def _combined(gradient: Tensor, turn: int) -> Tensor:
    """The gradients (T, R, G) that choose the splits, of those of the classes (T, R, C)."""
    classes = gradient.shape[2]
    if classes == 2:
        return gradient[..., 1:]
    if classes <= MAX_GRADIENTS:
        return gradient
    counter = torch.arange(classes * MAX_GRADIENTS, device=gradient.device)
    signs = (uniform(counter, turn) < 0.5).float().mul_(2).sub_(1).view(classes, MAX_GRADIENTS)
    return (gradient @ signs) / MAX_GRADIENTS


def _steps(leaf: Tensor, gradient: Tensor, curvature: Tensor) -> Tensor:
    """What a tree adds to the logits (T, N, C), by leaves (T, N), gradients and curvatures (T, N, C)."""
    sets, _, classes = gradient.shape
    place = leaf + torch.arange(sets, device=leaf.device).unsqueeze(1) * (1 << DEPTH)
    sums = []
    for part in (gradient, curvature):
        whole = torch.zeros(sets << DEPTH, classes, dtype=torch.int64, device=leaf.device)
        whole.index_add_(0, place.flatten(), (part / UNIT).round_().long().flatten(0, 1))
        sums.append(whole.float().mul_(UNIT))
    share = (classes - 1) / classes
    return (share * sums[0] / (sums[1] + PRIOR_ROWS))[place]
