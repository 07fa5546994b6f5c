"""Rows that depend on each other become groups, and groups are split so that every class has its share everywhere."""

import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

MAX_GROUP_OF_EVALUATION = 24
"""Groups of more rows are learned from, so that no few of them decide a score."""


class DisjointSets:
    """Sets of rows that are united one pair at a time; a set is called by its smallest row.

    Args:
        number: of the rows.
    """

    def __init__(self, number: int) -> None:
        self._parents = list(range(number))
        self._first: dict[Hashable, int] = {}

    def find(self, row: int) -> int:
        """The name of a row's set."""
        parents = self._parents
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    def unite(self, row: int, other: int) -> None:
        """Make one set of the sets of two rows."""
        row, other = self.find(row), self.find(other)
        self._parents[max(row, other)] = min(row, other)

    def unite_equal(self, row: int, key: Hashable) -> None:
        """Unite a row with the rows that were given the same key before."""
        self.unite(row, self._first.setdefault(key, row))


def split_groups(
    members: Mapping[int, Sequence[int]],
    labels: Mapping[int, str],
    shares: Mapping[str, float],
    generator: random.Random,
    max_size: int | None = None,
) -> dict[int, str]:
    """For each group its split; large ones first, each goes where its classes lack most.

    Args:
        members: the rows of each group.
        labels: the class of each row.
        shares: of the rows of every class, by split.
        generator: of the order of groups of one size.
        max_size: larger groups go to train; None for no limit.
    """
    total = Counter(labels[row] for rows in members.values() for row in rows)
    placed: Counter[tuple[str, str]] = Counter()
    order = list(members)
    generator.shuffle(order)
    split_of = {}
    for group in sorted(order, key=lambda each: -len(members[each])):
        inside = Counter(labels[row] for row in members[group])

        def lack(split: str, inside: Counter[str] = inside) -> float:
            return sum(
                count * (1 - (placed[label, split] + count / 2) / (shares[split] * total[label]))
                for label, count in inside.items()
            )

        is_long = max_size is not None and len(members[group]) > max_size
        split_of[group] = "train" if is_long else max(shares, key=lack)
        for label, count in inside.items():
            placed[label, split_of[group]] += count
    return split_of
