"""What goes wrong with one modality in the middle of training, and passes: events in a real run.

For a span of the run, the training or the validation rows are read from a second split in which one modality is
disturbed, or the modality's learning rate is multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.parquet as parquet
import torch
from suites import Split, Suite, load_suite
from suites.avmnist import load_splits
from suites.folders import data_file
from suites.imbalance import HALVES_SCALE, add_noise, rescale
from transformers import TrainerCallback

START, END = 0.125, 0.3
"""Of the run's steps; stage 1 lasts to half of them at the longest."""
RATE_FACTOR = 10.0
NOISE = 4.0
"""Standard deviations of the signal."""
NEW_SPEAKERS = ("theo", "yweweler")
ROWS = 2000
"""Training rows; the files are shuffled."""
SEED = 2025


class Event(TrainerCallback):
    """Says whether it is on, from the last step before a span of the run to that before its end."""

    def __init__(self, start: float = START, end: float = END) -> None:
        self.start, self.end = start, end
        self.is_on = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before every step."""
        self.is_on = self.start <= state.global_step / state.max_steps < self.end


class FasterRate(Event):
    """While it is on, the learning rate of one modality is multiplied."""

    def __init__(self, modality: str, factor: float = RATE_FACTOR) -> None:
        super().__init__()
        self.modality, self.factor = modality, factor

    def on_step_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """The schedule, of whichever stage, multiplies these rates."""
        super().on_step_begin(args, state, control)
        for place, group in enumerate(optimizer.param_groups):
            is_faster = self.is_on and group["name"].split(".")[0] == self.modality
            lr_scheduler.base_lrs[place] = args.learning_rate * (self.factor if is_faster else 1.0)


@dataclass(frozen=True, eq=False)
class Disturbed(Split):
    """A split whose rows are those of another one, as many, while an event is on."""

    other: Split = field(kw_only=True)
    event: Event = field(kw_only=True)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.other[index] if self.event.is_on else super().__getitem__(index)


@dataclass(frozen=True)
class Stress:
    """A suite in which something happens to one modality, and who then leads.

    Args:
        suite: with the event in it.
        event: to be added to the trainer's callbacks; None where nothing happens.
        modality: to which it happens.
        leader: the modality that is ahead while it lasts; None where that is not known beforehand.
    """

    suite: Suite
    event: Event | None
    modality: str | None
    leader: str | None


def twins() -> Suite:
    """The suite `halves` with equal halves, and fewer training rows: neither is ahead."""
    suite = load_suite("halves")
    splits = {
        name: rescale(getattr(suite, name), "right", 1 / HALVES_SCALE)
        for name in ("train", "validation", "test")
    }
    splits["train"] = splits["train"].select(torch.arange(ROWS))
    return replace(suite, name="twins", description="Left and right half of a noisy digit, equals.", **splits)


def shuffle(split: Split, modality: str, seed: int = SEED) -> Split:
    """The split whose rows have this modality of other rows: for its own head, the labels are shuffled."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    values: Any = split.inputs[modality]
    return replace(split, inputs={**split.inputs, modality: values[order]})


def noisier(split: Split, modality: str) -> Split:
    """The split with noise on one modality."""
    return add_noise(split, modality, NOISE, torch.Generator().manual_seed(SEED))


def _disturb(change: Callable[[Split, str], Split], *names: str) -> Callable[[], Stress]:
    def stress() -> Stress:
        suite, event = twins(), Event()
        splits = {
            name: Disturbed(
                **vars(getattr(suite, name)), other=change(getattr(suite, name), "right"), event=event
            )
            for name in names
        }
        return Stress(replace(suite, **splits), event, "right", "left")

    return stress


def undisturbed() -> Stress:
    """Nothing happens, and nobody should be paused."""
    return Stress(twins(), None, None, None)


def faster() -> Stress:
    """The right half has ten times the learning rate."""
    return Stress(twins(), FasterRate("right"), "right", None)


def new_speakers() -> Stress:
    """AV-MNIST of four speakers; while the event lasts, validation holds the two others."""
    large = load_splits("full")
    known = {name: large[name].select(~_is_new(name)) for name in large}
    new = large["validation"].select(_is_new("validation"))
    rows = torch.arange(min(len(new), len(known["validation"])))
    event = Event()
    probed = Disturbed(**vars(known["validation"].select(rows)), other=new.select(rows), event=event)
    suite = replace(
        load_suite("avmnist-small"),
        name="new-speakers",
        description="AV-MNIST of four speakers, validated on the two others for a while.",
        train=known["train"].select(torch.arange(ROWS)),
        validation=probed,
        test=known["test"],
    )
    return Stress(suite, event, "audio", "image")


def _is_new(split: str) -> torch.Tensor:
    """Which rows of AV-MNIST `full` the new speakers speak, (N,) bool."""
    file = data_file(f"avmnist/full/{split}.parquet")
    speakers = parquet.read_table(file, columns=["speaker"])["speaker"].to_pylist()
    return torch.tensor([speaker in NEW_SPEAKERS for speaker in speakers])


STRESSES: Mapping[str, Callable[[], Stress]] = {
    "nothing": undisturbed,
    "rate x 10": faster,
    "noise": _disturb(noisier, "train", "validation"),
    "dead sensor": _disturb(lambda split, name: rescale(split, name, 0.0), "train", "validation"),
    "shuffled labels": _disturb(shuffle, "train"),
    "shifted validation": _disturb(lambda split, name: rescale(split, name, -1.0), "validation"),
    "new speakers": new_speakers,
}
