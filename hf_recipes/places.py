"""Finds the file and the row in it of each row of a data set, for error messages."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import pyarrow.parquet as pq

from hf_recipes.folders import rows_of


def places_of_rows(
    stored: str, rows: datasets.Dataset, files: Mapping[str, Sequence[str]], data_dir: str | None = None
) -> list[str]:
    """A name for each row of a stored split: "row 17 of train-00001.parquet", or "row 117 of the stored split 'train'".

    Args:
        stored: the split's name in the data set.
        rows: all of its rows, in the order of the files.
        files: those of each stored split, as `datasets` names them.
        data_dir: the folder from which a file is named; None to name it alone.
    """
    paths = [Path(file) for file in files.get(stored, ())]
    sizes = [rows_of(path) if path.is_file() else None for path in paths]
    known = [size for size in sizes if size is not None]
    if paths and len(known) == len(paths) and sum(known) == len(rows):
        names = [_name_of(path, data_dir) for path in paths]
        return [
            f"row {row} of {name}" for name, size in zip(names, known, strict=True) for row in range(size)
        ]
    return [f"row {row} of the stored split {stored!r}" for row in range(len(rows))]


def folder_of_place(place: str, data_dir: str) -> str:
    """The folder of the file that a place names, to which paths in this file may be relative."""
    name = place.partition(" of ")[2]
    file = Path(data_dir) / name
    return str(file.parent if file.is_file() else data_dir)


def _name_of(path: Path, data_dir: str | None) -> str:
    if data_dir is None or not path.resolve().is_relative_to(Path(data_dir).resolve()):
        return path.name
    return path.resolve().relative_to(Path(data_dir).resolve()).as_posix()


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
