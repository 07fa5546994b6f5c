"""How far ahead a modality is, and the phrases and checks that several rules use."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ecsfusion.controller.reading import Reading
from ecsfusion.evaluation.rounding import told_apart


@dataclass(frozen=True)
class Lead:
    """How far one modality's uniqueness is ahead of that of its strongest rival.

    Attributes:
        unique: the modality's uniqueness in bits.
        floor: the noise floor of that uniqueness.
        rival: the name of the rival.
        rival_unique: the rival's uniqueness in bits.
        rival_floor: the noise floor of the rival's uniqueness.
    """

    unique: float
    floor: float
    rival: str
    rival_unique: float
    rival_floor: float

    @classmethod
    def over(cls, reading: Reading, name: str, rivals: Iterable[str]) -> Lead:
        """The lead of a modality over the one of these rivals that has the largest uniqueness."""
        rival = max(rivals, key=lambda other: reading.unique[other])
        unique, floor = reading.unique, reading.floor
        return cls(unique[name], floor[name], rival, unique[rival], floor[rival])

    @property
    def ratio(self) -> float:
        """The uniqueness divided by the rival's, or by the rival's noise floor if that is larger."""
        reference = max(self.rival_unique, self.rival_floor)
        return self.unique / reference if reference > 0 else math.copysign(math.inf, self.unique)

    def is_clear(self, ratio: float, margin: float) -> bool:
        """Whether the uniqueness is above its noise floor and ahead by more than this ratio and this margin in bits."""
        above_floor = self.unique > max(self.floor, 0.0)
        return above_floor and self.unique - self.rival_unique > margin and self.ratio > ratio

    def __str__(self) -> str:
        is_noise = self.rival_unique < self.rival_floor
        rival = f"the noise floor of {self.rival}'s" if is_noise else f"{self.rival}'s"
        unique, floor = told_apart(self.unique, self.floor)
        return f"its uniqueness {unique} bits is {self.ratio:.1f} times {rival}, floor {floor}"


def listed(names: Iterable[str]) -> str:
    """The names, joined by "and"."""
    return " and ".join(names)


def uniqueness_of(reading: Reading, names: Iterable[str]) -> str:
    """The uniqueness of these modalities in words: "uniqueness image 0.52, audio 0.10 bits"."""
    return "uniqueness " + ", ".join(f"{name} {reading.unique[name]:.2f}" for name in names) + " bits"


def check_positive(**options: float) -> None:
    """Check that every option is a positive number.

    Raises:
        ValueError: names the first option that is not.
    """
    for name, value in options.items():
        if not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f"{name} must be a positive number, got {value!r}.")
