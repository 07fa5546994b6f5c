"""Order, groups and folds of the rows, from what the rows hold and not from where they stand.

Rows that are equal in every modality form one group, or rows of one source as the user says; a table of categories,
whose rows are equal by nature, has no groups. A group lies in one fold
as a whole, so that no readout is judged on a row that it was fitted on. The same rows in another order give the same
folds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from ecsfusion_kernels import uniform
from torch import Tensor

HASHED_VALUES = 1 << 22
"""Values that are hashed at a time."""
MAX_COPIES = 16
"""With more equal rows than so many for each distinct one, the rows are taken for a table of categories."""
KEY_BITS = 40
"""Bits of a key; the class of a row goes above them."""
EVEN = 4
"""What folds of one size are worth against folds with the same share of each class, where a group has both to upset."""


class Folds(NamedTuple):
    """N rows in an order of their own, in F folds."""

    order: Tensor
    """(N,) int64: the rows, by fold-independent key."""
    group: Tensor
    """(N,) int64: the group of each row of `order`, numbered from 0."""
    fold: Tensor
    """(N,) int64: the fold of each row of `order`, 0 to F - 1."""
    num_groups: Tensor
    """() int64."""


def row_keys(embeddings: Sequence[Tensor], random_seed: int) -> Tensor:
    """A hash of each row over all modalities, (N,) int64 of `KEY_BITS` bits.

    Rows that are equal in float32 have equal keys.
    """
    keys = torch.zeros(len(embeddings[0]), dtype=torch.int64, device=embeddings[0].device)
    for number, rows in enumerate(embeddings):
        index = torch.arange(rows.shape[1], device=rows.device)
        factors = (uniform(index, random_seed + number + 1).double() * 2**31).to(torch.int64) * 2 + 1
        parts = []
        for chunk in rows.split(max(1, HASHED_VALUES // rows.shape[1])):
            # The same values in another dtype have the same key; adding zero makes -0 into 0.
            bits = (chunk.float() + 0).contiguous().view(torch.int32).to(torch.int64)
            parts.append(bits.mul_(factors).sum(-1))
        keys = keys * 6364136223846793005 + torch.cat(parts)
    keys = (keys ^ (keys >> 29)) * 1442695040888963407
    return (keys ^ (keys >> 31)) & ((1 << KEY_BITS) - 1)


def make_folds(keys: Tensor, labels: Tensor, groups: Tensor | None, num_folds: int) -> Folds:
    """Deal the groups of rows to folds, class by class, so that every fold has its share of every class.

    Args:
        keys: (N,) int64 from `row_keys`.
        labels: (N,) int64 classes.
        groups: (N,) int64 numbers of groups from 0 to N - 1; None where only equal rows belong together.
        num_folds: F.
    """
    device = keys.device
    rows = torch.arange(len(keys), device=device)
    # Rows with equal keys stand side by side, whatever their order was.
    order = _lexsort(labels, keys)
    if groups is None:
        group = _dense(keys[order])
        is_table = (group[-1] + 1) * MAX_COPIES < len(keys)
        group = torch.where(is_table, rows, group)
    else:
        # A group is known by its smallest key.
        smallest = torch.full_like(keys, 1 << KEY_BITS).scatter_reduce(0, groups, keys, "amin")
        order = order[_lexsort(keys[order], smallest[groups[order]])]
        group = _dense(groups[order])
    if groups is not None:
        return Folds(order, group, _deal_by_need(group, labels[order], num_folds), group[-1] + 1)
    first_class = torch.full_like(rows, 1 << 20).scatter_reduce(0, group, labels[order], "amin")
    size = torch.zeros_like(rows).scatter_add(0, group, torch.ones_like(rows))
    # Groups are numbered by key. Dealing them by class keeps the classes even, and by size the folds.
    dealt = _lexsort(-size, first_class).argsort()
    return Folds(order, group, dealt[group] % num_folds, group[-1] + 1)


def independent_rows(groups: Tensor, labels: Tensor) -> float:
    """How many independent rows N rows in groups are worth, where the label is what is told: between groups and N.

    What says nothing about the label may still be alike in a group. A mean of its products with the label then varies
    as over N / (1 + (m - 1) r) rows, where m is the size of a group and r the correlation of labels within groups
    (Moulton 1986): as over the groups where each has one label, and as over the rows where their labels are mixed.

    Args:
        groups: (N,) int64 numbers from 0.
        labels: (N,) int64 classes.
    """
    rows, number = len(groups), int(groups.max()) + 1
    if number == rows:
        return float(rows)
    counts = torch.zeros(number, int(labels.max()) + 1, dtype=torch.float64)
    counts.index_put_((groups.cpu(), labels.cpu()), torch.ones(rows, dtype=torch.float64), accumulate=True)
    sizes = counts.sum(1)
    shares, overall = counts / sizes[:, None], counts.sum(0) / rows
    between = (sizes[:, None] * (shares - overall).square()).sum() / max(number - 1, 1)
    within = (sizes[:, None] * shares * (1 - shares)).sum() / (rows - number)
    squares = float(sizes.square().sum())
    typical = (rows - squares / rows) / max(number - 1, 1)
    total = float(between + (typical - 1) * within)
    correlation = min(max(float(between - within) / total, 0.0), 1.0) if total > 0 else 1.0
    return max(rows / (1 + (squares / rows - 1) * correlation), float(number))


def _deal_by_need(group: Tensor, labels: Tensor, num_folds: int) -> Tensor:
    """The fold of each row: the largest group first, each into the fold that has the least of its classes and of all.

    Args:
        group: (N,) int64, ascending from 0.
        labels: (N,) int64 classes.
        num_folds: F.
    """
    pairs, counts = torch.stack([group, labels]).unique(dim=1, return_counts=True)
    (owner, kinds), counts = pairs.cpu().numpy(), counts.cpu().numpy()
    starts = np.searchsorted(owner, np.arange(owner[-1] + 2))
    sizes = np.add.reduceat(counts, starts[:-1])
    frequency = np.bincount(kinds, counts)
    by_class, in_all = np.zeros((num_folds, len(frequency))), np.zeros(num_folds)
    fold = np.empty(len(sizes), dtype=np.int64)
    for g in np.argsort(-sizes, kind="stable"):
        of_group = slice(starts[g], starts[g + 1])
        kind, count = kinds[of_group], counts[of_group]
        share = (by_class[:, kind] / frequency[kind]) @ count + EVEN * in_all * (sizes[g] / len(group))
        fold[g] = chosen = share.argmin()
        by_class[chosen, kind] += count
        in_all[chosen] += sizes[g]
    return torch.from_numpy(fold).to(group.device)[group]


def _lexsort(minor: Tensor, major: Tensor) -> Tensor:
    """The order of the rows by `major`, and by `minor` among equals."""
    order = minor.argsort(stable=True)
    return order[major[order].argsort(stable=True)]


def _dense(ordered: Tensor) -> Tensor:
    """Numbers from 0 of the runs of equal values."""
    starts = torch.ones_like(ordered)
    starts[1:] = (ordered[1:] != ordered[:-1]).to(starts.dtype)
    return starts.cumsum(0) - 1
