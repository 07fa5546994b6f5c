"""Whether the rows of a data set have what the model takes, asked before training starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LABEL_COLUMNS = ("labels", "label")


def check_has_rows(dataset: Any, argument: str) -> None:
    """Raises ValueError for a data set of length zero; `argument` is how the user passed it."""
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError(f"{argument} has no rows; give at least one.")


def check_columns(dataset: Any, modalities: Sequence[str], argument: str) -> None:
    """Raises ValueError if columns are not called as the modalities are.

    Columns are those that a data set names (`datasets.Dataset`), or the keys of its first row. A single row may lack a
    modality; so rows without column names are only refused if they hold something of another name instead.

    Args:
        dataset: train or evaluation set; one that can neither be indexed nor names its columns is not looked at.
        modalities: what the model takes.
        argument: how the user passed it.
    """
    named = getattr(dataset, "column_names", None)
    columns = list(named) if named else _keys_of_first_row(dataset)
    if columns is None:
        return
    missing = [name for name in modalities if name not in columns]
    others = [name for name in columns if name not in modalities and name not in LABEL_COLUMNS]
    if missing and (named or others):
        raise ValueError(
            f"{argument} has the columns {columns} but no {' and no '.join(map(repr, missing))}, which the model "
            f"takes; rename its columns to the modalities {list(modalities)}, or build the model with these names."
        )
    if named and not any(name in columns for name in LABEL_COLUMNS):
        raise ValueError(
            f"{argument} has the columns {columns} but neither 'labels' nor 'label'; rename the column."
        )


def check_row(row: Any, modalities: Sequence[str]) -> None:
    """Raises TypeError for a row without names, such as the tuples of a `TensorDataset`."""
    if not isinstance(row, Mapping):
        keys = ", ".join(f"{name!r}: ..." for name in (*modalities, "labels"))
        raise TypeError(
            f"a row of the data set is a {type(row).__name__}, which does not say what is which; let "
            f"__getitem__ return a dictionary {{{keys}}}, or give a data_collator of your own."
        )


def check_rows(rows: Any, modalities: Sequence[str]) -> None:
    """Raises ValueError for a batch without rows, and TypeError for one whose rows have no names."""
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise TypeError(f"the rows of a batch must be a list of dictionaries, got a {type(rows).__name__}.")
    if not rows:
        raise ValueError("the batch has no rows; give at least one.")
    for row in rows:
        check_row(row, modalities)


def _keys_of_first_row(dataset: Any) -> list[str] | None:
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
        return None
    row = dataset[0]
    return [str(key) for key in row] if isinstance(row, Mapping) else None
