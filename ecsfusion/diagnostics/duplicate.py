"""One modality is a copy of another."""

from __future__ import annotations

from collections.abc import Iterator

from ecsfusion.diagnostics.finding import SYNERGY, Finding
from ecsfusion.pid.decomposition import PID

SHARED = 0.25
"""Bits of I(X1; X2 | Y). Copies share more beyond the label, and independent modalities never so much, whether or not
they know all of the label (benchmarks/diagnostics.py)."""
OWN = 0.15
"""Share of its information that the lesser of two copies seems to have for itself."""
KNOWN = 0.5
"""Share of the other's information that it must know: a modality that knows a part of it is no copy."""
SYNERGETIC = 0.5
"""Of what two copies share, that may appear as synergy, because two encoders keep different parts of one input."""


def duplicate(pid: PID) -> Iterator[Finding]:
    """The lesser of two modalities says nothing that the other does not, and they share more than the label.

    For copies both uniquenesses and S are 0 and I(X1; X2 | Y) > 0, but for what their encoders lose. Two modalities
    that merely both know the label share nothing beyond it, and where the label needs both, S is what they share.

    Args:
        pid: of two modalities.
    """
    if pid.unique_floor is None or pid.synergy_floor is None:
        return
    known = pid.mutual_information.tolist()
    lesser = known.index(min(known))
    copy, other = pid.names[lesser], pid.names[1 - lesser]
    own, floor = float(pid.unique[lesser]), float(pid.unique_floor[lesser])
    shared, synergy_floor = float(pid.conditional_mutual_information), float(pid.synergy_floor)
    if (
        known[lesser] > floor
        and own <= max(floor, OWN * known[lesser])
        and float(pid.redundancy) >= KNOWN * max(known)
        and float(pid.synergy) <= max(synergy_floor, SYNERGY, SYNERGETIC * shared)
        and shared > max(synergy_floor, SHARED)
    ):
        yield Finding(
            "copy",
            f"{copy}, {other}",
            f"{copy} says nothing about the label that {other} does not (uniqueness {own:.2f} of {known[lesser]:.2f} "
            f"bits, noise floor {floor:.2f}), and the two share {shared:.2f} bits beyond the label, as copies do: look "
            f"whether both read the same input, or leave {copy} out.",
        )
