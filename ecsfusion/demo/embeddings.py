"""A file of embeddings that was uploaded: its columns, and what they know about a label."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ecsfusion.data.embedding_files import READERS, Table, open_table
from ecsfusion.pid.decomposition import PID
from ecsfusion.pid.stream import stream_pid

MAX_UNPACKED_BYTES = 2**29
"""Most bytes of an uploaded file after unpacking: a small archive may claim to hold any number."""
MAX_TEXT_BYTES = 20 * 2**20
"""Largest CSV or JSON file: as objects of Python it takes many times its size."""
LABEL_NAMES = ("label", "labels", "target", "class", "y")
TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")


def columns_of(path: str) -> tuple[list[str], list[str], str | None]:
    """The columns of an uploaded file.

    Returns:
        All names; of these, the columns that hold embeddings, as far as their first rows tell; and the column that is
        named like a label, or None.

    Raises:
        ValueError: a file of another kind, a damaged one, or one that is too large after unpacking.
    """
    table = _open(path, None)
    names = list(table.columns)
    embeddings = []
    for name in names:
        # A column of another kind, such as one of texts of different lengths, is no embedding.
        with suppress(Exception):
            chunk = next(table.chunks([name], 0, min(table.num_rows, 8)))[name]
            if chunk.dtype.kind in "biuf" and chunk.ndim > 1:
                embeddings.append(name)
    label = next((name for key in LABEL_NAMES for name in names if name.lower() == key), None)
    return names, embeddings, label


def measure_file(
    path: str, label: str | None, columns: Sequence[str], group: str | None = None, bins: int | None = None
) -> dict[str, PID]:
    """Decompose what columns of an uploaded file know about a label.

    Args:
        path: the file.
        label: the column of the label.
        columns: those of the modalities, two or more; their names are those of the modalities.
        group: the column of what rows share; None where they stand alone.
        bins: the number of classes into which a label of real numbers is cut.

    Returns:
        PIDs by name, as `stream_pid` returns them.

    Raises:
        ValueError: as `columns_of` and `stream_pid` raise it; no label, or fewer than two columns.
        TypeError: columns whose values are of no usable type.
    """
    if not label:
        raise ValueError("no label is chosen; choose the column that holds it.")
    chosen = [name for name in columns if name not in (label, group)]
    if len(chosen) < 2:
        raise ValueError(f"{len(chosen)} columns of embeddings are chosen; choose two or more.")
    modalities: Mapping[str, str] = {name: name for name in chosen}
    table = _open(path, [label, *chosen, *([group] if group else [])])
    return stream_pid(table, modalities, label, group=group or None, bins=bins)


def _open(path: str, columns: Sequence[str] | None) -> Table:
    """The table in an uploaded file, never a data set by its name or in a folder.

    Its name is a number of this server's; messages have the file's own name in its place.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in READERS or not file.is_file():
        raise ValueError(f"{file.name} is no file of embeddings; give one of {', '.join(READERS)}.")
    try:
        size = _unpacked_bytes(file)
        limit = MAX_TEXT_BYTES if suffix in TEXT_SUFFIXES else MAX_UNPACKED_BYTES
        if size > limit:
            raise ValueError(
                f"{file.name} holds {size / 2**20:,.0f} MiB; the page takes at most {limit // 2**20}: give fewer rows, "
                "or use `ecsfusion pid`."
            )
        return open_table(path, columns=columns)
    except Exception as error:
        # The path is one of this server.
        sentence = str(error).replace(str(file), file.name)
        raise ValueError(sentence if file.name in sentence else f"{file.name}: {sentence}") from error


def _unpacked_bytes(file: Path) -> int:
    if file.suffix.lower() == ".npz":
        return _bytes_of_arrays(file)
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        metadata = pq.ParquetFile(file, memory_map=False).metadata
        groups = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        # A column of one repeated value takes no bytes, and as many as it has rows where it is read.
        return max(groups, 8 * metadata.num_rows * metadata.num_columns)
    return file.stat().st_size


def _bytes_of_arrays(file: Path) -> int:
    """The bytes of the arrays of an npz file, of which NumPy takes the size from their headers."""
    total = 0
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0
                shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(stream)
            total += max(int(np.prod(shape, dtype=object)) * dtype.itemsize, entry.file_size)
    return total
