"""Files that are written whole or not at all, and what is said when the disk does not take them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import SAFE_WEIGHTS_NAME

UNFINISHED = "unfinished"
"""Folder inside of the folder that is written to; whatever lies in it after a crash is thrown away."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, or of a share of it, that has no room left."""


class SavingError(OSError):
    """Something of a run could not be written; what had been saved before is as it was."""


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Where to write a file that appears at `path` when it is complete; until then an earlier one stays."""
    path = Path(path)
    aside = path.parent / UNFINISHED / path.name
    aside.parent.mkdir(exist_ok=True)
    try:
        yield aside
        os.replace(aside, path)
    except OSError as error:
        # Which a failed write does not say.
        error.filename = error.filename or str(path)
        raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


@contextmanager
def saving(what: str, folder: str | Path, latest: Path | None, remove: bool = True) -> Iterator[None]:
    """Around what writes to a folder: when the disk does not take it, say so, and free what it took of it.

    A run ends there, because all that it learns from now on could be lost.

    Args:
        what: is saved, the start of a sentence.
        folder: that is written to; it is removed, so that nothing half written takes the space that is missing.
        latest: the checkpoint that training could go on from.
        remove: whether this process removes the folder; one does.

    Raises:
        SavingError: names the file, the reason, the bytes that are free, the latest checkpoint, and what to do.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_of_the_disk(error):
            raise
        file, free = _file_of(error, Path(folder)), _free_bytes(Path(folder))
        if remove:
            shutil.rmtree(folder, ignore_errors=True)
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        if isinstance(error, RuntimeError):
            reason = "the disk took only a part of it"
        full = not isinstance(error, OSError) or error.errno in FULL
        remedy = "Free some space" if full else "See to it that this file can be written"
        if latest is None:
            there, remedy = "There is no checkpoint yet", f"{remedy}, and train again"
        else:
            there = f"The latest checkpoint is {latest} ({_size(latest):,} bytes)"
            fewer = " (save_total_limit keeps fewer checkpoints)" if full else ""
            remedy = f"{remedy}{fewer}, and go on from it with resume_from_checkpoint=True"
        raise SavingError(
            f"{what} could not be saved: {file} was not written ({reason}); {free:,} bytes are free there. {there}; "
            f"nothing that was saved is lost. {remedy}."
        ) from error


def _is_of_the_disk(error: Exception) -> bool:
    """Torch's writer says nothing but where in its own source the file turned out short, or that a stream failed."""
    return not isinstance(error, RuntimeError) or any(
        sign in str(error)
        for sign in ("inline_container", "PytorchStreamWriter", "file write failed", "iostream")
    )


def _file_of(error: Exception, folder: Path) -> Path:
    """The file that an error is about: the one that it names, else the last that was begun."""
    if isinstance(error, OSError) and error.filename is not None:
        # Of a copy, the second is written.
        return Path(os.fsdecode(error.filename2 or error.filename))
    begun = [path for path in folder.rglob("*") if path.is_file()]
    if isinstance(error, SafetensorError):
        # Nothing of it is left; its neighbours were written before.
        return max(begun, key=_time, default=folder / SAFE_WEIGHTS_NAME).with_name(SAFE_WEIGHTS_NAME)
    return max(begun, key=_time, default=folder)


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns


def _free_bytes(folder: Path) -> int:
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
