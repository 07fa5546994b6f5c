"""Which files a data set may name: its own, and no others of this machine.

Data sets come from strangers. A row, a table of metadata or the `data_files` of a README can name any path, such as
`../../secret.png` or a link; what is read could end in a model card. In rows that are given to a `FusionProcessor`
directly, paths are the user's own and mean what they say.
"""

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import constants


def media_folders(data_dir: str | None) -> list[Path]:
    """Where the files of a data set may lie: its folder, which goes first, and where downloads and archives go."""
    caches = [
        Path(datasets.config.DOWNLOADED_DATASETS_PATH),
        Path(datasets.config.HF_DATASETS_CACHE) / "downloads",
        Path(constants.HF_HUB_CACHE),
    ]
    return caches if data_dir is None else [Path(data_dir), *caches]


def confined(value: Any, data_dir: str | None) -> Any:
    """A raw image, sound or video whose paths are whole and lead to files of the data set.

    Relative paths are those of the folder `data_dir`.

    Raises:
        ValueError: a path that leads out of it.
    """
    if isinstance(value, Mapping):
        if value.get("bytes") is not None or value.get("path") is None:
            return value
        return {**value, "path": _inside(value["path"], data_dir)}
    if isinstance(value, (list, tuple)):
        return [confined(part, data_dir) if _may_be_path(part) else part for part in value]
    return _inside(value, data_dir) if isinstance(value, (str, PathLike)) else value


def check_data_files(files: Iterable[str], data_dir: str | None) -> None:
    """Raises ValueError for a file of tables or media that lies neither in `data_dir` nor, without one, on the Hub."""
    for file in files:
        is_remote = str(file).startswith(("hf://", "https://"))
        if data_dir is None and not is_remote:
            raise ValueError(f"the data set names the local file {str(file)!r}, which is not its own")
        if data_dir is not None and not (is_remote and "::" not in str(file)):
            _inside(file, data_dir)


def _may_be_path(value: Any) -> bool:
    return isinstance(value, (str, PathLike, Mapping, list, tuple))


def _inside(path: Any, data_dir: str | None) -> str:
    folders = media_folders(data_dir)
    place = Path(path) if data_dir is None else Path(data_dir) / path
    try:
        resolved = place.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a zero in the name
        raise ValueError(f"{str(path)!r} is no path ({error}); correct it or leave this row out") from error
    if not any(resolved.is_relative_to(folder.resolve()) for folder in folders):
        where = "the data set" if data_dir is None else f"the folder {data_dir!r}"
        raise ValueError(
            f"{str(path)!r} leads out of {where}; put the file itself there, not a way or a link to it"
        )
    return str(resolved)
