"""Checks that a data set names only its own files, and no others of this machine.

Data sets may come from untrusted sources. A row, a table of metadata or the `data_files` of a README can name any path,
such as `../../secret.png` or a link, and the contents could end in a model card. In rows that are passed to a
`FusionProcessor` directly, paths are the user's own and are not checked.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import constants

from ecsfusion.data.missing_files import is_address, no_file, shortened


def media_folders(data_dir: str | None) -> list[Path]:
    """The folders where files of a data set may be: its own, which is the first, and those of downloads."""
    caches = [
        Path(datasets.config.DOWNLOADED_DATASETS_PATH),
        Path(datasets.config.HF_DATASETS_CACHE) / "downloads",
        Path(constants.HF_HUB_CACHE),
    ]
    return caches if data_dir is None else [Path(data_dir), *caches]


def confined(value: Any, data_dir: str | None, starts: Sequence[str] = ()) -> Any:
    """A raw image, sound or video with absolute paths, which lead to files of the data set.

    Args:
        value: the raw value; values without paths are returned as they are.
        data_dir: the folder of the data set, to which paths are relative; None for one that was downloaded.
        starts: folders to which paths are relative instead, of which the first where there is such a file counts. They
            belong to the data set.

    Raises:
        ValueError: a path that leads out of the data set.
    """
    if isinstance(value, Mapping):
        if value.get("bytes") is not None or value.get("path") is None:
            return value
        return {**value, "path": _inside(value["path"], data_dir, starts)}
    if isinstance(value, (list, tuple)):
        return [confined(part, data_dir, starts) if _may_be_path(part) else part for part in value]
    return _inside(value, data_dir, starts) if isinstance(value, (str, PathLike)) else value


def check_data_files(files: Iterable[str], data_dir: str | None) -> None:
    """Check where the files of a data set are: in its folder, or on the Hub where it has no folder.

    Args:
        files: paths of tables or media, or addresses.
        data_dir: the folder of the data set, or None.

    Raises:
        ValueError: a file that is elsewhere.
    """
    for file in files:
        is_remote = str(file).startswith(("hf://", "https://"))
        if data_dir is None and not is_remote:
            raise ValueError(f"the data set names the local file {str(file)!r}, which is not its own")
        if data_dir is not None and not (is_remote and "::" not in str(file)):
            _inside(file, data_dir)


def check_saved_files(folder: str) -> None:
    """Check the files of a data set that `save_to_disk` wrote, before it is loaded.

    Args:
        folder: where it was saved.

    Raises:
        ValueError: a split or a table that is elsewhere, or a damaged file among those that name them.
    """
    root = Path(folder)
    splits = [""]
    if (root / "dataset_dict.json").is_file():
        splits = _names(root / "dataset_dict.json", lambda content: content["splits"])
    for split in splits:
        state = Path(_inside(Path(split, "state.json"), folder))
        tables = _names(state, lambda content: [part["filename"] for part in content["_data_files"]])
        check_data_files([str(Path(split, table)) for table in tables], folder)


def _names(file: Path, read: Callable[[Any], list[str]]) -> list[str]:
    """The names that `read` finds in the contents of a JSON file."""
    try:
        names = read(json.loads(file.read_text()))
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a name is no string")
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ValueError(
            f"{file} does not name the parts of a data set ({error!r}); save the data set anew, by `save_to_disk`"
        ) from error
    return names


def _may_be_path(value: Any) -> bool:
    return isinstance(value, (str, PathLike, Mapping, list, tuple))


def _inside(path: Any, data_dir: str | None, starts: Sequence[str] = ()) -> str:
    if is_address(path):
        raise ValueError(no_file(path))
    folders = [*media_folders(data_dir), *map(Path, starts)]
    try:
        places = [Path(start) / path for start in starts or [data_dir or ""]]
        resolved = next((place for place in places if place.is_file()), places[0]).resolve()
        if resolved.is_symlink():
            # From Python 3.13 on a circle is followed without an error.
            raise OSError("links that lead in a circle")
    except (OSError, RuntimeError, ValueError) as error:
        # Such as a link to itself, or a null byte in the name.
        raise ValueError(
            f"{shortened(str(path))} is no path ({shortened(str(error))}); correct it or leave this row out"
        ) from error
    if not any(resolved.is_relative_to(folder.resolve()) for folder in folders):
        where = "the data set" if data_dir is None else f"the folder {data_dir!r}"
        raise ValueError(f"{str(path)!r} leads out of {where}; put the file itself into it, not a link to it")
    return str(resolved)
