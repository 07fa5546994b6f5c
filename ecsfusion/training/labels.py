"""Checks of labels where they are on the CPU and their row is known: before the first step, and in the collator.

On a GPU the model does not read the values of its labels. There a class of -100 would leave its row out of the loss
without a word, and any other class that does not exist would end the process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

from ecsfusion.data.columns import LABEL_COLUMNS, has_transform
from ecsfusion.data.groups import column_of
from ecsfusion.data.numbered_rows import NumberedRow, place_of
from ecsfusion.model.problem_types import check_labels
from ecsfusion.processing import labels_of


def check_label_columns(datasets: Mapping[str, Any], num_labels: int, problem_type: str) -> None:
    """Check the labels of data sets whose column of labels can be read without making the rows.

    Args:
        datasets: by the argument under which the user passed them.
        num_labels: of the model.
        problem_type: of the model.

    Raises:
        ValueError: labels that the problem type does not allow; the message names data set and row.
        TypeError: labels that are no numbers.
    """
    for argument, dataset in datasets.items():
        columns = [] if has_transform(dataset) else [column_of(dataset, name) for name in LABEL_COLUMNS]
        filled = [each for each in columns if each is not None and any(value is not None for value in each)]
        for values in filled[:1]:
            rows = [NumberedRow({"labels": value}, index) for index, value in enumerate(values)]
            try:
                labels = labels_of(rows)
                if labels is not None:
                    check_labels_of_rows(labels, rows, num_labels, problem_type)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"{argument}, {error}") from error


def class_column(dataset: Any) -> np.ndarray | None:
    """The class labels (N,) of a data set; None where they cannot be read as a column, or are no whole numbers."""
    for column in [] if has_transform(dataset) else LABEL_COLUMNS:
        values = column_of(dataset, column)
        if values is not None and all(isinstance(value, Integral) for value in values):
            return np.asarray(values)
    return None


def target_column(dataset: Any) -> np.ndarray | None:
    """The targets (N,) or (N, C) of a data set, float64; None where they cannot be read as a column of numbers."""
    for column in [] if has_transform(dataset) else LABEL_COLUMNS:
        values = column_of(dataset, column)
        if values is not None:
            with suppress(TypeError, ValueError):
                return np.asarray(list(values), dtype=np.float64)
    return None


def check_labels_of_rows(labels: Tensor, rows: Sequence[Any], num_labels: int, problem_type: str) -> None:
    """Check labels as the model does, and name the row whose value is wrong.

    Args:
        labels: (B,) or (B, C).
        rows: the B rows that they belong to.
        num_labels: of the model.
        problem_type: of the model.

    Raises:
        ValueError, TypeError: as `ecsfusion.model.problem_types.check_labels`.
    """
    try:
        check_labels(labels, num_labels, problem_type)
    except ValueError as error:
        errors = [_error_of(label, num_labels, problem_type) for label in labels.split(1)]
        # What is wrong with every row, such as the dtype, is said of all together.
        if None not in errors:
            raise
        index, of_row = next((index, each) for index, each in enumerate(errors) if each is not None)
        raise ValueError(f"label, {place_of(rows[index], index)}: {of_row}") from error


def _error_of(labels: Tensor, num_labels: int, problem_type: str) -> ValueError | None:
    try:
        check_labels(labels, num_labels, problem_type)
    except ValueError as error:
        return error
    return None


class LabelCheckingCollator:
    """Checks the labels of the batches of another collator.

    Args:
        collate: the other collator.
        num_labels: of the model.
        problem_type: of the model.
    """

    def __init__(self, collate: Callable[[Any], Any], num_labels: int, problem_type: str) -> None:
        self.collate = collate
        self.num_labels = num_labels
        self.problem_type = problem_type

    def __call__(self, rows: Any) -> Any:
        """Make a batch.

        Raises:
            ValueError: labels that the problem type does not allow; the message names the row.
        """
        batch = self.collate(rows)
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if isinstance(labels, Tensor) and labels.ndim and len(labels) == len(rows):
            check_labels_of_rows(labels, rows, self.num_labels, self.problem_type)
        return batch
