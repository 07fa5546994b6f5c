"""Checks, before training starts, that the rows of a data set, or the batches of them, are what the model takes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

LABEL_COLUMNS = ("labels", "label")
"""Names of the column of labels; the first of them that a row has is used."""
BATCH_KEYS = ("labels", "present", "return_dict")
"""Keys of a batch beside those of the modalities."""
KINDS_OF_INPUTS = (
    frozenset({"pixel_values"}),
    frozenset({"pixel_values_videos"}),
    frozenset({"input_ids"}),
    frozenset({"input_features", "input_values"}),
)
"""Names of the main inputs of encoders, by the encoder that takes them."""
FURTHER_INPUTS = frozenset({"attention_mask", "position_ids", "token_type_ids"})
"""Names of inputs that come with one of those."""
ENCODER_INPUTS = FURTHER_INPUTS.union(*KINDS_OF_INPUTS)
"""Names of inputs of single encoders, which are no names of modalities unless the model says so."""


def check_has_rows(dataset: Any, argument: str) -> None:
    """Check that this is a data set, and not something that holds one or several, and that it is not empty.

    Args:
        dataset: train or evaluation set.
        argument: the name under which the user passed it.

    Raises:
        ValueError: it has no rows.
        TypeError: it is a dictionary of splits or of columns, a `DataLoader`, an iterator that ends after one pass, or
            has a format whose rows name no values.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping):
        names = [*dataset]
        raise TypeError(
            f"{argument} is a {kind} of {names}; give one of its splits, such as data[{names[0]!r}]. (Columns of one "
            "data set become rows by datasets.Dataset.from_dict(...).)"
            if names
            else f"{argument} is an empty {kind}; give a data set."
        )
    if isinstance(dataset, DataLoader):
        raise TypeError(f"{argument} is a {kind}, but the Trainer makes the batches; give its data set.")
    if isinstance(dataset, Iterator):
        raise TypeError(
            f"{argument} is a {kind}, which ends after one pass; give list(...) of it, or an IterableDataset."
        )
    style = getattr(dataset, "format", None)
    if isinstance(style, Mapping) and style.get("type") in ("arrow", "polars"):
        raise TypeError(
            f"{argument} has the format {style['type']!r}, whose rows are tables; give "
            "dataset.with_format(None), or 'torch'."
        )
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError(f"{argument} has no rows; give at least one.")


def check_columns(dataset: Any, modalities: Sequence[str], argument: str) -> None:
    """Check that the rows of a data set have the names of the modalities as keys, and labels.

    The keys of the first row count, as `dataset[0]` returns it: of a `datasets.Dataset` after its transform. A single
    row may lack a modality, so a missing modality is an error only if the row has a key with another name, or if the
    data set names its columns and no transform changes them.

    Args:
        dataset: train or evaluation set; one without column names that cannot be indexed is not checked.
        modalities: names of the model's modalities.
        argument: the name under which the user passed the data set.

    Raises:
        ValueError: a modality or the labels are missing.
        TypeError: the data set is a data frame, or its rows have no keys.
    """
    if hasattr(dataset, "iloc"):
        raise TypeError(
            f"{argument} is a {type(dataset).__name__}, whose rows are not found by their number; give "
            "datasets.Dataset.from_pandas(...) of it, or a list of dictionaries."
        )
    column_names = getattr(dataset, "column_names", None)
    # A single row of a `datasets.Dataset` with the format "pandas" is a table; its batches are rows.
    if not column_names and _can_be_indexed(dataset):
        check_row(_first_row(dataset), modalities, f"row 0 of {argument}")
    columns = keys_of_first_row(dataset)
    columns = list(column_names or ()) if columns is None else columns
    if not columns:
        return
    is_transformed = has_transform(dataset)
    missing = [name for name in modalities if name not in columns]
    others = [name for name in columns if name not in modalities and name not in LABEL_COLUMNS]
    if missing and ((column_names and not is_transformed) or others):
        raise ValueError(
            f"{argument} has the columns {columns} but no {' and no '.join(map(repr, missing))}, which the model "
            f"takes; {nested_form(columns, modalities) or _renaming(modalities)}."
        )
    if not any(name in columns for name in LABEL_COLUMNS):
        raise ValueError(
            f"{argument} has the columns {columns} but neither 'labels' nor 'label'; rename the column, or add it."
        )


def check_collated(
    dataset: Any, collate: Callable[[list[Any]], Any], modalities: Sequence[str], argument: str
) -> None:
    """Check what a collator of the user's own makes of the first two rows of a data set.

    Args:
        dataset: train or evaluation set; one that cannot be indexed is not checked.
        collate: the collator.
        modalities: names of the model's modalities.
        argument: the name under which the user passed the data set.

    Raises:
        ValueError: the batch has inputs that the model does not take, or no labels.
        TypeError: the batch is no dictionary.
    """
    if not _can_be_indexed(dataset):
        return
    with _unchanged_random_state():
        rows = [dataset[index] for index in range(min(len(dataset), 2))]
        try:
            batch = collate(rows)
        except Exception as error:
            error.add_note(f"data_collator raised this on the first {len(rows)} rows of {argument}.")
            raise
    if not isinstance(batch, Mapping):
        form = ", ".join(f"{name!r}: ..." for name in (*modalities, "labels"))
        raise TypeError(
            f"data_collator returned a {type(batch).__name__} for {argument}; let it return {{{form}}}."
        )
    keys = list(batch)
    unknown = [key for key in keys if key not in modalities and key not in BATCH_KEYS]
    if unknown:
        raise ValueError(
            f"data_collator made a batch of {argument} with the keys {keys}, of which the model does not take "
            f"{unknown}; {nested_form(keys, modalities) or _renaming(modalities)}."
        )
    if "labels" not in batch:
        raise ValueError(
            f"data_collator made a batch of {argument} with the keys {keys} but no 'labels'; add them."
        )


def nested_form(keys: Iterable[str], modalities: Sequence[str]) -> str | None:
    """What to do where inputs of an encoder are at the top level of a row; None if there are none.

    Args:
        keys: of a row or a batch.
        modalities: names of the model's modalities.
    """
    given = list(keys)
    flat = [key for key in given if key in ENCODER_INPUTS and key not in modalities]
    if not flat:
        return None
    absent = [name for name in modalities if name not in given] or list(modalities[:1])
    named = " and ".join(map(repr, flat))
    by_encoder = [part for kind in KINDS_OF_INPUTS if (part := [key for key in flat if key in kind])]
    if len(by_encoder) > 1:
        # Masks are those of texts, where there are texts, and else of sounds, which come last.
        owner = next((part for part in by_encoder if "input_ids" in part), by_encoder[-1])
        owner += [key for key in flat if key in FURTHER_INPUTS]
        forms = ", ".join(f"NAME: {_form(part)}" for part in by_encoder)
        return (
            f"{named} are inputs of {len(by_encoder)} encoders and belong under the names of their modalities: "
            f"{{{forms}, 'labels': ...}}, where NAME is one of {absent}"
        )
    return (
        f"{named} {'are inputs' if len(flat) > 1 else 'is an input'} of one encoder and belong"
        f"{'' if len(flat) > 1 else 's'} under the name of its modality: {{{absent[0]!r}: {_form(flat)}, ..., "
        "'labels': ...}"
    )


def _form(keys: Sequence[str]) -> str:
    return f"{{{', '.join(f'{key!r}: ...' for key in keys)}}}"


def _renaming(modalities: Sequence[str]) -> str:
    return f"rename its columns to the modalities {list(modalities)}, or build the model with these names"


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


def _can_be_indexed(dataset: Any) -> bool:
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and len(dataset) > 0


def keys_of_first_row(dataset: Any) -> list[str] | None:
    """The keys of the first row; None if the data set cannot be indexed, or its rows have no keys."""
    if not _can_be_indexed(dataset):
        return None
    row = _first_row(dataset)
    return [str(key) for key in row] if isinstance(row, Mapping) else None


def _first_row(dataset: Any) -> Any:
    with _unchanged_random_state():
        return dataset[0]


def has_transform(dataset: Any) -> bool:
    """Whether `with_transform` or `set_transform` makes the rows of a `datasets.Dataset`."""
    style = getattr(dataset, "format", None)
    return isinstance(style, Mapping) and style.get("type") == "custom"


@contextmanager
def _unchanged_random_state() -> Iterator[None]:
    """A context for looking at rows, whose augmentation may draw random numbers that training would draw."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
