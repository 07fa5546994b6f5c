"""Finds the file and the row in it of each row of a data set, for error messages."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import pyarrow.parquet as pq


def places_of_rows(stored: str, rows: datasets.Dataset, files: Mapping[str, Sequence[str]]) -> list[str]:
    """A name for each row of a stored split: "row 17 of train-00001.parquet", or "row 117 of the stored split 'train'".

    Args:
        stored: the split's name in the data set.
        rows: all of its rows, in the order of the files.
        files: those of each stored split, as `datasets` names them. Only local Parquet files tell their numbers of
            rows without being read.
    """
    paths = [Path(file) for file in files.get(stored, ())]
    if paths and all(path.suffix == ".parquet" and path.is_file() for path in paths):
        sizes = [pq.read_metadata(path).num_rows for path in paths]
        if sum(sizes) == len(rows):
            return [
                f"row {row} of {path.name}"
                for path, size in zip(paths, sizes, strict=True)
                for row in range(size)
            ]
    return [f"row {row} of the stored split {stored!r}" for row in range(len(rows))]


def unreadable_parquet(files: Mapping[str, Sequence[str]]) -> str | None:
    """The first local Parquet file that cannot be read to its end; None if there is none."""
    for path in (Path(file) for paths in files.values() for file in paths):
        if path.suffix == ".parquet" and path.is_file():
            try:
                for _ in pq.ParquetFile(path).iter_batches():
                    pass
            except Exception:
                # Arrow raises many kinds of errors for a damaged file.
                return str(path)
    return None
