"""The finding that a diagnostic yields."""

from __future__ import annotations

from dataclasses import dataclass

NEGLIGIBLE_SYNERGY = 0.05
"""Synergy up to this many bits counts as none, even if the noise floor is lower. The floor is zero where the modalities
know everything about the label, or nothing."""


@dataclass(frozen=True)
class Finding:
    """One thing that a run warns of.

    Attributes:
        diagnostic: which diagnostic found it, in a few words.
        about: the modality or other thing that it is about. A run warns once for each diagnostic and thing.
        sentence: what the diagnostic found, with the numbers, and what to do.
    """

    diagnostic: str
    about: str
    sentence: str
