"""Which exercise of the shoulder? Accelerometer and gyroscope of a watch, ten subjects, test subjects unseen.

Source: `watch_dataset.npy` of the package seglearn (BSD-3-Clause), recorded for Burns et al. 2018 (arXiv 1802.01489):
ten subjects did 20 repetitions of each of seven exercises with either arm, at 50 Hz.

A row is two seconds of a recording, and no two rows overlap. In `watch-1` to `watch-5` subjects are groups: six are
trained on, two are validated on, two are tested on, others in each suite. The further test set `known-subjects` is the
last fifth of the recordings of the training subjects. In `watch-known` all subjects are in all splits: it shows what is
reported where subjects are not kept apart.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from suites.encoders import SignalEncoder
from suites.folders import SPLITS
from suites.object_arrays import read_object_array
from suites.packages import Package
from suites.suite import Split, Suite, standardize_splits

SEGLEARN = Package(
    "seglearn",
    "1.2.5",
    "seglearn-1.2.5-py3-none-any.whl",
    "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
)
MEMBER = "seglearn/data/watch_dataset.npy"
CHANNELS = {"accelerometer": slice(0, 3), "gyroscope": slice(3, 6)}
NUM_CLASSES, NUM_SUBJECTS = 7, 10
# Two seconds.
WINDOW = 100
# Share of a recording that is not trained on, at its end.
HELD_OUT = 0.2
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def watch(partition: int) -> Suite:
    """The suites `watch-1` to `watch-5`: 1 078 to 1 294 / 307 to 557 / 307 to 557 rows of 6 / 2 / 2 subjects.

    Args:
        partition: 1 to 5: subjects 2 * partition - 1 and the next are tested on, the two after them validated on.
    """
    rows, _, _ = load_windows()
    return _suite(
        f"watch-{partition}",
        "Exercise from accelerometer and gyroscope of a watch; subjects of validation and test are unseen, two each.",
        {name: rows.select(chosen) for name, chosen in choose_rows(partition).items()},
    )


def choose_rows(partition: int) -> dict[str, Tensor]:
    """Which windows are in train, validation, test and `known-subjects` of `watch-1` to `watch-5`, (N,) bool each.

    Args:
        partition: 1 to 5.
    """
    rows, times, _ = load_windows()
    first = 2 * (partition - 1)
    # 0 and 1 in test, 2 and 3 in validation.
    place = (rows.groups - 1 - first) % NUM_SUBJECTS
    at_end = times >= 1 - HELD_OUT
    return {
        "train": (place >= 4) & ~at_end,
        "validation": (place >= 2) & (place < 4),
        "test": place < 2,
        "known-subjects": (place >= 4) & at_end,
    }


def watch_known() -> Suite:
    """The suite `watch-known`: 1 476 / 477 / 416 rows, the same ten subjects in all splits, one after the other."""
    rows, times, _ = load_windows()
    splits, start = {}, 0.0
    for name in SPLITS:
        # Rows of a subject are in every split: they are no groups here.
        chosen = rows.select((times >= start) & (times < start + SHARES[name]))
        splits[name] = Split(chosen.inputs, chosen.labels)
        start += SHARES[name]
    return _suite(
        "watch-known",
        "As watch-1 with the same subjects in all splits, other parts of their recordings: what is learned applies.",
        splits,
    )


@cache
def load_windows() -> tuple[Split, Tensor, Tensor]:
    """All windows of all recordings.

    Returns:
        The rows, not standardized: two modalities (N, 3, 100), the subject as group; when in its recording each
        begins, (N,) from 0 to below 1; and the arm that wears the watch, (N,) int64, 0 or 1.

    Raises:
        FileNotFoundError: the package is neither in the cache nor can it be downloaded.
    """
    stored = read_object_array(SEGLEARN.read(MEMBER))
    signals, labels, subjects, times, arms = [], [], [], [], []
    for signal, label, subject, arm in zip(
        stored["X"], stored["y"], stored["subject"], stored["side"], strict=True
    ):
        count = len(signal) // WINDOW
        signals.append(
            signal[: count * WINDOW].reshape(count, WINDOW, 6).transpose(0, 2, 1).astype(np.float32)
        )
        labels += [int(label)] * count
        subjects += [int(subject)] * count
        times += [place / count for place in range(count)]
        arms += [int(arm)] * count
    values = torch.from_numpy(np.concatenate(signals))
    rows = Split(
        {name: values[:, channels].contiguous() for name, channels in CHANNELS.items()},
        torch.tensor(labels),
        torch.tensor(subjects),
    )
    return rows, torch.tensor(times), torch.tensor(arms)


def build_encoders() -> dict[str, nn.Module]:
    """Equal small convnets for both sensors."""
    return {name: SignalEncoder(3) for name in CHANNELS}


def _suite(name: str, description: str, splits: Mapping[str, Split]) -> Suite:
    """Each channel with mean 0 and standard deviation 1 on the training rows."""
    splits = standardize_splits(splits, dims=(0, 2))
    return Suite(
        name=name,
        description=description,
        num_classes=NUM_CLASSES,
        **{split: splits[split] for split in SPLITS},
        shifted={split: rows for split, rows in splits.items() if split not in SPLITS},
        build_encoders=build_encoders,
        epochs=20,
        batch_size=64,
        learning_rates=(2e-3, 5e-3),
        sgd_learning_rates=(0.03, 0.1),
    )
