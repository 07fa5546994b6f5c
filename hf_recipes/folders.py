"""Finds the tables in a folder of data: CSV, JSON and Parquet files, with the paths of media beside them or without.

`datasets` takes a folder of pictures and a table for pictures alone, with the table left out. Here a table that has the
column of the labels decides, and pictures and sounds are what its paths lead to. `metadata.csv` and its like, as the
layouts imagefolder and audiofolder have it, are such tables. A folder without a table is left to `datasets`.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
"""What `datasets` calls the format of a table, by its suffix."""
OTHER_TABLES = {".xlsx", ".xls", ".ods", ".pkl", ".feather", ".gz"}
"""Suffixes of tables that are not read."""
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
SOUNDS = {".wav", ".flac", ".ogg", ".opus", ".mp3"}
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The words in the name of a file or a folder that name its split, as in `datasets`."""


def tables_of(place: Path, split_names: Sequence[str], label_column: str) -> dict[str, list[Path]]:
    """The tables of each split in a folder; empty where `datasets` knows better what is there.

    Args:
        place: the folder, or one table, which is the split "train".
        split_names: further names of splits, which a file or folder may have.
        label_column: the column that a table must have, if any of them has it.

    Raises:
        ValueError: tables of several kinds, or of several data sets.
    """
    if place.is_file():
        return {"train": [place]}
    if _says_itself(place):
        return {}
    files = [path for path in sorted(place.rglob("*")) if _is_visible(path, place)]
    tables = [path for path in files if path.suffix.lower() in KINDS and not _is_info(path)]
    columns = {path: columns_of(path) for path in tables}
    labelled = [path for path in tables if label_column in columns[path]]
    kept = {path.suffix for path in labelled}
    # A damaged table is no reason to train without its rows; whoever loads it says what is wrong.
    labelled = [path for path in tables if path in labelled or (not columns[path] and path.suffix in kept)]
    has_media = any(path.suffix.lower() in IMAGES | SOUNDS for path in files)
    if not labelled and has_media:
        return {}
    chosen = labelled or tables
    kinds = {KINDS[path.suffix.lower()] + path.suffix.lower() * (path.suffix == ".tsv") for path in chosen}
    if len(kinds) > 1:
        names = ", ".join(path.name for path in chosen[:4])
        raise ValueError(f"there are tables of several kinds ({names}); give one kind, such as .csv")
    splits: dict[str, list[Path]] = {}
    for path in chosen:
        splits.setdefault(_split_of(path.relative_to(place), split_names), []).append(path)
    if "" in splits:
        # A table without the name of a split is of the training rows where no other is.
        rest = splits.pop("")
        splits.setdefault("train", rest)
    _check_one_data_set(place, splits, columns)
    # The first one decides the types of the columns.
    return {split: splits[split] for split in sorted(splits, key=lambda name: (name != "train", name))}


def left_out(place: Path, used: Sequence[str], split_names: Sequence[str]) -> dict[str, str]:
    """What is known of each table in a folder that is not among those used: its split, "" for none, to a few words.

    Of several tables of one split the first.
    """
    said: dict[str, str] = {}
    for path in sorted(place.rglob("*")) if place.is_dir() else []:
        suffix = path.suffix.lower()
        if suffix not in KINDS.keys() | OTHER_TABLES or str(path.absolute()) in used:
            continue
        if not _is_visible(path, place) or _is_info(path):
            continue
        columns = columns_of(path)
        what = f"has the columns {columns}" if columns else "cannot be read as text in UTF-8"
        if suffix in OTHER_TABLES:
            what = f"is none of {', '.join(KINDS)}"
        said.setdefault(_split_of(path.relative_to(place), split_names), f"{path.name}, which {what}")
    return said


def _check_one_data_set(
    place: Path, splits: Mapping[str, Sequence[Path]], columns: Mapping[Path, Sequence[str]]
) -> None:
    """Raises ValueError where tables of one split lie in different folders and have different columns."""
    for split, paths in splits.items():
        # In JSON a key may be absent from the first row.
        known = [path for path in paths if columns[path] and KINDS[path.suffix.lower()] != "json"]
        kinds = {frozenset(columns[path]) for path in known}
        folders = sorted({path.relative_to(place).parts[0] for path in known})
        if len(kinds) > 1 and len({path.parent for path in known}) > 1:
            raise ValueError(
                f"the tables of {split} below {place} have different columns, as those of several data sets; give one "
                f"folder: {', '.join(folders)}"
            )


def columns_of(table: Path) -> list[str]:
    """The names of the columns of a table, of JSON those of the first row; none if it cannot be read."""
    try:
        kind = KINDS[table.suffix.lower()]
        if kind == "parquet":
            return list(pq.read_schema(table).names)
        with table.open(encoding="utf-8-sig", newline="") as file:
            if kind == "csv":
                return next(csv.reader(file, delimiter=_separator(table)), [])
            if table.suffix.lower() == ".json":
                text = file.read()
                rows = json.loads(text if text.lstrip().startswith("[") else text.splitlines()[0])
                row = rows[0] if isinstance(rows, list) and rows else rows
            else:
                row = json.loads(next(line for line in file if line.strip()))
            return list(row) if isinstance(row, dict) else []
    except Exception:
        # Whoever loads it says what is wrong with it.
        return []


def rows_of(table: Path) -> int | None:
    """The number of rows of a table; None if it cannot be counted."""
    try:
        kind = KINDS.get(table.suffix.lower())
        if kind == "parquet":
            return pq.read_metadata(table).num_rows
        with table.open(encoding="utf-8-sig", newline="") as file:
            if kind == "csv":
                return sum(bool(cells) for cells in csv.reader(file, delimiter=_separator(table))) - 1
            if kind == "json":
                text = file.read() if table.suffix.lower() == ".json" else ""
                if text.lstrip().startswith("["):
                    return len(json.loads(text))
                return sum(bool(line.strip()) for line in (text.splitlines() or file))
    except Exception:
        # Whoever loads it says what is wrong with it.
        return None
    return None


def loading_options(table: Path, text_columns: Sequence[str]) -> dict[str, Any]:
    """The options with which `datasets` reads such a table.

    A text such as "NA", "007" or "1e5" stays a text, and only an empty cell is missing.
    """
    if KINDS[table.suffix.lower()] != "csv":
        return {}
    return {
        "sep": _separator(table),
        "keep_default_na": False,
        "na_values": [""],
        "converters": dict.fromkeys(text_columns, text_or_none),
    }


def text_or_none(cell: str) -> str | None:
    """A cell of a CSV file as it is; None for an empty one."""
    return cell or None


def renamed_columns(
    columns: Sequence[str], wanted: Sequence[str], first_row: Mapping[str, Any]
) -> dict[str, str]:
    """Columns of paths under the names that the recipe uses: of `image_file_name` (or names) "image".

    As in the layouts imagefolder and audiofolder, `file_name` is "image" or "audio" by the suffix of the files.
    """
    renamed = {}
    for name in wanted:
        if name in columns:
            continue
        candidates = [f"{name}_file_name", f"{name}_file_names"]
        kind = {"image": IMAGES, "audio": SOUNDS}.get(name, IMAGES | SOUNDS if len(wanted) == 1 else set())
        if Path(str(first_row.get("file_name"))).suffix.lower() in kind:
            candidates.append("file_name")
        found = next((column for column in candidates if column in columns), None)
        if found is not None:
            renamed[found] = name
    return renamed


def _split_of(path: Path, split_names: Sequence[str]) -> str:
    """The split whose name is in the path, the nearest part first; "" where none is."""
    for part in (path.stem, *(parent.name for parent in path.parents)):
        if part in split_names:
            return part
        words = re.split(r"[-._ 0-9]+", part.lower())
        for split, names in SPLIT_WORDS.items():
            if any(word in names for word in words):
                return split
    return ""


def _says_itself(folder: Path) -> bool:
    """Whether the folder names its own files: in the header of a README, as on the Hub."""
    readme = folder / "README.md"
    header = readme.read_text(encoding="utf-8", errors="replace").split("---") if readme.is_file() else []
    return len(header) > 2 and not header[0].strip() and "configs:" in header[1]


def _is_visible(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return path.is_file() and not any(part.startswith((".", "__")) for part in parts)


def _is_info(path: Path) -> bool:
    return path.name in (
        "dataset_info.json",
        "dataset_infos.json",
        "dataset_dict.json",
        "state.json",
        "config.json",
    )


def _separator(table: Path) -> str:
    return "\t" if table.suffix.lower() == ".tsv" else ","
