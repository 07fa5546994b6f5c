"""A disk that takes no more, at each place where a run writes."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import killed_run
from faults import Runs, heard, seen, train

import ecsfusion.training.best_heads
import ecsfusion.training.publishing
import ecsfusion.training.resuming
from ecsfusion import FusionTrainer
from ecsfusion.training.checkpoints import find_damage, latest_checkpoint
from ecsfusion.training.saving import UNFINISHED, SavingError


@contextmanager
def when_called(owner: object, name: str, count: int, act: Callable[[], None]) -> Iterator[None]:
    """Do something right before the `count`-th call of a function."""
    original, calls = getattr(owner, name), []

    def wrapped(*args: object, **kwargs: object) -> object:
        calls.append(name)
        if len(calls) == count:
            act()
        return original(*args, **kwargs)

    with mock.patch.object(owner, name, wrapped):
        yield


@contextmanager
def small_files(size: int) -> Iterator[Callable[[], None]]:
    """From when the function is called, the system writes no file to more than `size` bytes (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refuse() -> None:
    """Raise what a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def full_disk(folder: Path, free: int) -> Iterator[Callable[[], None]]:
    """From when the function is called, the disk of a folder has only `free` bytes left."""
    ballast = folder / "ballast"

    def fill() -> None:
        with open(ballast, "wb") as file:
            while (space := shutil.disk_usage(folder).free - free) > 0:
                file.write(bytes(min(space, 1 << 20)))
                file.flush()

    try:
        yield fill
    finally:
        ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A disk of `size` bytes in a folder, for the superuser of a Linux."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


# Where a run writes: what is replaced, its name, which of its calls; how the sentence starts; the file that fails when
# none may have more than so many bytes.
RESUMING, PUBLISHING = ecsfusion.training.resuming, ecsfusion.training.publishing
BEST_HEADS = ecsfusion.training.best_heads
WRITING = {
    "initial weights": (
        FusionTrainer,
        "save_folder",
        1,
        "The folder 'initial' of",
        "model.safetensors",
        10_000,
    ),
    "peak": (FusionTrainer, "save_folder", 3, "The folder 'unimodal' of", "model.safetensors", 10_000),
    "best head": (
        BEST_HEADS,
        "save_modality",
        5,
        "The best weights of",
        "model.safetensors",
        10_000,
    ),
    "configuration": (FusionTrainer, "_save_checkpoint", 7, "checkpoint-7 of", "config.json", 1_000),
    "weights": (FusionTrainer, "_save_checkpoint", 7, "checkpoint-7 of", "model.safetensors", 20_000),
    "optimizer": (FusionTrainer, "_save_checkpoint", 7, "checkpoint-7 of", "optimizer.pt", 60_000),
    "random state": (FusionTrainer, "_save_rng_state", 7, "checkpoint-7 of", "rng_state.pth", 5_000),
    "copy of the peak": (
        RESUMING,
        "link_folder",
        20,
        "checkpoint-7 of",
        "checkpoint-7/unimodal/config.json",
        1_000,
    ),
    "seal": (RESUMING, "seal", 7, "checkpoint-7 of", "manifest.json", 500),
}


def disk_full(
    where: str, folder: Path, runs: Runs, disk: Callable[[], AbstractContextManager] | None = None
) -> dict[str, object]:
    """In the middle of a run; then there is space again, and it is resumed.

    `disk` brings it about; by default, no file may have more bytes than `WRITING` says.
    """
    owner, name, count, start, file, size = WRITING[where]
    wanted = [start, str(folder), "was not written (", "bytes are free", "Free some space"]
    if disk is None:
        disk = partial(small_files, size)
        wanted.append(f"{file} was not written (")
    message, whole = "nothing was raised", []

    def fill(act: Callable[[], None]) -> None:
        whole.extend(path.name for path in folder.glob("checkpoint-*") if find_damage(path) is None)
        act()

    with disk() as act, when_called(owner, name, count, partial(fill, act)):
        try:
            train(folder, False)
        except SavingError as error:
            message = str(error)
    problems = [f"{name} was lost" for name in whole if find_damage(folder / name) is not None]
    problems += [f"{path} is left" for path in folder.rglob("*") if path.name == UNFINISHED]
    latest = latest_checkpoint(folder)
    remedy = "train again" if latest is None else f"The latest checkpoint is {latest}"
    train(folder, True)
    problems += killed_run.differences(runs.whole, killed_run.outcome(folder))
    return seen(message, [*wanted, remedy], problems, whole_before=whole)


def disk_refuses(folder: Path, runs: Runs) -> dict[str, object]:
    """The renaming of a folder that is written to its end."""
    message = "nothing was raised"
    with when_called(RESUMING, "replace_folder", 9, refuse):
        try:
            train(folder, False)
        except SavingError as error:
            message = str(error)
    problems = [] if find_damage(folder / "checkpoint-6") is None else ["checkpoint-6 was lost"]
    train(folder, True)
    problems += killed_run.differences(runs.whole, killed_run.outcome(folder))
    return seen(message, ["checkpoint-7 of", f"The latest checkpoint is {folder / 'checkpoint-6'}"], problems)


def disk_full_at_the_end(
    folder: Path, runs: Runs, disk: Callable[[], AbstractContextManager]
) -> dict[str, object]:
    """For a picture; while the final model is saved over an earlier one; for the card."""
    with heard() as warnings, when_called(PUBLISHING, "plot_trajectory", 1, refuse):
        trainer = train(folder, False)
    messages, problems = [" ".join(warnings)], killed_run.differences(runs.whole, killed_run.outcome(folder))
    for owner, name, count, save in (
        (FusionTrainer, "_save", 1, trainer.save_model),
        (ecsfusion.training.publishing, "written_whole", 2, trainer.create_model_card),
    ):
        with disk() as act, when_called(owner, name, count, act):
            try:
                save()
            except SavingError as error:
                messages.append(str(error))
        problems += killed_run.differences(runs.whole, killed_run.outcome(folder))
        save()
    problems += [] if (folder / "README.md").is_file() else ["there is no card"]
    wanted = ["trajectory.png was not drawn (", "The run goes on without the picture"]
    wanted += [f"The model of {folder} could not be saved: {folder / UNFINISHED}", "bytes are free there"]
    wanted += [f"The model card could not be saved: {folder / 'README.md'} was not written"]
    return seen(" ".join(messages), wanted, problems)


def disk_full_for_two(folder: Path, runs: Runs) -> dict[str, object]:
    """One of two processes cannot save, when a run goes on that was killed: both end, and it can go on after that."""
    whole = folder.parent / "whole"
    killed_run.ends(killed_run.start(whole, False, 2))
    killed_run.ends(killed_run.start(folder, False, 2, "training_step", 16))
    before = latest_checkpoint(folder)
    with small_files(10_000) as act:
        act()
        codes = killed_run.ends(killed_run.start(folder, True, 2))
    problems = [] if all(codes) else [f"the processes ended with {codes}"]
    problems += (
        [] if before == latest_checkpoint(folder) and find_damage(before) is None else [f"{before} was lost"]
    )
    codes += killed_run.ends(killed_run.start(folder, True, 2))
    problems += killed_run.differences(killed_run.outcome(whole), killed_run.outcome(folder))
    return seen("", [], problems, exit=codes)
