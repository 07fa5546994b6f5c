"""Soft clusters of rows along a few directions, and tables that tell the label from the clusters.

The clusters do not know the label. A table says p(y | k) of the clusters of one side, or p(y | k, l) of those of two;
a parity or a sum of hidden states is exactly such a table.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from ecsfusion_kernels import nearest, seed
from torch import Tensor

from ecsfusion.pid.linear import TrainingSets

MAX_CLUSTERED_ROWS = 2048
MAX_SEEDED = 8
"""The most clusters that k-means++ chooses; it takes one step for each."""
REFINEMENTS = 10
"""Steps of expectation maximization."""
MAX_TABLE_VALUES = 1 << 24
PRIOR_ROWS = 2.0
"""Rows of the prior p(y) that every cell of a table starts with."""
SHARPENINGS = 6
"""Steps that take back what soft clusters blur. More of them fit the rows more closely and tell no more of others."""
MAX_SHARPENED_ROWS = 8192
"""The most rows that they look at."""
MAX_SHARPENED_CLASSES = 32
"""Of more classes the cells of two sides hold too few rows."""
LEAST_SIZE = 1e-6
"""Of a cluster, as a share of the rows."""
TINY = 1e-30


def soft_clusters(points: Sequence[Tensor], num_clusters: int, random_seed: int) -> list[Tensor]:
    """The share of each row in K clusters, (N, T, K), of each of some points (N, T, q).

    The clusters are Gaussians of one shape, with one width for each coordinate, fitted by expectation maximization.
    Points of one shape are fitted together.
    """
    if len({part.shape for part in points}) > 1:
        return [share for part in points for share in soft_clusters([part], num_clusters, random_seed)]
    step = max(1, -(-len(points[0]) // MAX_CLUSTERED_ROWS))
    samples = [part[::step].transpose(0, 1).contiguous() for part in points]
    # From centers of its own: where they start depends on a place in a batch.
    starts = [start_centers(sample, num_clusters, random_seed) for sample in samples]
    sample, centers = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in (samples, starts))
    size = torch.full_like(centers[..., 0], sample.shape[1] / num_clusters)
    moment = sample.square().mean(1)
    width = (moment / moment.sum(1, keepdim=True).clamp_min(TINY)) * nearest(sample, centers)[1].mean(1)[
        :, None
    ]
    for _ in range(REFINEMENTS):
        share = _shares(sample, centers, size, width)
        size = share.sum(1).clamp_min(0.5)
        centers = (share.mT @ sample) / size.unsqueeze(-1)
        width = moment - (size.unsqueeze(-1) * centers.square()).sum(1) / sample.shape[1]
    fitted = zip(*(values.chunk(len(points)) for values in (centers, size, width)), strict=True)
    return [
        _shares(part.transpose(0, 1), *values).transpose(0, 1)
        for part, values in zip(points, fitted, strict=True)
    ]


def start_centers(points: Tensor, num_clusters: int, random_seed: int) -> Tensor:
    """Centers (B, K, d) to start from: for few clusters by k-means++, else rows evenly apart in a random order."""
    if num_clusters <= MAX_SEEDED or num_clusters > points.shape[1]:
        return seed(points, num_clusters, random_seed)
    return points[:, :: points.shape[1] // num_clusters][:, :num_clusters].contiguous()


def _shares(points: Tensor, centers: Tensor, size: Tensor, width: Tensor) -> Tensor:
    """The shares (T, n, K) of points (T, n, q), for centers (T, K, q), sizes (T, K) and squared widths (T, q)."""
    scaled = centers / width.clamp_min(TINY).unsqueeze(1)
    bias = torch.sub(size.log(), (centers * scaled).sum(-1), alpha=0.5)
    # Clusters before rows: a softmax over a few clusters is then one of long vectors.
    return torch.softmax(torch.baddbmm(bias.unsqueeze(2), scaled, points.mT), 1).mT


def table_readout(shares: Sequence[Tensor], sets: TrainingSets, log_prior: Tensor) -> Tensor:
    """Held-out logits (N, C) of the table of one clustering, or of the pairs of clusters of two.

    Args:
        shares: one or two (N, T, K), or (N, 1, K) where the clusters of all sets are the same.
        sets: T training sets, one of which reads each row.
        log_prior: (C,).
    """
    prior = log_prior.exp()
    readers = sets.readers[0]
    member = None if sets.is_in_pieces else sets.member
    logits = torch.zeros_like(sets.one_hot)
    for number in range(len(sets.counts)):
        parts = [share[:, min(number, share.shape[1] - 1)] for share in shares]
        counts = (
            _counts_of_cells(parts, sets, number) if member is None else _counts(parts, sets, member, number)
        )
        table = _sharpened(parts, counts, sets, number, prior)
        if member is None:
            for fold, rows in enumerate(sets.slices()):
                if readers[fold] == number:
                    logits[rows] = _by_table([part[rows] for part in parts], table)
        else:
            logits = torch.where((sets.reader[0] == number)[:, None], _by_table(parts, table), logits)
    logits /= logits.sum(1, keepdim=True).clamp_min(TINY)
    return logits.clamp_min_(TINY).log_().sub_(log_prior)


def _sharpened(
    parts: Sequence[Tensor], counts: Tensor, sets: TrainingSets, number: int, prior: Tensor
) -> Tensor:
    """Of each cell and class, p(k, y) / p(k) or p(k, l, y) / (p(k) p(l)): (K, C) or (K, L, C).

    Rows between clusters are counted in all of them, which blurs the counts. A few steps of expectation maximization
    of the shares of each class in the cells, where the clusters stay as they are, take that back.

    Args:
        parts: the shares (N, K) of the rows in the clusters of one side, or of two.
        counts: of the rows of the training set, (K, C) or (K, L, C).
        sets: all of them.
        number: of the set.
        prior: (C,).
    """
    member = sets.folds_in[number][sets.fold]
    rows = member.nonzero().squeeze(1)
    rows = rows[:: max(1, -(-len(rows) // MAX_SHARPENED_ROWS))]
    labels, total = sets.labels[rows], counts.sum()
    sizes = [(member @ part / member.sum().clamp_min(1)).clamp_min(LEAST_SIZE) for part in parts]
    first, *others = (part[rows] / size for part, size in zip(parts, sizes, strict=True))
    mass = counts.flatten(0, -2).sum(0)
    cells = counts / mass.clamp_min(TINY)
    if not others:
        one_hot = sets.one_hot[rows]
        one_hot = one_hot / one_hot.sum(0).clamp_min(1)
        for _ in range(SHARPENINGS):
            density = (first @ cells).gather(1, labels[:, None]).clamp_min(TINY)
            cells = cells * ((first / density).T @ one_hot)
    elif sets.num_classes <= MAX_SHARPENED_CLASSES:
        order = labels.argsort(stable=True)
        sizes_of_classes = torch.bincount(labels, minlength=sets.num_classes).tolist()
        second = others[0][order].split(sizes_of_classes)
        found = []
        for own, a, b in zip(cells.unbind(-1), first[order].split(sizes_of_classes), second, strict=True):
            for _ in range(SHARPENINGS if len(a) else 0):
                density = ((a @ own) * b).sum(1, keepdim=True).clamp_min_(TINY)
                own = own * ((a / density).T @ b / len(a))
            found.append(own)
        cells = torch.stack(found, -1)
    expected = sizes[0] if len(sizes) == 1 else sizes[0][:, None] * sizes[1]
    expected = expected.unsqueeze(-1) * total
    return (cells * mass + PRIOR_ROWS * prior) / (expected + PRIOR_ROWS)


def _counts(parts: Sequence[Tensor], sets: TrainingSets, member: Tensor, number: int) -> Tensor:
    """The rows of a training set by cluster, or by the clusters of both sides, and class: (K, C) or (K, L, C)."""
    labelled = sets.one_hot * member[:, number, None]
    if len(parts) == 1:
        return parts[0].T @ labelled
    step = max(1, -(-len(labelled) * parts[0].shape[1] * sets.num_classes // MAX_TABLE_VALUES))
    pairs = (parts[0][::step, :, None] * labelled[::step, None, :]).flatten(1)
    return (pairs.T @ parts[1][::step]).view(parts[0].shape[1], sets.num_classes, -1).transpose(1, 2)


def _counts_of_cells(parts: Sequence[Tensor], sets: TrainingSets, number: int) -> Tensor:
    """`_counts` of rows that are sorted by fold and class: products of slices."""
    folds = sets.folds_in[number].nonzero().squeeze(1).tolist()
    if len(parts) == 1:
        slices = sets.slices()
        counts = parts[0].new_zeros(parts[0].shape[1], sets.num_classes)
        for fold in folds:
            counts.addmm_(parts[0][slices[fold]].T, sets.one_hot[slices[fold]])
        return counts
    cells, classes = sets.cells or (), sets.num_classes
    counts = parts[0].new_zeros(classes, parts[0].shape[1], parts[1].shape[1])
    for fold in folds:
        for label, (start, end) in enumerate(pairwise(cells[fold * classes : (fold + 1) * classes + 1])):
            if start < end:
                counts[label].addmm_(parts[0][start:end].T, parts[1][start:end])
    return counts.permute(1, 2, 0)


def _by_table(parts: Sequence[Tensor], table: Tensor) -> Tensor:
    """sum_k first_k table_kc or sum_kl first_k second_l table_klc: (N, C)."""
    if len(parts) == 1:
        return parts[0] @ table
    rows_at_once = max(1, MAX_TABLE_VALUES // table[0].numel())
    found = []
    for a, b in zip(*(part.split(rows_at_once) for part in parts), strict=True):
        inner = (a @ table.flatten(1)).view(len(a), *table.shape[1:])
        found.append((b.unsqueeze(1) @ inner).squeeze(1))
    return torch.cat(found)
