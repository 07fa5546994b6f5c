"""Batches of rows of similar length (`train_sampling_strategy="group_by_length"`) for several modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from ecsfusion.data.columns import check_row
from ecsfusion.data.missing import is_missing


class SeededLengthGroupedSampler(LengthGroupedSampler):
    """A sampler whose batches depend on the seed and the epoch alone.

    So every process has the same batches, and a run that is resumed within an epoch has the ones that it had.

    Args:
        batch_size: rows per batch.
        lengths: one length per row.
        seed: of the random order.
    """

    def __init__(self, batch_size: int, lengths: list[float], seed: int) -> None:
        # transformers only sorts the lengths, although it declares integers.
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())  # type: ignore[arg-type]
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; transformers calls it at the start of every epoch."""
        self.generator.manual_seed(self.seed + epoch)


Measure = Callable[[str, Any], float]
"""The length of a value of a modality, see `FusionProcessor.length`."""


def row_lengths(
    dataset: Any, modalities: Sequence[str], column: str, measure: Measure | None = None
) -> list[float]:
    """One length per row.

    Text and sound are measured in different units. So the lengths of each modality are divided by that of its longest
    row, and a row's length is the sum over its modalities. A modality whose rows are all equally long then does not
    change the order, and a missing one has the length 0.

    Args:
        dataset: rows with an entry per modality: processed inputs (the length is that of the first of them), text,
            or a sound as an array, plain or under "array"; with `measure` any raw value. A column of lengths, if there
            is one, is used instead.
        modalities: their names.
        column: name of that column; its entries are numbers, or numbers by modality.
        measure: measures a value; None where there is no processor.

    Raises:
        ValueError: a length that is unknown before decoding (without `measure` a file, bytes, a picture); the message
            names the row.
        TypeError: a row without keys.
    """
    num_rows = len(dataset)
    table = np.array([_lengths_of(dataset[row], modalities, column, row, measure) for row in range(num_rows)])
    return (table / np.maximum(table.max(axis=0), 1e-12)).sum(axis=1).tolist()


def _lengths_of(
    row: Mapping[str, Any], modalities: Sequence[str], column: str, index: int, measure: Measure | None
) -> list[float]:
    check_row(row, modalities, f"row {index} of the data set")
    lengths = row.get(column)
    if lengths is not None:
        each = lengths if isinstance(lengths, Mapping) else {column: lengths}
        names = modalities if isinstance(lengths, Mapping) else [column]
        try:
            return [float(each.get(name) or 0) for name in names]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"column {column!r} holds {lengths!r} in row {index}; give a number, or numbers by modality, or name "
                "another column in length_column_name."
            ) from error
    return [_length_of(row.get(name), name, column, index, measure) for name in modalities]


def _length_of(value: Any, name: str, column: str, index: int, measure: Measure | None) -> float:
    if is_missing(value):
        return 0.0
    if measure is not None:
        try:
            return measure(name, value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"train_sampling_strategy is 'group_by_length', but the length of {name} in row {index} is not known "
                f"({error}); correct the row, or add a column {column!r} with the length of each row."
            ) from error
    if isinstance(value, Mapping) and "bytes" not in value and "path" not in value:
        if "array" in value:
            return float(len(value["array"]))
        return float(len(next(iter(value.values()))))
    if isinstance(value, (str, list, tuple, np.ndarray, torch.Tensor)):
        return float(len(value))
    raise ValueError(
        f"train_sampling_strategy is 'group_by_length', but row {index} has its {name} as a {type(value).__name__}, "
        f"whose length is not known before it is decoded; add a column {column!r} with the length of each row."
    )
