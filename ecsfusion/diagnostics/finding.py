"""What a signature answers, and what it measures accuracies against."""

from __future__ import annotations

import math
from dataclasses import dataclass

SYNERGY = 0.05
"""Bits of synergy that count as none although the noise floor is lower: it is zero where all, or nothing, is known."""


@dataclass(frozen=True)
class Finding:
    """One thing that a run warns of.

    Attributes:
        signature: which one, in a few words.
        about: the modality, or whatever else it is about; it is said once about each.
        sentence: what was found, with the numbers, and what to do.
    """

    signature: str
    about: str
    sentence: str


@dataclass(frozen=True)
class Scale:
    """An evaluation set as far as its accuracies go.

    Attributes:
        rows: number of rows.
        chance: accuracy of the best answer that is the same for every row; 0 for R^2.
    """

    rows: int
    chance: float

    def error(self, accuracy: float) -> float:
        """Standard error of an accuracy over these rows, and at least that of a single wrong answer.

        That of an R^2, of which chance is 0, is below 1 / sqrt(rows), whatever it is.
        """
        if self.chance == 0.0:
            return 1 / math.sqrt(max(self.rows, 1))
        share = min(max(accuracy, 1 / self.rows), 1 - 1 / self.rows) if self.rows > 1 else 0.5
        return math.sqrt(share * (1 - share) / max(self.rows, 1))

    def is_chance(self, accuracy: float) -> bool:
        """Whether it is within three standard errors of chance, or below."""
        return accuracy <= self.chance + 3 * self.error(self.chance)
