"""Partial information decomposition of embeddings by held-out posteriors.

The posterior p(y | x_m) is all that a modality knows about the label. Readouts of each modality, and of both together,
are fitted on some folds of the rows and read on the others; their pooled, calibrated posteriors q give

    I(X; Y) >= H(Y) + E[log2 q(y | x)]        for any q that was fitted on other rows,

the union information follows from the posteriors alone (`ecsfusion.pid.union`), and the atoms are differences of these.
Readouts fitted on half of the rows know less than those fitted on nearly all of them. How much less gives the limit for
many rows.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ecsfusion.pid.decomposition import LN2, entropy
from ecsfusion.pid.folds import make_folds, row_keys
from ecsfusion.pid.linear import (
    LinearReadouts,
    LinearSums,
    TrainingSets,
    fold_products,
    joint_discriminant,
    linear_readouts,
    logistic_path,
    standardize,
)
from ecsfusion.pid.mixtures import cross_readouts, inner_readouts
from ecsfusion.pid.pooling import pool
from ecsfusion.pid.union import matched, union_information

NUM_FOLDS = 6
MAX_GROWTH = 3.0
"""The limit for many rows is at most what so many times the separation of the held-out posteriors would know."""
MAX_ITERATIONS = 500
ROWS_PER_COLUMN = 8
"""With so many rows per column the covariance of both sides together needs little shrinkage,"""
SMALL_SHRINKAGE = 1e-3
"""at most this share of the identity;"""
LARGEST_SHRINKAGE = 0.2
"""and with fewer at most this."""


class Side(NamedTuple):
    """One side of a decomposition: its columns, its readouts, and its held-out posteriors."""

    sums: LinearSums
    linear: LinearReadouts
    log_posterior: Tensor
    """(2, N, C) float32: by folds and by halves."""
    by_lines: Tensor
    """(N, C) float32: the same by the linear readouts alone, by folds."""
    num_readouts: int


class Known(NamedTuple):
    """Information of P pairs of sides about the label, in bits; [0] from folds, [1] from halves of the rows.

    Each (2, P) float64, with the part of each row, (2, P, N).
    """

    first: Tensor
    second: Tensor
    joint: Tensor
    union: Tensor
    lost: Tensor
    """(2, P): the width in which the union information is certified."""
    product: Tensor
    """What the product of the posteriors of both sides knows."""
    beyond_lines: Tensor
    """(3, P), of folds: what the first, the second and both sides know beyond their linear readouts."""
    rows: Tensor
    """(4, 2, P, N): the part of each row in first, second, joint and union."""


class Posteriors(NamedTuple):
    """Held-out posteriors of pairs of sides."""

    known: Known
    group: Tensor
    """(N,) int64: the group of each row."""
    num_groups: Tensor
    """() int64."""
    label_bits: Tensor
    """() float64: H(Y)."""


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
    folds = make_folds(row_keys(list(embeddings.values()), random_seed), labels, groups, NUM_FOLDS)
    labels = labels[folds.order]
    sets = TrainingSets.make(folds.fold, NUM_FOLDS, labels, num_classes)
    prior = sets.one_hot.double().mean(0)
    log_prior = prior.clamp_min(1e-12).log().float()
    columns = {name: standardize(rows[folds.order]) for name, rows in embeddings.items()}
    read: dict[tuple[str, ...], Side] = {}
    for pair in sides:
        for side in pair:
            if tuple(side) not in read:
                rows = columns[side[0]] if len(side) == 1 else torch.cat([columns[name] for name in side], 1)
                read[tuple(side)] = read_side(rows, sets, log_prior, random_seed)
    values = [
        read_pair(
            read[tuple(a)], read[tuple(b)], prior, folds.num_groups, num_clusters, tolerance, random_seed
        )
        for a, b in sides
    ]
    parts = [torch.stack(part, 1) for part in zip(*(v[:-1] for v in values), strict=True)]
    known = Known(*parts, torch.stack([v.rows for v in values], 2))
    return Posteriors(known, folds.group, folds.num_groups, entropy(prior, 1))


def read_side(rows: Tensor, sets: TrainingSets, log_prior: Tensor, random_seed: int) -> Side:
    """Fit the readouts of standardized rows (N, D) and pool them."""
    sums = LinearSums.make(rows, sets)
    linear = linear_readouts(sums, log_prior)
    inner = inner_readouts(sums, linear.factor, log_prior, random_seed)
    logits = [*linear.logits, *inner]
    both = pooled(logits, sets.labels, log_prior)
    by_lines = (
        pool([part[0] for part in linear.logits], sets.labels, log_prior).log_posterior if inner else both[0]
    )
    return Side(sums, linear, both, by_lines, len(logits))


def pooled(logits: Sequence[Tensor], labels: Tensor, log_prior: Tensor) -> Tensor:
    """Log posteriors (2, N, C) of readouts (2, N, C), pooled by folds and by halves."""
    return torch.stack(
        [pool([part[h] for part in logits], labels, log_prior).log_posterior for h in range(2)]
    )


def read_pair(
    first: Side,
    second: Side,
    prior: Tensor,
    num_groups: Tensor,
    num_clusters: int,
    tolerance: float,
    random_seed: int,
) -> Known:
    """What two sides know; the tensors have no dimension P."""
    sets = first.sums.sets
    labels, log_prior = sets.labels, prior.clamp_min(1e-12).log().float()
    alone = [side.log_posterior - log_prior for side in (first, second)]
    product = pooled(alone, labels, log_prior)
    alone_factors = (first.linear.factor, second.linear.factor)
    # With the identity as its covariance a side would be taken to be independent of the other.
    width = first.sums.rows.shape[1] + second.sums.rows.shape[1]
    largest = SMALL_SHRINKAGE if len(labels) >= ROWS_PER_COLUMN * width else LARGEST_SHRINKAGE
    shrinkage = tuple(side.linear.shrinkage.clamp_max(largest) for side in (first, second))
    factors = tuple(side.sums.factor(share) for side, share in zip((first, second), shrinkage, strict=True))
    cross = fold_products(first.sums.rows, second.sums.rows, sets)
    cross = cross / sets.sizes[:, None, None].clamp_min(1)
    cross = cross - first.sums.center[:, :, None] * second.sums.center[:, None, :]
    weighted = first.sums.deviation * first.sums.share[..., None]
    cross = cross - weighted.mT @ second.sums.deviation
    lines = [
        *alone,
        sets.held_out(joint_discriminant(first.sums, second.sums, factors, shrinkage, cross)),
        sets.held_out(logistic_path([first.sums, second.sums], list(alone_factors))),
    ]
    logits = [*lines, *cross_readouts(first.sums, second.sums, alone_factors, log_prior, random_seed)]
    joint = pooled(logits, labels, log_prior)
    by_lines = pool([part[0] for part in lines], labels, log_prior).log_posterior

    # Every weight that was fitted adds to the log-likelihood by half a unit on average, however little it tells.
    optimism = 0.5 / (num_groups * LN2)

    def bits(log_posterior: Tensor) -> Tensor:
        at_label = log_posterior.gather(-1, labels.expand(log_posterior.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        return (at_label - log_prior[labels]).double() / LN2

    rows = [bits(part) for part in (first.log_posterior, second.log_posterior, joint)]
    counts = (first.num_readouts, second.num_readouts, len(logits))
    each = [
        (part.mean(-1) - optimism * min(n, 3)).clamp_min(0.0) for part, n in zip(rows, counts, strict=True)
    ]
    posteriors = [matched(side.log_posterior.double().exp(), prior) for side in (first, second)]
    union = union_information(*posteriors, labels, num_clusters, tolerance, MAX_ITERATIONS, random_seed)
    calibration = (union.pointwise - union.expected).mean(-1)
    linear = torch.stack([bits(part).mean() for part in (first.by_lines, second.by_lines, by_lines)])
    beyond = (torch.stack([part[0].mean() for part in rows]) - linear).clamp_min(0.0)
    return Known(
        each[0],
        each[1],
        each[2],
        union.value + calibration,
        union.high - union.low,
        bits(product).mean(-1),
        beyond,
        torch.stack([*rows, union.pointwise]),
    )


def limit(folds: Tensor, halves: Tensor, label_bits: Tensor, num_folds: int = NUM_FOLDS) -> Tensor:
    """The information that readouts fitted on very many rows would have.

    What readouts miss is noise in their weights, which falls with the number n of rows they are fitted on: the squared
    separation d of the classes, in units of the noise, follows 1/d = 1/d_limit + a/n. Bits and separation are taken to
    be related by I = H(Y) (1 - exp(-d)).
    """
    share = (
        (folds / label_bits.clamp_min(1e-12)).clamp(1e-9, 0.9999),
        (halves / label_bits).clamp(1e-9, 0.9999),
    )
    inverse = [-1 / torch.log1p(-s) for s in share]
    near, far = num_folds / (num_folds - 1), 2.0
    slope = near / (far - near)
    reached = torch.maximum(inverse[0] - slope * (inverse[1] - inverse[0]), inverse[0] / MAX_GROWTH)
    found = label_bits * -torch.expm1(-1 / reached)
    return torch.where((halves < folds) & (folds > 1e-6), torch.maximum(found, folds), folds)
