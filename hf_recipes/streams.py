"""Training rows that are read while they are trained on, from Parquet or WebDataset files in shards."""

from collections.abc import Callable, Mapping
from typing import Any

import datasets

from hf_recipes.configuration import RecipeArguments

MEDIA = (datasets.Image, datasets.Audio)
STORED = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
"""What a column of media holds."""


def check_streaming(recipe: RecipeArguments, max_steps: int) -> None:
    """Check the options of a recipe whose training rows are a stream.

    Args:
        recipe: the recipe.
        max_steps: of the training arguments.

    Raises:
        ValueError: no number of steps, or an option that reads all rows before training.
    """
    if not recipe.streaming:
        return
    if max_steps <= 0:
        raise ValueError(
            "streaming is true, and a stream has no length: give max_steps, the budget of both stages"
        )
    if recipe.skip_undecodable:
        raise ValueError(
            "skip_undecodable is true, and looks at every row before training, which streaming does not; leave one of "
            "them out"
        )


def evaluation_rows(stream: Any) -> datasets.Dataset:
    """All rows of a stream: evaluations and the controller need them at once, media as they are stored."""
    rows = undecoded(stream)
    loaded = datasets.Dataset.from_list([*rows], rows.features)
    for column, feature in stream.features.items():
        if isinstance(feature, MEDIA):
            loaded = loaded.cast_column(column, type(feature)(decode=False))
    return loaded


def undecoded(stream: Any) -> Any:
    """The stream with its pictures and sounds as bytes: ecsfusion decodes them, and its errors name the row.

    Where a stream says that they are media, datasets encodes them anew, row by row.
    """
    for column, feature in stream.features.items():
        if isinstance(feature, MEDIA):
            stream = stream.cast_column(column, STORED)
    return stream


def check_stream(stream: Any, columns: list[str], where: str) -> None:
    """Check that these rows are a stream, with the columns of the recipe.

    Args:
        stream: the training split.
        columns: those that the recipe reads.
        where: names the split in errors.

    Raises:
        ValueError: a format that is not read as a stream, or a column that is missing.
    """
    if not isinstance(stream, datasets.IterableDataset) or stream.features is None:
        raise ValueError(
            f"{where}: streaming is true, but it is read from Parquet or WebDataset files alone, whose columns are "
            "known; write such files, or leave streaming out"
        )
    missing = [column for column in columns if column not in stream.features]
    if missing:
        raise ValueError(
            f"{where}: there is no column {missing[0]!r} among {[*stream.features]}; correct its name in the config"
        )


def processed_stream(
    stream: Any,
    read: Callable[[Mapping[str, Any], int], dict[str, Any]],
    *,
    shuffle_buffer: int,
    seed: int,
) -> Any:
    """The rows of a stream as the encoders take them; each process of a run reads its own shards.

    Args:
        stream: the training split.
        read: makes the row that a model takes from a stored row and its number.
        shuffle_buffer: from so many rows each one is drawn, and the order of the shards is drawn too; 0 for the order
            of the files.
        seed: of both.
    """
    rows = undecoded(stream)
    if shuffle_buffer:
        rows = rows.shuffle(seed=seed, buffer_size=shuffle_buffer)
    return rows.map(read, with_indices=True, remove_columns=[*stream.features])
