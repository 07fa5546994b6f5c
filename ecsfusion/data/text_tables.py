"""Columns of numbers, text and lists of numbers from CSV, TSV, JSON and JSON lines files, which are read as a whole."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CELL = 1 << 30
"""The most characters of one cell of a CSV file; Python's own limit is too small for a long embedding."""


def read_text_table(path: str) -> "TextTable":
    """Read a .csv, .tsv, .json (a list of objects, or one object a line) or .jsonl file.

    A cell of a CSV file is a number, a word, or a list of numbers such as "[0.5, 1e-3]", with or without commas.

    Raises:
        ValueError: no rows, no text in UTF-8, a line that cannot be read, or a row of another length than the header.
    """
    suffix = Path(path).suffix.lower()
    read = {".csv": _csv_rows, ".tsv": _csv_rows}.get(suffix, _json_rows)
    columns: dict[str, list[Any]] = {}
    number = 0
    try:
        for row in read(path):
            for name, value in row.items():
                # Rows before may lack the column.
                columns.setdefault(name, [None] * number).append(_compact(value))
            number += 1
            for cells in columns.values():
                if len(cells) < number:
                    cells.append(None)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); save it as such") from error
    if not columns:
        raise ValueError(f"{path} holds no rows; give at least one")
    return TextTable(columns, number, str(Path(path).name))


class TextTable:
    """The columns of a text file; each is converted when it is first used, see `Table`."""

    def __init__(self, columns: dict[str, list[Any]], num_rows: int, name: str) -> None:
        self._cells = columns
        self._arrays: dict[str, NDArray[Any]] = {}
        self._name = name
        self.columns = tuple(columns)
        self.num_rows = num_rows

    def place(self, row: int) -> str:
        """See `Table`."""
        return f"row {row} of {self._name}"

    def array(self, column: str) -> NDArray[Any]:
        """A column as an array (n,) of integers, real numbers or strings, or (n, D) of real numbers.

        Raises:
            ValueError: no value in a row, or values of different kinds or lengths; the message names the row.
        """
        if column not in self._arrays:
            self._arrays[column] = self._convert(column, self._cells[column])
        return self._arrays[column]

    def _convert(self, column: str, cells: list[Any]) -> NDArray[Any]:
        kinds = [_kind(cell) for cell in cells]
        if None in kinds:
            row = kinds.index(None)
            raise ValueError(
                f"column {column!r} has no value in {self.place(row)}; remove the row or fill it"
            )
        if "odd" in kinds:
            row = kinds.index("odd")
            shown = repr(cells[row])[:60]
            raise TypeError(
                f"column {column!r} must hold numbers, words or lists of numbers, got {shown} in {self.place(row)}"
            )
        if len(set(kinds)) > 1:
            row = next(index for index, kind in enumerate(kinds) if kind != kinds[0])
            raise ValueError(
                f"column {column!r} holds a {kinds[row]} in {self.place(row)} and a {kinds[0]} before; give one kind"
            )
        if kinds[0] == "list":
            shapes = [cell.shape for cell in cells]
            row = next((index for index, shape in enumerate(shapes) if shape != shapes[0]), -1)
            if row >= 0:
                raise ValueError(
                    f"column {column!r} has {cells[row].size} numbers in {self.place(row)} and {cells[0].size} before; "
                    "pool or pad every row to one length"
                )
            return np.stack(cells).reshape(len(cells), -1)
        return np.array(cells)


def _csv_rows(path: str) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file, whose cells are text; numbers and lists where all cells of the column are."""
    before = csv.field_size_limit(MAX_CELL)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.lower().endswith(".tsv") else ",", strict=True)
            header = next(reader, None)
            if not header:
                raise ValueError(
                    f"{path} holds no header; write the names of the columns into the first line"
                )
            if len(header) == 1 and ";" in header[0]:
                raise ValueError(
                    f"the header of {path} is one cell with semicolons, {header[0][:60]!r}; separate the cells by "
                    "commas, or by tabs in a .tsv file"
                )
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise ValueError(f"{path} has two columns {twice!r}; rename one of them")
            rows = []
            for cells in reader:
                if not cells:
                    # A blank line.
                    continue
                if len(cells) != len(header):
                    raise ValueError(
                        f"line {reader.line_num} of {path} has {len(cells)} cells, and the header {len(header)}; "
                        "correct it, or put a cell with commas in quotes"
                    )
                rows.append(cells)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} of {path} is no CSV ({error}); correct it") from error
    finally:
        csv.field_size_limit(before)
    columns = [_parse_column(list(cells)) for cells in zip(*rows, strict=True)]
    return (dict(zip(header, cells, strict=True)) for cells in zip(*columns, strict=True))


def _parse_column(cells: list[str]) -> list[Any]:
    """The cells of a column as numbers or lists where all of them are, else as text; None for an empty one."""
    kinds: tuple[Callable[[str], Any], ...] = (int, float, _list_of)
    for parse in kinds:
        try:
            return [parse(cell) if cell.strip() else None for cell in cells]
        except ValueError:
            continue
    return [cell if cell.strip() else None for cell in cells]


def _list_of(cell: str) -> NDArray[Any]:
    """A list of numbers as `json`, or as NumPy prints it, without commas."""
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]")) or "..." in text:
        raise ValueError(f"{cell[:60]!r} is no list of numbers")
    if "," in text:
        return np.array(json.loads(text), dtype=np.float64)
    return np.array([float(word) for word in text.strip("[]").split()])


def first_that_is_unlike(cells: Iterable[Any]) -> int:
    """The first cell that is neither a number nor a list of numbers; else the first of another kind than the first."""
    kinds = [_kind_of_text(cell) for cell in cells]
    if "word" in kinds:
        return kinds.index("word")
    return next((row for row, kind in enumerate(kinds) if kind != kinds[0]), 0)


def _kind_of_text(cell: Any) -> str:
    for kind, parse in (("number", float), ("list", _list_of)):
        try:
            parse(cell)
        except (TypeError, ValueError, AttributeError):
            continue
        return kind
    return "word"


def _json_rows(path: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file, or of a JSON file that is one list of them."""
    with open(path, encoding="utf-8-sig") as file:
        if path.lower().endswith(".json") and _first_letter(file) == "[":
            try:
                rows = json.load(file)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} is no JSON ({error}); correct it") from error
            for row, value in enumerate(rows):
                yield _object(value, f"row {row} of {path}")
            return
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} of {path} is no JSON ({error}); correct it") from error
            yield _object(value, f"line {number} of {path}")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a {type(value).__name__}; give an object of columns and values")
    return value


def _first_letter(file: Any) -> str:
    letter = file.read(1)
    while letter.isspace():
        letter = file.read(1)
    file.seek(0)
    return letter


def _compact(value: Any) -> Any:
    """A list of numbers as an array, which takes a quarter of its memory."""
    if isinstance(value, list):
        try:
            array = np.array(value)
        except ValueError:
            # Of lists of different lengths.
            return value
        return array.astype(np.float64) if array.dtype.kind in "biuf" and array.size else value
    return value


def _kind(cell: Any) -> str | None:
    """What a cell is: "list", "number", "word"; None for no value, "odd" for anything else."""
    if cell is None:
        return None
    if isinstance(cell, np.ndarray):
        return "list"
    if isinstance(cell, str):
        return "word"
    is_number = isinstance(cell, (bool, int, float)) and (isinstance(cell, float) or -(2**63) <= cell < 2**63)
    return "number" if is_number else "odd"
