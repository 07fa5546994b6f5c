"""Checks, before training starts, that the rows of a data set have the columns that the model needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LABEL_COLUMNS = ("labels", "label")
"""Names of the column of labels; the first of them that a row has is used."""


def check_has_rows(dataset: Any, argument: str) -> None:
    """Raises ValueError for a data set of length zero; `argument` is the name under which the user passed it."""
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError(f"{argument} has no rows; give at least one.")


def check_columns(dataset: Any, modalities: Sequence[str], argument: str) -> None:
    """Check that columns have the names of the modalities, and that there are labels.

    The columns are the `column_names` of a `datasets.Dataset`, or else the keys of the first row. A single row may lack
    a modality; so where the keys of a row are all that is known, a missing modality is an error only if the row has a
    column with another name.

    Args:
        dataset: train or evaluation set; one without column names that cannot be indexed is not checked.
        modalities: names of the model's modalities.
        argument: the name under which the user passed the data set.

    Raises:
        ValueError: a modality or the labels are missing.
    """
    column_names = getattr(dataset, "column_names", None)
    columns = list(column_names) if column_names else _keys_of_first_row(dataset)
    if columns is None:
        return
    missing = [name for name in modalities if name not in columns]
    others = [name for name in columns if name not in modalities and name not in LABEL_COLUMNS]
    if missing and (column_names or others):
        raise ValueError(
            f"{argument} has the columns {columns} but no {' and no '.join(map(repr, missing))}, which the model "
            f"takes; rename its columns to the modalities {list(modalities)}, or build the model with these names."
        )
    if column_names and not any(name in columns for name in LABEL_COLUMNS):
        raise ValueError(
            f"{argument} has the columns {columns} but neither 'labels' nor 'label'; rename the column."
        )


def check_row(row: Any, modalities: Sequence[str], place: str = "a row of the data set") -> None:
    """Raises TypeError for a row without keys, such as a tuple of a `TensorDataset`; `place` is what to call it."""
    if not isinstance(row, Mapping):
        keys = ", ".join(f"{name!r}: ..." for name in (*modalities, "labels"))
        raise TypeError(
            f"{place} is a {type(row).__name__}, which does not name its values; let "
            f"__getitem__ return a dictionary {{{keys}}}, or give a data_collator of your own."
        )


def check_rows(rows: Any, modalities: Sequence[str]) -> None:
    """Raises ValueError for a batch without rows, and TypeError for one whose rows have no keys."""
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise TypeError(f"the rows of a batch must be a list of dictionaries, got a {type(rows).__name__}.")
    if not rows:
        raise ValueError("the batch has no rows; give at least one.")
    for index, row in enumerate(rows):
        check_row(row, modalities, f"row {index} of the batch")


def _keys_of_first_row(dataset: Any) -> list[str] | None:
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
        return None
    row = dataset[0]
    return [str(key) for key in row] if isinstance(row, Mapping) else None
