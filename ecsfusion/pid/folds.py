"""Order, groups and folds of the rows, from what the rows hold and not from where they stand.

Rows that are equal in every modality form one group, or rows of one source as the user says; a table of categories,
whose rows are equal by nature, has no groups. A group lies in one fold
as a whole, so that no readout is judged on a row that it was fitted on. The same rows in another order give the same
folds. Of heads it is the other way round: the same places give the same folds, whatever the heads say there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from ecsfusion_kernels import groups_of_rows, hash_rows
from ecsfusion_kernels.reference.groups_of_rows import LARGEST_CLASS, dealing_key, group_sizes
from ecsfusion_kernels.reference.hash_rows import MULTIPLIER, mixed
from torch import Tensor

HASHED_COLUMNS = 16
"""The columns of an embedding that are hashed of every row; the others only of rows that are equal in these."""
KEY_BITS = 40
"""Bits of a key; the class of a row goes above them."""
EVEN = 4
"""What folds of one size are worth against folds with the same share of each class, where a group has both to upset."""

MIN_COPIES = 16
"""With so many equal rows for each distinct one of every modality,"""
MIN_MEETINGS = 4
"""which meet so many of those of others, modalities are tables of categories."""
MIN_ROWS_OF_CELL = 4
"""With so many rows for each that is distinct in all modalities together, those that are equal are no copies."""
MIN_COUNTS = 16
"""Of fewer numbers of equal rows a common divisor says nothing."""
MAX_CHOSEN = 4096
"""The most groups for which a fold is chosen one by one."""


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
    worth: Tensor
    """(): how many independent rows they are worth; the number of groups where the user gave none."""


def row_keys(embeddings: Sequence[Tensor], random_seed: int) -> Tensor:
    """A hash of each row over all modalities, (N,) int64 of `KEY_BITS` bits.

    Rows that are equal in float32 have equal keys, on every device, whatever the order of the modalities. The host
    reads whether some columns tell the rows apart.
    """
    found = [_hashed(rows, random_seed) for rows in embeddings]
    if len(found) > 1:
        found.sort(key=lambda keys: int(keys.sum()))
    first, *others = found
    for keys in others:
        first = first * MULTIPLIER + keys
    return mixed(first, KEY_BITS)


def logit_keys(logits: Sequence[Tensor], random_seed: int) -> Tensor:
    """A hash of each row over all heads, as `row_keys`; by all columns, so that the host reads nothing."""
    *earlier, last = logits
    keys = None
    for number, rows in enumerate(earlier, 1):
        keys = hash_rows(rows, None, random_seed + number, keys)
    return hash_rows(last, None, random_seed + len(logits), keys, KEY_BITS)


def _hashed(rows: Tensor, random_seed: int) -> Tensor:
    """A hash of each row (N, D) of one modality, (N,) int64.

    By some columns, and by all columns where these do not tell rows apart.
    """
    dimension = rows.shape[1]
    if dimension <= HASHED_COLUMNS:
        return hash_rows(rows, None, random_seed)
    some = torch.arange(HASHED_COLUMNS, device=rows.device) * dimension // HASHED_COLUMNS
    found = hash_rows(rows.index_select(1, some), some, random_seed)
    ordered, order = found.sort()
    repeats = ordered[1:] == ordered[:-1]
    if bool(repeats.any()):
        repeated = torch.zeros(len(found), dtype=torch.bool, device=rows.device)
        repeated[1:] = repeats
        repeated[:-1] |= repeats
        place = order[repeated]
        found[place] = hash_rows(rows[place], None, ~random_seed)
    return found


def keys_of_rows(embeddings: Sequence[Tensor], labels: Tensor, random_seed: int) -> Tensor:
    """`row_keys`; but of tables of categories each row has a key of its own, and none is in a group with its equals.

    Otherwise no readout would have seen the cell of the table that it reads. Copies stay together: all rows that are
    equal where cells have few, and as many as there are of each where all are there several times.
    """
    keys = row_keys(embeddings, random_seed)
    if not are_categories(embeddings, keys, random_seed):
        return keys
    copies = copies_of_rows(keys, labels)
    if has_sparse_cells(keys, copies):
        return keys
    order = (keys * LARGEST_CLASS + labels).argsort(stable=True)
    ordered, place = keys[order], torch.arange(len(keys), device=keys.device)
    of_class = torch.stack([ordered, labels[order]])
    is_first = torch.nn.functional.pad((of_class[:, 1:] != of_class[:, :-1]).any(0), (1, 0), value=True)
    number = place - torch.where(is_first, place, 0).cummax(0).values
    own = mixed(ordered * MULTIPLIER + of_class[1] * LARGEST_CLASS + number // copies, KEY_BITS)
    return torch.empty_like(keys).scatter_(0, order, own)


def are_categories(embeddings: Sequence[Tensor], keys: Tensor, random_seed: int) -> bool:
    """Whether all modalities, with `row_keys` (N,), have few distinct rows, which meet many of the others."""
    most = 0
    for rows in embeddings:
        most = max(most, len(row_keys([rows], random_seed).unique()))
        if most * MIN_COPIES > len(keys):
            return False
    return len(keys.unique()) >= MIN_MEETINGS * most


def copies_of_rows(keys: Tensor, labels: Tensor) -> int:
    """How often each row is there, by `row_keys` (N,) and classes (N,): 2 where all rows were doubled, mostly 1.

    A few numbers of rows have a common divisor by chance.
    """
    _, cell = keys.unique(return_inverse=True)
    _, counts = (cell * (int(labels.max()) + 1) + labels).unique(return_counts=True)
    return int(np.gcd.reduce(counts.cpu().numpy())) if len(counts) >= MIN_COUNTS else 1


def has_sparse_cells(keys: Tensor, copies: int) -> bool:
    """Whether equal rows of a table of categories, by `row_keys` (N,), may be copies: whether they are too few."""
    return len(keys) < MIN_ROWS_OF_CELL * copies * len(keys.unique())


def numbered_by_rows(keys: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The C classes that occur, ordered by the keys of their rows, and labels (N,) int64 in their numbers.

    By the smallest key, and among classes that share it by the sum.

    So neither the folds nor the order of a sum depend on what the classes are called, and a class without rows is none.
    """
    classes, numbered = labels.unique(return_inverse=True)
    order = _by_keys(keys, numbered, len(classes))
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return classes[order], place[numbered]


def _by_keys(keys: Tensor, parts: Tensor, number: int) -> Tensor:
    """The order (number,) of parts of the rows, numbered by (N,): by smallest key, where it is shared by the sum."""
    smallest = keys.new_full((number,), 1 << KEY_BITS).scatter_reduce(0, parts, keys, "amin")
    return _lexsort(torch.zeros_like(smallest).index_add_(0, parts, keys), smallest)


def make_folds(keys: Tensor, labels: Tensor, groups: Tensor | None, num_folds: int) -> Folds:
    """Deal the groups of rows to folds, class by class, so that every fold has its share of every class.

    Args:
        keys: (N,) int64 from `row_keys`.
        labels: (N,) int64 classes.
        groups: (N,) int64 numbers of groups from 0 to N - 1; None where only equal rows belong together.
        num_folds: F.
    """
    # Rows with equal keys stand side by side, whatever their order was.
    order = (keys * LARGEST_CLASS + labels).argsort(stable=True)
    if groups is None:
        # Groups are numbered by key.
        group, by_class, num_groups = groups_of_rows(keys[order], labels[order])
    else:
        # A group is known by its keys; its rows stand side by side, also where it shares some with another.
        by_keys = _by_keys(keys, groups, len(keys))
        place = torch.empty_like(by_keys).scatter_(0, by_keys, torch.arange(len(keys), device=keys.device))
        order = order[_lexsort(keys[order], place[groups[order]])]
        group = _dense(groups[order])
        num_groups = group[-1] + 1
        if int(num_groups) < len(group):
            worth = torch.full_like(num_groups, independent_rows(group, labels[order]), dtype=torch.float64)
            return Folds(order, group, _deal_by_need(group, labels[order], num_folds), num_groups, worth)
        by_class = dealing_key(group, labels[order], group_sizes(group))
    # Dealing them by class keeps the classes even, and by size the folds.
    dealing = by_class.argsort(stable=True)
    dealt = torch.empty_like(dealing).scatter_(0, dealing, torch.arange(len(keys), device=keys.device))
    return Folds(order, group, dealt[group] % num_folds, num_groups, num_groups)


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


def folds_by_place(keys: Tensor, labels: Tensor, num_folds: int) -> tuple[Folds, Tensor]:
    """Deal rows to folds, class by class, by where they stand, and say in which order equal rows stand side by side.

    So the logits of a step of training, or of another batch size, are read by the folds of the one before, and what
    differs is not the dealing. Equal rows count as a group, but are dealt each by itself: a calibration of a few
    weights learns nothing of a row.

    Args:
        keys: (N,) int64, equal for equal rows.
        labels: (N,) int64 classes.
        num_folds: F.

    Returns:
        The folds, whose groups are not in the order of the folds, but in that of the second: (N,) int64, places of
        `Folds.order`.
    """
    rows = torch.arange(len(keys), device=keys.device)
    order, by_key = labels.argsort(stable=True), keys.argsort(stable=True)
    group, _, num_groups = groups_of_rows(keys[by_key], labels[by_key])
    place = torch.empty_like(order).scatter_(0, order, rows)
    return Folds(order, group, rows % num_folds, num_groups, num_groups), place[by_key]


def _deal_by_need(group: Tensor, labels: Tensor, num_folds: int) -> Tensor:
    """The fold of each row: the largest group first, each into the fold that has the least of its classes and of all.

    Of more than `MAX_CHOSEN` groups those in the middle are dealt in turn, in the order of their size and class, and
    the smallest make even what is left.

    Args:
        group: (N,) int64, ascending from 0.
        labels: (N,) int64 classes.
        num_folds: F.
    """
    classes = int(labels.max()) + 1
    pairs, counts = (part.cpu().numpy() for part in (group * classes + labels).unique(return_counts=True))
    owner, kinds = pairs // classes, pairs % classes
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    ends = np.append(starts[1:], len(owner))
    sizes = np.add.reduceat(counts, starts)
    frequency = np.bincount(kinds, counts)
    by_class, in_all = np.zeros((num_folds, len(frequency))), np.zeros(num_folds)
    fold = np.empty(len(sizes), dtype=np.int64)
    # Among groups of one size by their first and last class.
    largest_first = np.lexsort((kinds[ends - 1], kinds[starts], -sizes))

    def put(g: int) -> None:
        of_group = slice(starts[g], ends[g])
        kind, count = kinds[of_group], counts[of_group]
        share = (by_class[:, kind] / frequency[kind]) @ count + EVEN * in_all * (sizes[g] / len(group))
        fold[g] = chosen = share.argmin()
        by_class[chosen, kind] += count
        in_all[chosen] += sizes[g]

    half = MAX_CHOSEN // 2
    first, middle, last = largest_first[:half], largest_first[half:-half], largest_first[half:][-half:]
    for g in first.tolist():
        put(g)
    fold[middle] = np.argsort(in_all, kind="stable")[np.arange(len(middle)) % num_folds]
    dealt = np.repeat(fold, ends - starts)
    in_middle = np.zeros(len(sizes), dtype=bool)
    in_middle[middle] = True
    entries = np.repeat(in_middle, ends - starts)
    np.add.at(by_class, (dealt[entries], kinds[entries]), counts[entries])
    in_all = by_class.sum(1)
    for g in last.tolist():
        put(g)
    # Neither half of the folds is without rows where groups are fewer than folds.
    by_half = np.argsort(np.arange(num_folds) % -(-num_folds // 2), kind="stable")
    return torch.from_numpy(by_half[fold]).to(group.device)[group]


def _lexsort(minor: Tensor, major: Tensor) -> Tensor:
    """The order of the rows by `major`, and by `minor` among equals."""
    order = minor.argsort(stable=True)
    return order[major[order].argsort(stable=True)]


def _dense(ordered: Tensor) -> Tensor:
    """Numbers from 0 of the runs of equal values."""
    return torch.nn.functional.pad((ordered[1:] != ordered[:-1]).cumsum(0), (1, 0))
