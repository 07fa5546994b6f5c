"""Forecasts whether a modality that is behind only learns more slowly than the leader, or will stay behind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ecsfusion.controller.reading import Reading, check_finite

EPOCHS = 2.0
"""The pace is measured over this many epochs, and the forecast is for this many epochs ahead."""
SLOW = 0.6
"""A modality that will have more than this share of the leader's information counts as slow, otherwise as weak."""


@dataclass(frozen=True)
class Forecast:
    """What a modality knows now and will know soon, as shares of the leader's information about the label.

    The forecast was right in 7 to 8 of 10 runs after one or two epochs, in 9 of 10 after three, and in nearly all after
    five (benchmarks/controller_response.py). Therefore rules only mention it in their reasons and do not decide by it.

    Attributes:
        name: the modality that is behind.
        leader: the modality that is ahead.
        now: the share that it knows now.
        soon: the share that it will know in `EPOCHS` epochs if its pace stays the same.
    """

    name: str
    leader: str
    now: float
    soon: float

    @property
    def is_slow(self) -> bool:
        """Whether the modality counts as slow, because it will know enough soon; otherwise it counts as weak."""
        return self.soon > SLOW

    def __str__(self) -> str:
        kind = "slow, not weak" if self.is_slow else "weak, not slow"
        return (
            f"{self.name} looks {kind}: it knows {self.now:.0%} of what {self.leader} knows now, and at its "
            f"present pace it will know {max(self.soon, 0.0):.0%} of that in {EPOCHS:g} epochs"
        )


def remember(readings: list[Any], reading: Reading, names: Iterable[str]) -> None:
    """Add the information of a reading to a list, and drop what is too old for a forecast.

    A second reading of the same epoch replaces the first. A reading without information is left out.

    Args:
        readings: the list, of JSON values: for each reading, [epoch, bits by modality].
        reading: the reading to add.
        names: of the modalities.

    Raises:
        ValueError: the reading lacks the information of a modality, or it is not a finite number.
    """
    if reading.epoch <= 0 or not reading.mutual_information:
        return
    bits = {name: reading.mutual_information.get(name) for name in names}
    check_finite({f"mutual_information[{name!r}]": value for name, value in bits.items()})
    while readings and readings[-1][0] >= reading.epoch:
        del readings[-1]
    while len(readings) > 1 and readings[1][0] <= reading.epoch - EPOCHS:
        del readings[0]
    readings.append([reading.epoch, bits])


def forecasts(readings: Sequence[Any], names: Iterable[str], leader: str) -> str:
    """The forecasts in words, to be added to the reason of a decision.

    Args:
        readings: what `remember` has kept.
        names: the modalities that are behind.
        leader: the modality that is ahead.

    Returns:
        One clause for each modality that is behind; empty if no reading has information.
    """
    if not readings or readings[-1][1][leader] <= 0:
        return ""
    epochs, ahead = [epoch for epoch, _ in readings], [bits[leader] for _, bits in readings]
    clauses = []
    for name in names:
        now, soon = forecast(epochs, [bits[name] for _, bits in readings], ahead)
        clauses.append(f"; {Forecast(name, leader, now, soon)}")
    return "".join(clauses)


def forecast(epochs: Sequence[float], behind: Sequence[float], ahead: Sequence[float]) -> tuple[float, float]:
    """Forecast how much of the leader's present information the modality behind it will have.

    The modality is expected to gain as many bits per epoch in the next `EPOCHS` epochs as it gained in the last
    `EPOCHS`, or since the start of training if that is less; at the start both modalities know nothing. The forecast
    uses information rather than accuracy, because information grows more evenly and is zero at chance.

    Args:
        epochs: the epochs of the readings, rising, above 0.
        behind: bits that the modality behind knew about the label at each reading.
        ahead: bits that the leader knew.

    Returns:
        What the modality behind knows now, and what it will know in `EPOCHS` epochs, as shares of what the leader knows
        now.

    Raises:
        ValueError: no readings, sequences of different lengths, epochs that do not rise, or a leader that knows
            nothing.
    """
    if not epochs or not len(epochs) == len(behind) == len(ahead):
        raise ValueError(
            f"epochs, behind and ahead have {len(epochs)}, {len(behind)} and {len(ahead)} values; give one each for "
            "every reading, and at least one."
        )
    if epochs[0] <= 0 or any(b <= a for a, b in pairwise(epochs)):
        raise ValueError(f"epochs is {list(epochs)}; give epochs above 0 that rise.")
    if ahead[-1] <= 0:
        raise ValueError(f"ahead ends with {ahead[-1]} bits; the leader must know something about the label.")
    earlier = [(0.0, 0.0), *zip(epochs[:-1], behind[:-1], strict=True)]
    window_start = epochs[-1] - EPOCHS
    start, start_bits = next(
        ((epoch, bits) for epoch, bits in reversed(earlier) if epoch <= window_start + 1e-9), earlier[0]
    )
    pace = (behind[-1] - start_bits) / (epochs[-1] - start)
    return behind[-1] / ahead[-1], (behind[-1] + EPOCHS * pace) / ahead[-1]
