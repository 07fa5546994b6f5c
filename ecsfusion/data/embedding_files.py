"""Files and data sets of embeddings as tables that are read in chunks: parquet, npz, safetensors, CSV, JSON, the Hub.

At most one chunk of rows is in memory at a time. Only npz and text files, which cannot be read in parts, are loaded as
a whole.
"""

import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecsfusion.data.text_tables import read_text_table
from ecsfusion.extras import extra_for

CHUNK = 65_536
"""The most rows of a chunk."""


class Table(Protocol):
    """Named columns of one length that can be read in chunks.

    Attributes:
        num_rows: the length of every column.
        columns: the names of the columns.
    """

    num_rows: int
    columns: tuple[str, ...]

    def chunks(self, columns: Sequence[str], start: int, stop: int) -> Iterator[dict[str, NDArray[Any]]]:
        """The rows [start, stop) of the named columns, in order and in chunks of at most `CHUNK` rows.

        Yields:
            Arrays (n,) or (n, ...) by column.
        """
        ...

    def place(self, row: int) -> str:
        """Where a row lies, for error messages: "row 17 of train.parquet"."""
        ...


def open_tables(paths: Sequence[str], split: str = "train", columns: Sequence[str] | None = None) -> Table:
    """Open one table, or several as one, in the order in which they are given.

    Args:
        paths: as `open_table` takes them, or patterns of files such as "part-*.parquet", which are sorted by name.
        split: the split of data sets; files have none.
        columns: those that are read, see `open_table`.

    Raises:
        ValueError: if there is no such file, it is of another kind, or the tables have no column in common.
    """
    names: list[str] = []
    for path in paths:
        found = [path] if Path(path).exists() or not glob.has_magic(path) else sorted(glob.glob(path))
        if not found:
            raise ValueError(f"no file matches {path!r}; give the name of a file, or another pattern")
        names += found
    tables = [open_table(name, split, columns) for name in names]
    return tables[0] if len(tables) == 1 else TableOfTables(tables)


def open_table(path: str, split: str = "train", columns: Sequence[str] | None = None) -> Table:
    """Open a table of embeddings.

    Args:
        path: a local .parquet, .npz, .safetensors, .csv, .tsv, .json or .jsonl file, or a data set by its name on the
            Hub or its folder.
        split: the split of a data set; files have none.
        columns: those that are read, of one length; None for all. An npz or safetensors file may hold other arrays
            beside them, such as the names of the classes.

    Raises:
        ValueError: if there is no such file, it is of another kind, or damaged.
        ImportError: the extra `data` is not installed, which parquet files and data sets need.
    """
    suffix = Path(path).suffix.lower()
    if suffix in READERS and not Path(path).is_dir():
        if not Path(path).is_file():
            raise ValueError(f"{path} does not exist; give a file or the name of a data set on the Hub")
        try:
            if suffix in ARCHIVES:
                return ARCHIVES[suffix](path, columns)
            return READERS[suffix](path)
        except ImportError:
            # Nothing is known of the file then.
            raise
        except Exception as error:
            # Libraries raise errors of any type for damaged files, most of which do not name the file.
            if path in str(error):
                raise
            raise ValueError(f"{path} cannot be read ({error}); get or write this file anew") from error
    if Path(path).is_file():
        *others, last = READERS
        raise ValueError(f"{path} ends in {suffix or 'nothing'}; files must be {', '.join(others)} or {last}")
    return DatasetTable(path, split)


class ArrayTable:
    """An .npz file: one array per column; those of `columns` (None: all) have the same length."""

    def __init__(self, path: str, columns: Sequence[str] | None = None) -> None:
        with np.load(path, allow_pickle=False) as archive:
            self.columns = tuple(archive.files)
            self._arrays = {
                name: _array_of_archive(archive, name, path) for name in _chosen(self.columns, columns)
            }
        self.num_rows = _common_length(
            {name: len(np.atleast_1d(a)) for name, a in self._arrays.items()}, path
        )
        self._name = Path(path).name

    def place(self, row: int) -> str:
        """See `Table`."""
        return f"row {row} of {self._name}"

    def chunks(self, columns: Sequence[str], start: int, stop: int) -> Iterator[dict[str, NDArray[Any]]]:
        """See `Table`."""
        for first in range(start, stop, CHUNK):
            rows = slice(first, min(first + CHUNK, stop))
            yield {name: self._arrays[name][rows] for name in columns}


class SafetensorsTable:
    """A .safetensors file: one tensor per column; those of `columns` (None: all) have the same length."""

    def __init__(self, path: str, columns: Sequence[str] | None = None) -> None:
        from safetensors import safe_open

        self._file = safe_open(path, "pt")
        self.columns = tuple(self._file.keys())
        names = _chosen(self.columns, columns)
        lengths = {name: (self._file.get_slice(name).get_shape() or [1])[0] for name in names}
        self.num_rows = _common_length(lengths, path)
        self._name = Path(path).name

    def place(self, row: int) -> str:
        """See `Table`."""
        return f"row {row} of {self._name}"

    def chunks(self, columns: Sequence[str], start: int, stop: int) -> Iterator[dict[str, NDArray[Any]]]:
        """See `Table`."""
        for first in range(start, stop, CHUNK):
            last = min(first + CHUNK, stop)
            tensors = {name: self._file.get_slice(name)[first:last] for name in columns}
            # NumPy has no bfloat16.
            yield {
                name: (t.float() if t.is_floating_point() and t.itemsize < 4 else t).numpy()
                for name, t in tensors.items()
            }


class ParquetTable:
    """A .parquet file; a modality is a column of numbers or of equally long lists of numbers."""

    def __init__(self, path: str) -> None:
        with extra_for("a parquet file"):
            import pyarrow.parquet as pq

        self._file = pq.ParquetFile(path, memory_map=False, pre_buffer=False)
        self.num_rows = self._file.metadata.num_rows
        self.columns = tuple(self._file.schema_arrow.names)
        self._name = Path(path).name

    def place(self, row: int) -> str:
        """See `Table`."""
        return f"row {row} of {self._name}"

    def chunks(self, columns: Sequence[str], start: int, stop: int) -> Iterator[dict[str, NDArray[Any]]]:
        """See `Table`."""
        groups: list[int] = []
        offset = first = 0
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if offset < stop and offset + rows > start:
                first = first if groups else offset
                groups.append(group)
            offset += rows
        names = list(dict.fromkeys(columns))
        for batch in self._file.iter_batches(CHUNK, row_groups=groups, columns=names):
            low, high = max(start - first, 0), min(stop - first, len(batch))
            if low < high:
                part = batch.slice(low, high - low)
                yield {name: _from_arrow(part.column(name), name, self.place, first + low) for name in names}
            first += len(batch)


class DatasetTable:
    """A data set of the `datasets` library: a name on the Hub, or a folder.

    A folder must not refer to files outside of it.
    """

    def __init__(self, path: str, split: str) -> None:
        with extra_for(f"the data set {path!r}"):
            from datasets import Dataset, load_dataset, load_dataset_builder, load_from_disk
            from datasets.exceptions import DatasetGenerationError

            from ecsfusion.data.paths import check_data_files, check_saved_files

        if (Path(path) / "dataset_info.json").is_file() or (Path(path) / "dataset_dict.json").is_file():
            check_saved_files(path)
            data = load_from_disk(path)
            if not isinstance(data, Dataset):
                if split not in data:
                    raise ValueError(
                        f"{path} has the splits {sorted(data)} but no {split!r}; name one of them"
                    )
                data = data[split]
        else:
            # datasets names a data set by the last part of its path, which "." has not.
            folder = str(Path(path).resolve()) if Path(path).is_dir() else None
            try:
                files = load_dataset_builder(folder or path).config.data_files or {}
                check_data_files((file for paths in files.values() for file in paths), folder)
                data = load_dataset(folder or path, split=split)
            except DatasetGenerationError as error:
                first: BaseException = error
                while first.__cause__ is not None:
                    first = first.__cause__
                message = " ".join(str(first).split())
                raise ValueError(
                    f"the data set {path!r} cannot be loaded ({type(first).__name__}: {message}); give one of its files"
                ) from error
        self._data = data.with_format("arrow")
        self._split = split
        self.num_rows = len(data)
        self.columns = tuple(data.column_names)

    def place(self, row: int) -> str:
        """See `Table`."""
        return f"row {row} of the split {self._split!r}"

    def chunks(self, columns: Sequence[str], start: int, stop: int) -> Iterator[dict[str, NDArray[Any]]]:
        """See `Table`."""
        names = list(dict.fromkeys(columns))
        data = self._data.select_columns(names)
        for first in range(start, stop, CHUNK):
            part = data[first : min(first + CHUNK, stop)]
            yield {name: _from_arrow(part[name].combine_chunks(), name, self.place, first) for name in names}


class TextFile:
    """A .csv, .tsv, .json or .jsonl file, see `ecsfusion.data.text_tables`."""

    def __init__(self, path: str) -> None:
        self._table = read_text_table(path)
        self.columns, self.num_rows = self._table.columns, self._table.num_rows

    def place(self, row: int) -> str:
        """See `Table`."""
        return self._table.place(row)

    def chunks(self, columns: Sequence[str], start: int, stop: int) -> Iterator[dict[str, NDArray[Any]]]:
        """See `Table`."""
        arrays = {name: self._table.array(name) for name in columns}
        for first in range(start, stop, CHUNK):
            yield {name: array[first : min(first + CHUNK, stop)] for name, array in arrays.items()}


class TableOfTables:
    """Several tables, one after the other; its columns are those that all of them have."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables
        self.columns = tuple(
            name for name in tables[0].columns if all(name in table.columns for table in tables)
        )
        self.num_rows = sum(table.num_rows for table in tables)
        if not self.columns:
            raise ValueError(
                f"the tables have no column in common: {[list(table.columns) for table in tables]}; rename columns"
            )

    def place(self, row: int) -> str:
        """See `Table`."""
        for table in self._tables:
            if row < table.num_rows:
                return table.place(row)
            row -= table.num_rows
        raise IndexError(f"there are {self.num_rows} rows")

    def chunks(self, columns: Sequence[str], start: int, stop: int) -> Iterator[dict[str, NDArray[Any]]]:
        """See `Table`."""
        offset = 0
        for table in self._tables:
            low, high = max(start - offset, 0), min(stop - offset, table.num_rows)
            if low < high:
                yield from table.chunks(columns, low, high)
            offset += table.num_rows


ARCHIVES: dict[str, Callable[[str, Sequence[str] | None], Table]] = {
    ".npz": ArrayTable,
    ".safetensors": SafetensorsTable,
}
"""What opens a file that may hold other arrays beside the columns."""
READERS: dict[str, Callable[[str], Table]] = {
    ".parquet": ParquetTable,
    ".npz": ArrayTable,
    ".safetensors": SafetensorsTable,
    ".csv": TextFile,
    ".tsv": TextFile,
    ".json": TextFile,
    ".jsonl": TextFile,
}
"""What opens a file, by its suffix."""


def as_rows(value: NDArray[Any], column: str) -> Tensor:
    """A chunk of a modality's column as (n, D); a column of single numbers has D = 1.

    Raises:
        TypeError: for values that are no numbers.
    """
    if value.dtype.kind not in "biuf":
        raise TypeError(f"column {column!r} must hold numbers or lists of numbers, got {value.dtype}")
    return torch.from_numpy(np.array(value)).reshape(len(value), -1)


def _from_arrow(column: Any, name: str, place: Callable[[int], str], first_row: int) -> NDArray[Any]:
    """An Arrow array as a NumPy array (n,) or (n, D).

    Args:
        column: the array.
        name: that of the column.
        place: says where a row lies.
        first_row: the number of the first row.
    """
    import pyarrow as pa

    _check_no_null(column, name, lambda index: place(first_row + index))
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if not pa.types.is_nested(column.type):
        return column.to_numpy(zero_copy_only=False)
    return _rows_of_lists(column, name, lambda index: place(first_row + index)).reshape(len(column), -1)


def _rows_of_lists(column: Any, name: str, place: Callable[[int], str]) -> NDArray[Any]:
    """The numbers of lists, which may hold lists, in one row each; `place` takes the number of a list."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # A struct is an image or a sound, for instance.
    if pa.types.is_struct(column.type) or pa.types.is_map(column.type):
        raise TypeError(
            f"column {name!r} must hold numbers or lists of numbers, got {column.type}; give embeddings"
        )
    lengths = np.asarray(pc.list_value_length(column))
    if (lengths != lengths[0]).any():
        row = int(np.flatnonzero(lengths != lengths[0])[0])
        raise ValueError(
            f"column {name!r} has {lengths[row]} numbers in {place(row)} and {lengths[0]} before; pool or pad every row"
            " to one length"
        )
    values, width = column.flatten(), max(int(lengths[0]), 1)

    def place_of_part(index: int) -> str:
        return place(index // width)

    _check_no_null(values, name, place_of_part)
    if pa.types.is_nested(values.type):
        return _rows_of_lists(values, name, place_of_part)
    return values.to_numpy(zero_copy_only=False)


def _check_no_null(column: Any, name: str, place: Callable[[int], str]) -> None:
    if column.null_count:
        row = int(np.flatnonzero(np.asarray(column.is_null()))[0])
        raise ValueError(f"column {name!r} has no value in {place(row)}; remove the row or fill it")


def _chosen(names: Sequence[str], columns: Sequence[str] | None) -> list[str]:
    """The names that are among the columns; all of them where the columns are None or not there."""
    return [name for name in names if columns is not None and name in columns] or list(names)


def _array_of_archive(archive: Any, name: str, path: str) -> NDArray[Any]:
    try:
        return archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(
            f"column {name!r} of {path} holds objects of Python, which are not read; save numbers or text, such as "
            "np.array(names, dtype=str)"
        ) from error


def _common_length(lengths: dict[str, int], path: str) -> int:
    if not lengths:
        raise ValueError(f"{path} holds no arrays")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path} must hold arrays of one length, got {lengths}")
    return next(iter(lengths.values()))
