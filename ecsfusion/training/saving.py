"""Writes files completely or not at all, and reports clearly when a disk is full."""

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
"""The name of a folder inside the folder that is written to. After a crash, its content is deleted."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors that mean that the disk, or the user's quota on it, is full."""


class SavingError(OSError):
    """A file of a run could not be written. All that was saved before is unchanged."""


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A context that gives a temporary path, and moves the file to `path` when it is complete.

    Until then, an earlier file at `path` stays.
    """
    path = Path(path)
    aside = path.parent / UNFINISHED / path.name
    aside.parent.mkdir(exist_ok=True)
    try:
        yield aside
        os.replace(aside, path)
    except OSError as error:
        # A failed write does not name the file.
        error.filename = error.filename or str(path)
        raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


@contextmanager
def saving(what: str, folder: str | Path, latest: Path | None, remove: bool = True) -> Iterator[None]:
    """A context for code that writes to a folder: if the disk fails, free its space again and raise a clear error.

    The error ends the run, because everything that it learns from then on could be lost.

    Args:
        what: what is saved, as the start of a sentence.
        folder: the folder that is written to. After a failure it is removed, to free the space.
        latest: the checkpoint that training could resume from, if there is one.
        remove: whether this process removes the folder; one process of the run does.

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
        remedy = "Free some space" if full else "Make sure that this file can be written"
        if latest is None:
            checkpoint, remedy = "There is no checkpoint yet", f"{remedy}, and train again"
        else:
            checkpoint = f"The latest checkpoint is {latest} ({_size(latest):,} bytes)"
            fewer = " (save_total_limit keeps fewer checkpoints)" if full else ""
            remedy = f"{remedy}{fewer}, and go on from it with resume_from_checkpoint=True"
        raise SavingError(
            f"{what} could not be saved: {file} was not written ({reason}); {free:,} bytes are free there. "
            f"{checkpoint}; nothing that was saved is lost. {remedy}."
        ) from error


def _is_of_the_disk(error: Exception) -> bool:
    """Whether an error means that the disk failed. Errors of torch are recognized by words in their messages."""
    return not isinstance(error, RuntimeError) or any(
        sign in str(error)
        for sign in ("inline_container", "PytorchStreamWriter", "file write failed", "iostream")
    )


def _file_of(error: Exception, folder: Path) -> Path:
    """The file that an error is about: the one that it names, or else the last one that was begun."""
    if isinstance(error, OSError) and error.filename is not None:
        # When a file is copied, the second name is that of the file that is written.
        return Path(os.fsdecode(error.filename2 or error.filename))
    begun = [path for path in folder.rglob("*") if path.is_file()]
    if isinstance(error, SafetensorError):
        # The file of weights itself does not exist; it belongs beside the file that was written last.
        return max(begun, key=_time, default=folder / SAFE_WEIGHTS_NAME).with_name(SAFE_WEIGHTS_NAME)
    return max(begun, key=_time, default=folder)


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(existing).free


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
