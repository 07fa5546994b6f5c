"""Damaged and foreign files in a checkpoint, and what all faults have in common.

Each fault is a function of an empty folder and the runs to compare with. It brings the fault about, has the run go on,
and returns what was seen: the sentence that the user reads, and `problems`, which is empty when nothing that was saved
is lost, the sentence names the file and what to do, and the end is the same wherever there is a whole checkpoint.
"""

from __future__ import annotations

import io
import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import killed_run
from older_records import record_of_format_1

from ecsfusion import FusionTrainer
from ecsfusion.training.checkpoints import MANIFEST, find_damage, seal


@dataclass(frozen=True)
class Runs:
    """What a run that nothing befell ended with, and the folder of one that was killed in its 16th step."""

    whole: dict[str, object]
    killed: Path


def make_runs(place: Path) -> Runs:
    """Train both."""
    train(place / "whole", False)
    for process in killed_run.start(place / "killed", False, 1, "training_step", 16):
        process.join()
    return Runs(killed_run.outcome(place / "whole"), place / "killed")


def train(folder: Path, resume: bool, **options: object) -> FusionTrainer:
    """The run of `killed_run`, in this process and without a word."""
    with redirect_stdout(io.StringIO()):
        return killed_run.train(folder, resume, **options)


@contextmanager
def heard(name: str = "ecsfusion") -> Iterator[list[str]]:
    """Every warning of a package."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def seen(message: str, wanted: list[str], differing: list[str], **more: object) -> dict[str, object]:
    """What a fault returns; `wanted` are the words that the message must have."""
    problems = [f"the message does not say {words!r}" for words in wanted if words not in message]
    return {"message": message, **more, "problems": problems + differing}


def flipped(name: str, folder: Path, runs: Runs, seed: int = 0) -> dict[str, object]:
    """One bit of a file of the latest checkpoint."""
    shutil.copytree(runs.killed, folder)
    file, chance = folder / "checkpoint-15" / name, random.Random(seed)  # noqa: S311
    content = bytearray(file.read_bytes())
    place, bit = chance.randrange(len(content)), chance.randrange(8)
    content[place] ^= 1 << bit
    file.write_bytes(content)
    # Which says what the manifest no longer fits.
    said = "" if name == MANIFEST else name
    return resumed(folder, runs, [f"{folder / 'checkpoint-15'} is damaged: ", said], byte=place, bit=bit)


def truncated(name: str, folder: Path, runs: Runs) -> dict[str, object]:
    """A file of the latest checkpoint ends in the middle."""
    shutil.copytree(runs.killed, folder)
    file = folder / "checkpoint-15" / name
    size = file.stat().st_size
    os.truncate(file, size // 2)
    return resumed(folder, runs, [f"{name} has {size // 2:,} bytes instead of {size:,}"])


def link(folder: Path, runs: Runs) -> dict[str, object]:
    """A file of the latest checkpoint is a link to one outside, which must not get into the run's folders."""
    shutil.copytree(runs.killed, folder)
    secret = folder.parent / "secret.json"
    secret.write_text('{"password": 1}')
    (folder / "checkpoint-15" / "unimodal" / "extra.json").symlink_to(secret)
    facts = resumed(folder, runs, ["unimodal/extra.json is a link, which no checkpoint holds"])
    facts["problems"] += [f"{path} was copied" for path in folder.rglob("extra.json") if path.is_file()]
    return facts


def older_state(folder: Path, runs: Runs) -> dict[str, object]:
    """The controller's state of a version before its format had a number, with all that there is today."""

    def change(record: dict) -> None:
        record.update(record_of_format_1(record))
        del record["format"], record["ecsfusion"]

    rewrite_record(runs.killed, folder, change)
    return resumed(folder, runs, [], before=None)


def oldest_state(folder: Path, runs: Runs) -> dict[str, object]:
    """The controller's state of a version that knew no best heads yet: it is said, and training goes on."""

    def change(record: dict) -> None:
        record.update(record_of_format_1(record))
        del record["format"], record["ecsfusion"], record["best_heads"], record["strategy"]

    rewrite_record(runs.killed, folder, change)
    with heard() as warnings:
        train(folder, True)
    ended = [] if (folder / "checkpoint-20").is_dir() else ["the run did not end"]
    wanted = [
        f"{folder / 'checkpoint-15'} was saved by an older version",
        "did not save best_heads, strategy",
    ]
    return seen(" ".join(warnings), wanted, ended)


def newer_state(folder: Path, runs: Runs) -> dict[str, object]:
    """The controller's state of a version to come is refused, and stays."""
    rewrite_record(runs.killed, folder, lambda record: record.update(format=99, ecsfusion="7.0", mood="good"))
    said = "the controller's state was saved by ecsfusion 7.0 in format 99, with 'mood'"
    return refused(folder, [f"checkpoint-15/trainer_state.json: {said}", "Install the version that saved it"])


def foreign_state(folder: Path, runs: Runs) -> dict[str, object]:
    """A checkpoint of another Trainer, which has no controller."""
    rewrite_state(runs.killed, folder, lambda state: state["stateful_callbacks"].pop("ControllerCallback"))
    return refused(folder, ["checkpoint-15/trainer_state.json has no state of the controller", "start anew"])


def resumed(
    folder: Path, runs: Runs, wanted: list[str], before: str | None = "checkpoint-14", **more: object
) -> dict[str, object]:
    """Train on, from the checkpoint before the damaged one, to the same end."""
    with heard() as warnings:
        train(folder, True)
    message = " ".join(warnings)
    if before is not None:
        wanted = [*wanted, f"resumes from the checkpoint before: {folder / before}."]
    return seen(message, wanted, killed_run.differences(runs.whole, killed_run.outcome(folder)), **more)


def refused(folder: Path, wanted: list[str]) -> dict[str, object]:
    """Try to train on, which must leave the checkpoints as they are."""
    message, before = "nothing was raised", sorted(folder.glob("checkpoint-*"))
    try:
        train(folder, True)
    except ValueError as error:
        message = str(error)
    return seen(
        message, wanted, [f"{path.name} was lost" for path in before if find_damage(path) is not None]
    )


def rewrite_record(killed: Path, folder: Path, change: Callable[[dict], object]) -> None:
    """Change the controller's state in the latest checkpoint of a copy."""

    def rewrite(state: dict) -> None:
        change(state["stateful_callbacks"]["ControllerCallback"]["attributes"]["saved_record"])

    rewrite_state(killed, folder, rewrite)


def rewrite_state(killed: Path, folder: Path, change: Callable[[dict], object]) -> None:
    """Change the state of the trainer in the latest checkpoint of a copy, as if it had been saved like that."""
    shutil.copytree(killed, folder)
    file = folder / "checkpoint-15" / "trainer_state.json"
    state = json.loads(file.read_text())
    change(state)
    file.write_text(json.dumps(state))
    seal(file.parent)
