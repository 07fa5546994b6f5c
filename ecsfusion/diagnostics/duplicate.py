"""Diagnostic: one modality is a copy of another."""

from __future__ import annotations

from collections.abc import Iterator

from ecsfusion.diagnostics.finding import NEGLIGIBLE_SYNERGY, Finding
from ecsfusion.evaluation.measurement import Information

MIN_SHARED = 0.25
"""Bits of I(X1; X2 | Y) that copies share at least. Independent modalities never share so much beyond the label,
whether or not they know all of it (benchmarks/diagnostics.py)."""
MAX_UNIQUE_SHARE = 0.15
"""Share of its information that may seem to be unique to the lesser of two copies."""
MIN_KNOWN_SHARE = 0.5
"""Share of the other's information that a copy must know. A modality that knows a smaller part of it is no copy."""
MAX_SYNERGY_SHARE = 0.5
"""Share of I(X1; X2 | Y) that may appear as synergy of two copies, because two encoders keep different parts of one
input."""


def duplicate(information: Information) -> Iterator[Finding]:
    """Find a modality that says nothing that the other does not, where the two share more than the label.

    For copies both uniquenesses and the synergy are 0 and I(X1; X2 | Y) > 0, except for what their encoders lose. Two
    modalities that merely both know the label share nothing beyond it. Where the label needs both modalities, what they
    share appears as synergy.

    Args:
        information: of two modalities.
    """
    if not information.floor:
        return
    known = information.mutual_information
    copy = min(known, key=lambda name: known[name])
    other = next(name for name in known if name != copy)
    unique, floor = information.unique[copy], information.floor[copy]
    shared, synergy_floor = information.conditional_mutual_information, information.floor["synergy"]
    if (
        known[copy] > floor
        and unique <= max(floor, MAX_UNIQUE_SHARE * known[copy])
        and information.redundancy >= MIN_KNOWN_SHARE * max(known.values())
        and information.synergy <= max(synergy_floor, NEGLIGIBLE_SYNERGY, MAX_SYNERGY_SHARE * shared)
        and shared > max(synergy_floor, MIN_SHARED)
    ):
        yield Finding(
            "copy",
            f"{copy}, {other}",
            f"{copy} says nothing about the label that {other} does not (uniqueness {unique:.2f} of {known[copy]:.2f} "
            f"bits, noise floor {floor:.2f}), and the two share {shared:.2f} bits beyond the label, as copies do: look "
            f"whether both read the same input, or leave {copy} out.",
        )
