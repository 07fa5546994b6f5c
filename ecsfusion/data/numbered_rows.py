"""Rows that know their number in the data set, so that an error about one of a shuffled batch can name it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset, Subset


class NumberedRow(dict):
    """A row of a data set, which is the row itself and knows its `number`."""

    def __init__(self, row: Mapping[str, Any], number: int) -> None:
        super().__init__(row)
        self.number = number


class NumberedRows(Dataset):
    """A data set whose rows are [`NumberedRow`]; rows without keys stay as they are.

    Args:
        dataset: rows that can be indexed. A number is that in this data set, or, for a `Subset`, in the whole one.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return _numbered(self.dataset[index], self._number(index))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The rows of a batch, in one call where the data set has one for it, as `datasets.Dataset` has."""
        read = getattr(self.dataset, "__getitems__", None)
        rows = [self.dataset[index] for index in indices] if read is None else read(indices)
        return [_numbered(row, self._number(index)) for row, index in zip(rows, indices, strict=True)]

    def _number(self, index: int) -> int:
        dataset: Any = self.dataset
        while isinstance(dataset, Subset):
            dataset, index = dataset.dataset, dataset.indices[index]
        return int(index)


def place_of(row: Any, index: int) -> str:
    """What to call a row in an error: its number in the data set, or else its place in the batch."""
    number = getattr(row, "number", None)
    return f"row {index} of the batch" if number is None else f"row {number}"


def _numbered(row: Any, number: int) -> Any:
    return NumberedRow(row, number) if isinstance(row, Mapping) else row
