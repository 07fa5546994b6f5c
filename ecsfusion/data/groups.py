"""The group of a row: what it shares with other rows, such as a subject, a recording or a picture.

A data set names it in a column. It is no input of the model: a collator takes it out of the rows and, for evaluations,
puts it into the batch as a number.
"""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from ecsfusion.data.columns import LABEL_COLUMNS, keys_of_first_row
from ecsfusion.data.numbered_rows import NumberedRow, place_of

GROUPS = "_groups"
"""The key of a batch, and of a part of the outputs of an evaluation, that holds the groups of the rows."""


class GroupCollator:
    """Takes the group out of rows before another collator makes a batch of them.

    Args:
        collate: the other collator, which does not see the column.
        column: the name of the column.
        carries: whether the batch has the groups, (B,) int64 under `GROUPS`.

    Attributes:
        seen: the groups of all rows that passed in this process.
    """

    def __init__(self, collate: Callable[[Any], Any], column: str, carries: bool = False) -> None:
        self.collate = collate
        self.column = column
        self.carries = carries
        self.seen: set[int] = set()

    def __call__(self, rows: Sequence[Any]) -> Any:
        """Make a batch.

        Raises:
            ValueError: a row has no group, where the batch has them.
            TypeError: a group that is neither a text nor a whole number, where the batch has them.
        """
        batch = self.collate([self._without_group(row) for row in rows])
        if self.carries:
            keys = [
                group_key(_value(row, self.column), self.column, place_of(row, i))
                for i, row in enumerate(rows)
            ]
            batch[GROUPS] = torch.tensor(keys)
        else:
            self.seen.update(keys_of(_value(row, self.column) for row in rows))
        return batch

    def _without_group(self, row: Any) -> Any:
        if not isinstance(row, Mapping) or self.column not in row:
            return row
        rest = {key: value for key, value in row.items() if key != self.column}
        number = getattr(row, "number", None)
        return rest if number is None else NumberedRow(rest, number)


def group_key(value: Any, column: str, place: str) -> int:
    """A number that all processes and all data sets give the same group: a hash of 63 bits.

    Args:
        value: a text or a whole number; 3 and "3" are one group.
        column: the name of the column, for messages.
        place: what to call the row in messages.

    Raises:
        ValueError: the row has no group.
        TypeError: it is neither a text nor a whole number.
    """
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    is_real = isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
    if is_real and float(value).is_integer():
        # A gap in a table has made whole numbers real.
        value = int(value)
    # An empty cell of a table is an empty text.
    is_empty = isinstance(value, str) and not value.strip()
    if value is None or is_empty or (is_real and value != value):
        raise ValueError(
            f"{place} has no {column!r}, which group_column_name names; name the group of every row, or leave this row "
            "out."
        )
    if not isinstance(value, (str, numbers.Integral)):
        raise TypeError(
            f"{column!r} of {place} is {value!r}, a {type(value).__name__}; name a group by a text or a whole number."
        )
    digest = hashlib.blake2b(str(value).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def keys_of(values: Iterable[Any]) -> set[int]:
    """The keys of those of the values that name a group."""
    keys = set()
    for value in values:
        try:
            keys.add(group_key(value, "", ""))
        except (ValueError, TypeError):
            # No group is no group that two sets could share.
            continue
    return keys


def has_column(dataset: Any, column: str) -> bool:
    """Whether the first row of a data set has this column; of a stream that does not name its columns, True."""
    keys = keys_of_first_row(dataset)
    if keys is None:
        keys = list(getattr(dataset, "column_names", None) or [column])
    return column in keys


def column_of(dataset: Any, column: str) -> list[Any] | None:
    """The values of a column where they can be read without making the rows; None where they cannot.

    They can be of a `datasets.Dataset`, of a list of rows, and of a `Subset` of one of these.
    """
    if isinstance(dataset, Subset):
        whole = column_of(dataset.dataset, column)
        return None if whole is None else [whole[index] for index in dataset.indices]
    if isinstance(dataset, (list, tuple)):
        return [_value(row, column) for row in dataset]
    names = getattr(dataset, "column_names", None)
    if (
        isinstance(names, list)
        and column in names
        and hasattr(dataset, "with_format")
        and hasattr(dataset, "__len__")
    ):
        return list(dataset.with_format(None)[column])
    return None


def check_group_column(dataset: Any, column: str, modalities: Sequence[str], argument: str) -> None:
    """Check that the rows of the probe set have the column of the groups.

    Args:
        dataset: the probe set.
        column: the name of the column.
        modalities: names of the model's modalities.
        argument: the name under which the user passed the data set.

    Raises:
        ValueError: they have not, or the column is a modality or the labels.
    """
    if column in modalities or column in LABEL_COLUMNS:
        raise ValueError(
            f"group_column_name is {column!r}, which the model reads; name a column that says only what rows share, "
            "such as 'subject'."
        )
    if not has_column(dataset, column):
        raise ValueError(
            f"group_column_name is {column!r}, but the rows of {argument} have {keys_of_first_row(dataset)}; name the "
            "column that holds the group of each row, or leave group_column_name out."
        )


def _value(row: Any, column: str) -> Any:
    return row.get(column) if isinstance(row, Mapping) else None
