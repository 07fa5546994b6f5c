"""What a diagnostic answers."""

from __future__ import annotations

from dataclasses import dataclass

NEGLIGIBLE_SYNERGY = 0.05
"""Bits of synergy that count as none although the noise floor is lower. The floor is zero where everything, or nothing,
is known."""


@dataclass(frozen=True)
class Finding:
    """One thing that a run warns of.

    Attributes:
        diagnostic: which diagnostic found it, in a few words.
        about: the modality, or whatever else it is about. A run warns once of each.
        sentence: what was found, with the numbers, and what to do.
    """

    diagnostic: str
    about: str
    sentence: str
