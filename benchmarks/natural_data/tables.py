"""Rows become `train.parquet`, `validation.parquet` and `test.parquet`, whose schema names the classes and media."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

Rows = Sequence[Mapping[str, Any]]


def write_splits(
    splits: Mapping[str, Rows], features: datasets.Features, folder: Path, row_group_size: int
) -> None:
    """Write `folder/SPLIT.parquet` for every split; the folder is made.

    Args:
        splits: the rows by split; media as {"bytes": ..., "path": ...}.
        features: of the columns.
        folder: where to.
        row_group_size: of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        table = pa.Table.from_pylist(list(rows), schema=features.arrow_schema)
        # Repeated media are stored once.
        pq.write_table(
            table,
            folder / f"{name}.parquet",
            compression="zstd",
            row_group_size=row_group_size,
            dictionary_pagesize_limit=1 << 26,
            data_page_size=1 << 22,
        )


def count_rows(splits: Mapping[str, Rows], names: Sequence[str], group: str) -> str:
    """A table in Markdown: rows, and in brackets groups, of each class and split.

    Args:
        splits: the rows by split.
        names: of the classes.
        group: the column of groups.
    """
    lines = [f"| class | {' | '.join(f'{name} rows (groups)' for name in splits)} |"]
    lines.append("| --- |" + " ---: |" * len(splits))
    rows = {name: Counter(row["label"] for row in split) for name, split in splits.items()}
    groups = {name: {(row["label"], row[group]) for row in split} for name, split in splits.items()}
    for label, name in enumerate(names):
        cells = [
            f"{rows[split][label]} ({sum(each == label for each, _ in groups[split])})" for split in splits
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    cells = [f"{len(split)} ({len({row[group] for row in split})})" for split in splits.values()]
    return "\n".join([*lines, f"| all | {' | '.join(cells)} |"])
