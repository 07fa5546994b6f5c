"""Rows of similar length in one batch (`train_sampling_strategy="group_by_length"`), for rows of several modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler

from ecsfusion.data.columns import check_row


class SeededLengthGroupedSampler(LengthGroupedSampler):
    """Other batches in every epoch, and the same ones for a run that is resumed in it and on every process."""

    def __init__(self, batch_size: int, lengths: list[float], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called at the start of every epoch."""
        self.generator.manual_seed(self.seed + epoch)


def row_lengths(dataset: Dataset, modalities: Sequence[str], column: str) -> list[float]:
    """One length per row.

    Lengths of text and sound have other units; so each modality's are divided by its longest row, and a row has the
    sum. A modality whose rows are all equally long makes no difference then, and a missing one has the length 0.

    Args:
        dataset: rows with an entry per modality: processed inputs (the length is that of the first of them), text,
            or a sound as an array, plain or under "array". A column of lengths, if there is one, is taken instead.
        modalities: their names.
        column: name of that column; its entries are numbers, or numbers by modality.

    Raises:
        ValueError: a length that can only be known by decoding (a file, bytes, a picture).
    """
    table = np.array([_lengths_of(dataset[row], modalities, column, row) for row in range(len(dataset))])  # type: ignore[arg-type]
    return (table / np.maximum(table.max(axis=0), 1e-12)).sum(axis=1).tolist()


def _lengths_of(row: Mapping[str, Any], modalities: Sequence[str], column: str, index: int) -> list[float]:
    check_row(row, modalities)
    given = row.get(column)
    if isinstance(given, Mapping):
        return [float(given.get(name) or 0) for name in modalities]
    if given is not None:
        return [float(given)]
    return [_length_of(row.get(name), name, column, index) for name in modalities]


def _length_of(value: Any, name: str, column: str, index: int) -> float:
    if value is None:
        return 0.0
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
