"""Partial information decomposition of embeddings by held-out posteriors.

The posterior p(y | x_m) is all that a modality knows about the label. Readouts of each modality, and of both together,
are fitted on some folds of the rows and read on the others; their pooled, calibrated posteriors q give

    I(X; Y) >= H(Y) + E[log2 q(y | x)]        for any q that was fitted on other rows,

the union information follows from the posteriors alone (`ecsfusion.pid.union`), and the atoms are differences of these.
Readouts fitted on half of the rows know less than those fitted on nearly all of them. How much less gives the limit for
many rows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from ecsfusion_kernels import row_information
from ecsfusion_kernels.precision import in_full_precision
from torch import Tensor

from ecsfusion.pid.binned import binned_columns
from ecsfusion.pid.boosted_trees import tree_readouts
from ecsfusion.pid.by_row import squared_sums
from ecsfusion.pid.canonical import canonical_coordinates
from ecsfusion.pid.cells import cell_readouts
from ecsfusion.pid.column_pairs import pair_readouts
from ecsfusion.pid.confusions import confusion_readouts
from ecsfusion.pid.copies import moved
from ecsfusion.pid.decomposition import LN2, entropy
from ecsfusion.pid.folds import Folds, keys_of_rows, make_folds
from ecsfusion.pid.landmarks import landmark_readouts
from ecsfusion.pid.lifting import lifted
from ecsfusion.pid.linear import (
    LinearReadouts,
    LinearSums,
    TrainingSets,
    are_dependent,
    fold_products,
    joint_discriminant,
    linear_readouts,
    standardize,
    tells_more,
    told_by_half,
)
from ecsfusion.pid.mixtures import SOURCE_CLUSTERS, Search, cross_searches, inner_searches, table_readouts
from ecsfusion.pid.pooling import Pool, pool, pool_with_part
from ecsfusion.pid.quadratic import classes_differ, has_few_columns, quadratic_readouts
from ecsfusion.pid.ranks import rank_readouts
from ecsfusion.pid.shape import Shape, shape_of
from ecsfusion.pid.span import in_their_span
from ecsfusion.pid.trial import MIN_ROWS
from ecsfusion.pid.union import Union, matched, union_information

T = TypeVar("T")

NUM_FOLDS = 6
MAX_GROWTH = 2.0
"""The limit for many rows is at most what so many times the separation of the held-out posteriors would know."""
COLUMN_NOISE = 6.5
"""The square of the noise of readouts per column and row that they are fitted on, in units of the separation. Of 300
problems of Gaussian classes with 500 rows it was mostly 0.5 to 3, and with covariances that must be learned up to 6."""
MAX_ITERATIONS = 60
"""Of the solver. The end of its certificate that is the value is exact to 1e-3 of it long before the other end, which
counts in the interval, comes close: in twice as many it comes hundredths of a bit closer."""
FITTED_WEIGHTS = 3
"""The weights that pooling fits in effect; of more readouts some get none."""
MAX_TABLES = 10
"""More than any side or pair of sides has."""
MIN_TOLD = 4.0
"""Log-likelihood, in nats, that tables must add by halves to be made for the folds,"""
MIN_TOLD_PER_ROW = 1e-3
"""and per row, where many rows resolve what is not worth it."""
TINY = 1e-12
ROWS_PER_COLUMN = 8
"""With so many rows per column the covariance of both sides together needs little shrinkage,"""
SMALL_SHRINKAGE = 1e-3
"""at most this share of the identity;"""
LARGEST_SHRINKAGE = 0.2
"""and with fewer at most this."""
MOST_COLUMNS_OF_BOTH = 64
"""With more columns both sides together are read by lines, along a few directions, and by trees alone."""


class Side(NamedTuple):
    """One side of a decomposition: its columns, its readouts, and its held-out posteriors."""

    sums: LinearSums
    linear: LinearReadouts
    log_posterior: Tensor
    """(2, N, C) float32: of readouts fitted on all but one fold, and on half of the folds."""
    by_lines: Tensor
    """(N, C) float32: the first by the linear readouts alone."""
    without_rules: Tensor
    """(N, C) float32: the first by all readouts but trees; by all where there are no trees."""
    shape: Shape | None
    """Of its rows; None where hardly anything of the label is left to tell."""
    is_tried: bool
    """Whether there are rows enough, of enough sources, to try further readouts."""
    has_rules: bool
    """Whether trees of thresholds tell what no other readout does."""
    without_lapses: Tensor | None
    """(2, N, C) float32: the log posteriors of rows whose label is no lapse; None where there are none."""


class Pair(NamedTuple):
    """Held-out posteriors of both sides together."""

    log_posterior: Tensor
    """(2, N, C) float32, as in `Side`."""
    by_lines: Tensor
    """(N, C) float32, as in `Side`."""
    without_rules: Tensor
    """(N, C) float32, as in `Side`."""
    product: Tensor
    """(N, C) float32: the product of the posteriors of the sides, as if they were independent given the label."""
    has_rules: bool
    """As in `Side`."""


class Known(NamedTuple):
    """Information of P pairs of sides about the label, in bits, float64; [0] by all but one fold, [1] by half.

    What is known of all rows together is on the host.
    """

    first: Tensor
    """(2, P): I of the first side."""
    second: Tensor
    """(2, P): I of the second side."""
    joint: Tensor
    """(2, P): I of both together."""
    union: Tensor
    """(2, P): union information."""
    lost: Tensor
    """(2, P): the width in which the union information is certified."""
    product: Tensor
    """(P,): what the product of the posteriors of both sides knows."""
    beyond_lines: Tensor
    """(3, P): what the first, the second and both sides know beyond their linear readouts."""
    rules: Tensor
    """(3, P): what trees of thresholds tell of the first, the second and both sides that no other readout does."""
    unresolved: Tensor
    """(P,): how far what clusters lose leaves the union information open."""
    displaced: Tensor
    """(P,): how far the labels disagree with the posteriors about the union information and not about the sides."""


class Posteriors(NamedTuple):
    """What is known, and how much it varies from row to row."""

    known: Known
    squares: Tensor
    """(12, P) float64, or (4, P) where nothing grows, see `squared_sums`."""
    num_rows: int
    """N."""
    num_groups: Tensor
    """() int64: the groups of rows."""
    prior: Tensor
    """(C,) float64: the share of each class."""
    worth: Tensor
    """(): the independent rows that they are worth, over which noise is averaged, see `Folds`."""
    sides: Sequence[tuple[Sequence[str], Sequence[str]]]
    """The modalities of both sides of each pair."""
    columns: Tensor | None = None
    """(3, P) float64, on the host: the columns of the first, the second and both sides; None of heads, which do not
    learn from these rows."""
    unseen: Tensor | None = None
    """(C,) float64: the part of H(Y) of each class whose rows were read without another row of it; None of heads."""


@in_full_precision
def held_out_information(
    embeddings: Mapping[str, Tensor],
    labels: Tensor,
    num_classes: int,
    sides: Sequence[tuple[Sequence[str], Sequence[str]]],
    groups: Tensor | None,
    num_clusters: int,
    tolerance: float,
    random_seed: int,
) -> Posteriors:
    """What both sides of each pair know about the label, by readouts that are judged on rows they were not fitted on.

    Args:
        embeddings: (N, D_m) by modality, floating point.
        labels: (N,) int64.
        num_classes: C.
        sides: pairs of sides; a side is some modalities.
        groups: (N,) int64 or None, see `make_folds`.
        num_clusters: clusters of posteriors in the union information.
        tolerance: of the solver, in bits.
        random_seed: of folds and clusters.
    """
    folds, prior, read = read_sides(embeddings, labels, num_classes, sides, groups, random_seed)
    log_prior = prior.clamp_min(TINY).log().float()

    def measured(first: Side, second: Side, both: Pair) -> tuple[Known, Tensor]:
        return known_of(first, second, both, prior, num_clusters, tolerance, random_seed)

    values, rows = zip(*of_pairs(measured, sides, read, log_prior, random_seed), strict=True)
    of_pair = ("product", "unresolved", "displaced")
    stacked = {
        name: torch.stack([getattr(v, name) for v in values], 0 if name in of_pair else 1)
        for name in Known._fields
    }
    by_group = folds.group.argsort(stable=True)
    counts = next(iter(read.values())).sums.sets.folds().counts
    width = {name: rows.shape[1] for name, rows in embeddings.items()}
    columns = [
        [sum(width[name] for name in side) for side in (*pair, [*pair[0], *pair[1]])] for pair in sides
    ]
    return Posteriors(
        Known(**stacked),
        squared_sums(torch.stack(rows, 2)[..., by_group], folds.group[by_group], groups is not None),
        len(labels),
        folds.num_groups,
        prior,
        folds.worth,
        sides,
        torch.tensor(columns, dtype=torch.float64, device="cpu").T,
        torch.where((counts == 0).any(0), -prior * log_prior.double() / LN2, 0.0),
    )


def read_sides(
    embeddings: Mapping[str, Tensor],
    labels: Tensor,
    num_classes: int,
    sides: Sequence[tuple[Sequence[str], Sequence[str]]],
    groups: Tensor | None,
    random_seed: int,
) -> tuple[Folds, Tensor, dict[tuple[str, ...], Side]]:
    """The folds, the share (C,) float64 of each class, and each side by its modalities, read once.

    The arguments are those of `held_out_information`. The rows of the sides are in the order of the folds.
    """
    keys = keys_of_rows(list(embeddings.values()), labels, random_seed)
    folds = make_folds(keys, labels, groups, NUM_FOLDS)
    # So that the rows of a fold and class are a slice.
    place = (folds.fold * num_classes + labels[folds.order]).argsort(stable=True)
    folds = folds._replace(order=folds.order[place], group=folds.group[place], fold=folds.fold[place])
    sets = TrainingSets.make(folds.fold, NUM_FOLDS, labels[folds.order], num_classes)
    prior = sets.one_hot.double().mean(0)
    log_prior = prior.clamp_min(TINY).log().float()
    columns = {
        name: in_their_span(lifted(standardize(rows, folds.order))) for name, rows in embeddings.items()
    }
    is_tried = (len(labels) if groups is None else float(folds.worth)) >= MIN_ROWS
    read: dict[tuple[str, ...], Side] = {}
    every = [tuple(side) for pair in sides for side in pair]
    singles = [(name,) for side in every for name in side]
    for side in dict.fromkeys([*singles, *every]):
        # Of one modality its own rows, not a copy of them.
        together = [columns[name] for name in side]
        rows = together[0] if len(side) == 1 else in_their_span(torch.cat(together, 1))
        members = [read[(name,)] for name in side] if len(side) > 1 else []
        read[side] = read_side(rows, sets, log_prior, random_seed, members, is_tried)
    return folds, prior, read


def of_pairs(
    measured: Callable[[Side, Side, Pair], T],
    sides: Sequence[tuple[Sequence[str], Sequence[str]]],
    read: dict[tuple[str, ...], Side],
    log_prior: Tensor,
    random_seed: int,
) -> list[T]:
    """What is measured of each pair of sides, which is read here.

    Sides of a pair that has rules are read with trees, too: or what one tells alone by rules, which its own trial has
    not shown, would seem to be synergy. Then so they are in all pairs, whatever the order of these.

    Args:
        measured: of both sides and of them together.
        sides: pairs of sides; a side is some modalities.
        read: each side by its modalities. Those that are read with trees, too, are replaced.
        log_prior: (C,).
        random_seed: of clusters.
    """

    def one(names: tuple[Sequence[str], Sequence[str]]) -> tuple[bool, T]:
        first, second = (read[tuple(side)] for side in names)
        both = read_pair(first, second, log_prior, random_seed)
        return both.has_rules, measured(first, second, both)

    found = [one(names) for names in sides]
    before = dict(read)
    with_trees = [
        tuple(side) for names, (has_rules, _) in zip(sides, found, strict=True) for side in names if has_rules
    ]
    read.update({side: with_rules(read[side], log_prior) for side in dict.fromkeys(with_trees)})
    for side in read:
        members = [read[(name,)] for name in side]
        if len(members) > 1 and any(read[(name,)] is not before[(name,)] for name in side):
            read[side] = not_below_members(read[side], members)
    is_new = [any(read[tuple(side)] is not before[tuple(side)] for side in names) for names in sides]
    return [
        one(names)[1] if again else value
        for names, (_, value), again in zip(sides, found, is_new, strict=True)
    ]


def read_side(
    rows: Tensor,
    sets: TrainingSets,
    log_prior: Tensor,
    random_seed: int,
    members: Sequence[Side] = (),
    is_tried: bool = True,
) -> Side:
    """Fit the readouts of standardized rows (N, D) and pool them.

    Args:
        rows: of the side.
        sets: all training sets.
        log_prior: (C,).
        random_seed: of the clusters.
        members: the sides of its modalities, if it has several. Their posteriors are pooled, too, and where the pool
            knows less than one of them, that is its posterior: columns of noise must not hide what a member knows.
        is_tried: whether readouts of ranks, of covariances by class, of landmarks, of pairs of columns and by trees are
            tried.
    """
    sums = LinearSums.make(rows, sets)
    linear = linear_readouts(sums, log_prior)
    lines = [*linear.logits, *(side.log_posterior - log_prior for side in members)]
    if is_tried and not linear.tells_all:
        lines += confusion_readouts(linear.logits[0], sets, lines, log_prior)
    bins = None if linear.tells_all else binned_columns(sums)
    coarse = [] if bins is None else linear_readouts(LinearSums.make(bins, sets), log_prior).logits
    rules: list[Tensor] = []
    if is_tried and not linear.tells_all:
        lines += rank_readouts(rows, sets, lines + coarse, log_prior)
        lines += quadratic_readouts(sums, lines + coarse, log_prior, random_seed)
        coarse += landmark_readouts(rows, sets, lines + coarse, log_prior, random_seed)
        coarse += pair_readouts(rows, sets, lines + coarse, log_prior)
        rules = tree_readouts([rows], sets, lines + coarse, log_prior)
    searches: tuple[list[Search], list[Search]] = ([], [])
    shape = None if linear.tells_all else shape_of(rows, sets.one_hot)
    if shape is not None:
        number = sets.num_folds
        searches = (
            inner_searches(sums.folds(), linear.factor[:number], shape),
            inner_searches(sums.halves(), linear.factor[number:], shape),
        )
    pooled = _pooled(lines, coarse, rules, searches, sets, log_prior, random_seed)
    side = Side(sums, linear, *pooled[:3], shape, is_tried, bool(rules), pooled.without_lapses)
    return not_below_members(side, members) if members else side


def not_below_members(side: Side, members: Sequence[Side]) -> Side:
    """The side with the posterior of that of its members that knows most, where this knows more than its own."""
    every = [side, *members]
    best = int(best_of(torch.stack([part.log_posterior[0] for part in every]), side.sums.sets.labels))
    return side._replace(
        log_posterior=every[best].log_posterior,
        by_lines=every[best].by_lines,
        without_rules=every[best].without_rules,
        has_rules=any(part.has_rules for part in every),
        without_lapses=every[best].without_lapses,
    )


def with_rules(side: Side, log_prior: Tensor) -> Side:
    """The side with trees, without a trial, where these tell more by halves; else as it is."""
    if side.has_rules or not side.is_tried or side.shape is None:
        return side
    sets, known = side.sums.sets, side.log_posterior - log_prior
    rules = tree_readouts([side.sums.rows], sets, [known], log_prior, with_trial=False)
    if not rules:
        return side
    pooled = pool(torch.stack([known, *rules], 1), sets.labels, log_prior).log_posterior
    return side._replace(log_posterior=without_unseen(pooled, sets.unseen, log_prior), has_rules=True)


def best_of(log_posteriors: Tensor, labels: Tensor) -> Tensor:
    """Which of B log posteriors (B, N, C) tells most about the labels (N,); () int64, the first of equals."""
    place = labels.expand(len(log_posteriors), -1).unsqueeze(2)
    return log_posteriors.gather(2, place).double().sum((1, 2)).argmax()


def read_pair(first: Side, second: Side, log_prior: Tensor, random_seed: int) -> Pair:
    """Fit the readouts of both sides together and pool them with those of the sides."""
    sets = first.sums.sets
    alone = [side.log_posterior - log_prior for side in (first, second)]
    linear = (first.linear, second.linear)
    # Where a label is wrong both sides are: what they say together of the others is not what each says with lapses.
    kept = [side.without_lapses - log_prior for side in (first, second) if side.without_lapses is not None]
    lines, coarse = [*alone, *kept], []
    rules: list[Tensor] = []
    shapes = [side.shape for side in (first, second) if side.shape is not None]
    is_told = len(shapes) < 2
    is_tried = first.is_tried and not is_told
    columns = first.sums.rows.shape[1] + second.sums.rows.shape[1]
    has_many = columns > MOST_COLUMNS_OF_BOTH
    are_lines = sets.cells is None or (not is_told and are_dependent(first.sums, second.sums, linear))
    if are_lines or (is_tried and has_many):
        products = fold_products(first.sums.rows, second.sums.rows, sets)
    number = len(lines)
    if are_lines:
        lines += _lines_of_both(first, second, products, lines, log_prior)
    if is_tried:
        # Without lines of both, noise of the sides is independent, and their logits add up.
        of_both = lines[number] if len(lines) > number else linear[0].logits[0] + linear[1].logits[0]
        lines += confusion_readouts(of_both, sets, lines, log_prior)
        both = [side.sums.rows for side in (first, second)]
        few = canonical_coordinates(first.sums, second.sums, products) if has_many else torch.cat(both, 1)
        if few is not None:
            if has_few_columns(few.shape[1], sets):
                lines += quadratic_readouts(LinearSums.make(few, sets), lines, log_prior, random_seed)
            coarse += landmark_readouts(few, sets, lines, log_prior, random_seed)
            coarse += pair_readouts(few, sets, lines + coarse, log_prior)
        is_readable = has_many and has_few_columns(columns, sets)
        if is_readable and classes_differ(first.sums, second.sums, random_seed):
            sums = LinearSums.make(torch.cat(both, 1), sets)
            lines += quadratic_readouts(sums, lines, log_prior, random_seed)
        coarse += cell_readouts(both[0], both[1], sets, lines + coarse, log_prior)
        rules = tree_readouts(both, sets, lines + coarse, log_prior)
    folds = slice(0, sets.num_folds), slice(sets.num_folds, None)
    of_sets = (first.sums.folds(), second.sums.folds()), (first.sums.halves(), second.sums.halves())
    searches = [
        []
        if is_told
        else cross_searches(*sides, (linear[0].factor[part], linear[1].factor[part]), (shapes[0], shapes[1]))
        for sides, part in zip(of_sets, folds, strict=True)
    ]
    if is_tried and has_many and few is not None:
        # What the sides have in common may be a kind of thing, and no Gaussian.
        points = few.unsqueeze(1).chunk(2, 2)
        for some in searches:
            some.append(Search(lambda: points, (SOURCE_CLUSTERS,)))
    pooled = _pooled(lines, coarse, rules, searches, sets, log_prior, random_seed, bool(kept))
    if len(lines) == len(alone):
        return Pair(*pooled[:3], pooled.by_lines, bool(rules))
    product = pool(torch.stack(alone, 1)[:1], sets.labels, log_prior).log_posterior[0]
    product = without_unseen(product, sets.unseen[0], log_prior)
    return Pair(*pooled[:3], product, bool(rules))


def _lines_of_both(
    first: Side, second: Side, products: Tensor, known: list[Tensor], log_prior: Tensor
) -> list[Tensor]:
    """Held-out logits (2, N, C) of the linear readouts of both sides together; where they tell anything by halves."""
    sums, number = (first.sums, second.sums), first.sums.sets.num_folds
    labels = first.sums.sets.labels
    shrinkage = _joint_shrinkage(first, second)
    half = joint_discriminant(sums[0].halves(), sums[1].halves(), *shrinkage, products[number:])
    lines = []
    by_half = [part[1] for part in known]
    if tells_more(by_half, [half[0]], labels, log_prior):
        fold = joint_discriminant(sums[0].folds(), sums[1].folds(), *shrinkage, products[:number])
        lines.append(torch.cat([fold, half]))
    factors = [first.linear.factor, second.linear.factor]
    return lines + told_by_half(list(sums), [factors], [*known, *lines], log_prior)


class Pooled(NamedTuple):
    """Log posteriors of pools."""

    log_posterior: Tensor
    """(2, N, C) float32, as in `Side`, and so are the others."""
    by_lines: Tensor
    without_rules: Tensor
    without_lapses: Tensor | None


def _pooled(
    lines: list[Tensor],
    coarse: list[Tensor],
    rules: list[Tensor],
    searches: Sequence[Sequence[Search]],
    sets: TrainingSets,
    log_prior: Tensor,
    random_seed: int,
    has_lapses: bool = False,
) -> Pooled:
    """The pools of all readouts by folds and by halves, and of lines and all but trees by folds.

    Tables that tell nothing by halves are not made for the folds. Trees that do so by luck hide no table: those of the
    folds may have none.

    Args:
        lines: (2, N, C) each, logits of the linear and quadratic readouts, by folds and by halves.
        coarse: the same of readouts of bins, landmarks and pairs of columns.
        rules: the same of trees.
        searches: of tables by folds, and by halves.
        sets: all training sets.
        log_prior: (C,).
        random_seed: of the clusters.
        has_lapses: as in `pool`.
    """
    fold_searches, half_searches = searches
    by_folds, by_halves = torch.stack(lines + coarse + rules, 1)
    number = len(lines + coarse)
    tables, places = table_readouts(
        half_searches, sets.halves(), log_prior, random_seed, known=by_halves[:number]
    )
    half = _pools(by_halves[:number], tables, sets, log_prior, has_lapses)
    told = half.log_posterior.gather(2, sets.labels.expand(2, -1).unsqueeze(2)).sum((1, 2))
    least = max(MIN_TOLD, MIN_TOLD_PER_ROW * len(sets.labels))
    wanted = torch.zeros(MAX_TABLES, dtype=torch.bool, device=by_halves.device)
    wanted[places] = (half.weights[0, number:] > 0) & (told[0] - told[1] > least)
    if rules:
        half = _pools(by_halves, tables, sets, log_prior, has_lapses)
    tables, _ = table_readouts(fold_searches, sets.folds(), log_prior, random_seed, wanted)
    fold = _pools(by_folds, tables, sets, log_prior, has_lapses)
    by_lines = fold.log_posterior[1]
    if coarse or rules:
        by_lines = pool(
            by_folds[None, : len(lines)], sets.labels, log_prior, has_lapses=has_lapses
        ).log_posterior[0]
    without_rules = fold.log_posterior[0]
    if rules:
        others = torch.cat([by_folds[:number], *(table.unsqueeze(0) for table in tables)])
        without_rules = pool(
            others.unsqueeze(0), sets.labels, log_prior, has_lapses=has_lapses
        ).log_posterior[0]
    # Both by the same kinds of readouts, or their difference would not be that of the rows.
    chosen = int(~wanted.any())
    by_half = half.log_posterior[chosen]
    pooled = torch.stack([fold.log_posterior[0], by_half, by_lines, without_rules])
    pooled = without_unseen(pooled, sets.unseen[[0, 1, 0, 0]], log_prior)
    kept = None
    if fold.without_lapses is not None:
        kept_by_half = by_half if half.without_lapses is None else half.without_lapses[chosen]
        kept = without_unseen(torch.stack([fold.without_lapses[0], kept_by_half]), sets.unseen[:2], log_prior)
    return Pooled(pooled[:2], pooled[2], pooled[3], kept)


def without_unseen(log_posterior: Tensor, unseen: Tensor, log_prior: Tensor) -> Tensor:
    """Log posteriors (..., C) in which a class that no row of the training set has is as likely as in the prior.

    Nothing can be known about it. A readout that never names it would name it by that: the fold of a row would tell
    its class.

    Args:
        log_posterior: of readouts.
        unseen: (..., C) bool: such classes.
        log_prior: (C,).
    """
    if not bool(unseen.any()):
        return log_posterior
    prior = log_prior.to(log_posterior.dtype).expand_as(log_posterior)
    share = torch.logsumexp(prior.masked_fill(unseen, -torch.inf), -1, keepdim=True)
    seen = torch.log_softmax(log_posterior.masked_fill(unseen, -torch.inf), -1) + share
    return torch.where(unseen, prior, seen)


def _pools(
    lines: Tensor, tables: Sequence[Tensor], sets: TrainingSets, log_prior: Tensor, has_lapses: bool
) -> Pool:
    """The pool of linear readouts (K, N, C) and tables (N, C), and that of the linear ones alone."""
    if not tables:
        one = pool(lines.unsqueeze(0), sets.labels, log_prior, has_lapses=has_lapses)
        kept = one.without_lapses
        return Pool(
            one.log_posterior.expand(2, -1, -1),
            one.weights.expand(2, -1),
            None if kept is None else kept.expand(2, -1, -1),
        )
    every = torch.cat([lines, *(table.unsqueeze(0) for table in tables)])
    return pool_with_part(every, len(lines), sets.labels, log_prior, has_lapses=has_lapses)


def _joint_shrinkage(first: Side, second: Side) -> tuple[Tensor, Tensor]:
    """The shrinkage of both sides in the discriminant analysis of both together.

    With the identity as its covariance a side would be taken to be independent of the other.
    """
    rows = len(first.sums.rows)
    width = first.sums.rows.shape[1] + second.sums.rows.shape[1]
    largest = SMALL_SHRINKAGE if rows >= ROWS_PER_COLUMN * width else LARGEST_SHRINKAGE
    return first.linear.shrinkage.clamp_max(largest), second.linear.shrinkage.clamp_max(largest)


def known_of(
    first: Side,
    second: Side,
    pair: Pair,
    prior: Tensor,
    num_clusters: int,
    tolerance: float,
    random_seed: int,
) -> tuple[Known, Tensor]:
    """What the posteriors of two sides know, and by row (4, 2, N); the tensors have no dimension P."""
    labels = first.sums.sets.labels
    log_prior = prior.clamp_min(TINY).log()

    def bits(log_posterior: Tensor) -> Tensor:
        """The information (..., N) that each row has about its own label."""
        place = labels.expand(log_posterior.shape[:-1]).unsqueeze(-1)
        return (log_posterior.gather(-1, place).squeeze(-1).double() - log_prior[labels]) / LN2

    rows = torch.stack([bits(part.log_posterior) for part in (first, second, pair)])
    # Every weight that was fitted adds about half a unit to the log-likelihood, however little it tells.
    optimism = 0.5 * FITTED_WEIGHTS / (len(labels) * LN2)
    posteriors = torch.cat([matched(side.log_posterior.double().exp(), prior) for side in (first, second)])
    _, unsure, roots = row_information(posteriors, labels, log_prior)
    union = union_information(
        posteriors, unsure, roots, labels, num_clusters, tolerance, MAX_ITERATIONS, random_seed
    )
    every = (first, second, pair)
    by_lines = torch.stack([bits(part.by_lines).mean() for part in every])
    without_rules = torch.stack([bits(part.without_rules).mean() for part in every])
    known, by_lines, without_rules, product, label_bits = moved(
        [rows.mean(-1), by_lines, without_rules, bits(pair.product).mean(), entropy(prior, 1)], "cpu"
    )
    single = (known - optimism).clamp_min(0.0)
    change = change_by_labels(union, known[:2], label_bits)
    found = Known(
        first=single[0],
        second=single[1],
        joint=single[2],
        union=union.value + change,
        lost=union.high - union.low,
        product=product,
        beyond_lines=(known[:, 0] - by_lines).clamp_min(0.0),
        rules=(known[:, 0] - without_rules).clamp_min(0.0),
        unresolved=union.unresolved[0],
        displaced=(union.change - change).abs()[0],
    )
    return found, torch.cat([rows, union.pointwise.unsqueeze(0)])


def change_by_labels(union: Union, told: Tensor, label_bits: Tensor) -> Tensor:
    """How far the labels in place of the posteriors move the union information (B,): no more than they move the sides.

    A weight is fitted to the labels, so that a side expects to tell what it does tell. Which classes it takes for one
    another no weight corrects: readouts of a few rows misplace the classes, and those of two sides do so independently,
    as if each knew what the other does not. The labels would then raise the union information, which grows with any
    disagreement, and leave the sides as they are, and the redundancy would pay for it.

    Args:
        union: of B pairs of posteriors.
        told: (2, B), what each side tells about the labels, in bits.
        label_bits: () H(Y).
    """
    expected = label_bits - union.unsure.view(2, -1)
    most = (told - expected).abs().sum(0)
    return torch.minimum(torch.maximum(union.change, -most), most)


def limit(
    folds: Tensor, halves: Tensor, label_bits: Tensor, error: Tensor | float = 0.0, num_folds: int = NUM_FOLDS
) -> Tensor:
    """The information that readouts fitted on very many rows would have.

    What readouts miss is noise in their weights, which falls with the number n of rows they are fitted on: the squared
    separation d of the classes, in units of the noise, follows 1/d = 1/d_limit + a/n. Bits and separation are taken to
    be related by I = H(Y) (1 - exp(-d)).

    Args:
        folds: information by readouts fitted on all but one fold, in bits.
        halves: the same of readouts fitted on half of the rows.
        label_bits: H(Y).
        error: the standard error of `folds` - `halves`. A growth that is not clearly larger is not continued.
        num_folds: the number of folds.
    """
    growth = (folds - halves).clamp_min(0.0)
    halves = folds - growth * (1 - (error / growth.clamp_min(1e-12)) ** 2).clamp_min(0.0)
    return _continued(folds, halves, label_bits, MAX_GROWTH, num_folds)


def largest_limit(
    folds: Tensor,
    halves: Tensor,
    label_bits: Tensor,
    error: Tensor,
    columns_per_row: Tensor,
    num_folds: int = NUM_FOLDS,
) -> Tensor:
    """The most that readouts fitted on very many rows may know: by how it grows, and by the columns.

    Weights that are off by noise of the square q, in units of the distance of the classes, leave of the squared
    separation s of the classes d = s / (1 + q / s), and q is about the columns over the rows that they are fitted on.

    Args:
        folds: as in `limit`.
        halves: as in `limit`.
        label_bits: as in `limit`.
        error: the growth from `halves` to `folds` may be larger by so much.
        columns_per_row: the number of columns over that of independent rows.
        num_folds: as in `limit`.
    """
    growth = (folds - halves).clamp_min(0.0) + error
    by_growth = _continued(folds, folds - growth, label_bits, math.inf, num_folds)
    return torch.minimum(by_growth, _by_columns(folds, label_bits, columns_per_row, num_folds))


def unseen_limit(noise: Tensor, label_bits: Tensor, columns_per_row: Tensor) -> Tensor:
    """What may be there where readouts tell no more than noise, because the rows are fewer than the columns.

    Of more rows than columns it falls with the square of the columns per row: what is there is then rarely spread
    evenly over all columns, as it is taken to be.

    Args:
        noise: () the bits that readouts of pure noise may tell.
        label_bits: H(Y).
        columns_per_row: as in `largest_limit`.
    """
    told = noise * columns_per_row.square().clamp_max(1.0)
    return _by_columns(told, label_bits, columns_per_row, NUM_FOLDS)


def _by_columns(folds: Tensor, label_bits: Tensor, columns_per_row: Tensor, num_folds: int) -> Tensor:
    """The information that readouts would have without the noise of their weights."""
    noise = COLUMN_NOISE * columns_per_row * num_folds / (num_folds - 1)
    found = _separation(folds, label_bits)
    return label_bits * -torch.expm1(-(found + (found**2 + 4 * noise * found).sqrt()) / 2)


def _continued(
    folds: Tensor, halves: Tensor, label_bits: Tensor, most_growth: float, num_folds: int
) -> Tensor:
    """The information (P,) to which that of `halves` and `folds` grows, the separation at most so many times."""
    inverse = [1 / _separation(bits, label_bits) for bits in (folds, halves)]
    near, far = num_folds / (num_folds - 1), 2.0
    slope = near / (far - near)
    reached = torch.maximum(inverse[0] - slope * (inverse[1] - inverse[0]), inverse[0] / most_growth)
    found = label_bits * -torch.expm1(-1 / reached)
    return torch.where((halves < folds) & (folds > 1e-6), torch.maximum(found, folds), folds)


def _separation(bits: Tensor, label_bits: Tensor) -> Tensor:
    """The squared separation of classes in units of noise, as `limit` takes it."""
    return -torch.log1p(-(bits / label_bits.clamp_min(1e-12)).clamp(1e-9, 0.9999))
