"""Diagnostic: one modality is a copy of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ecsfusion.diagnostics.finding import NEGLIGIBLE_SYNERGY, Finding
from ecsfusion.diagnostics.no_information import fusion_is_ahead
from ecsfusion.evaluation.measurement import Information, Measurement
from ecsfusion.evaluation.rounding import told_apart

MIN_SHARED = 0.25
"""The least I(X1; X2 | Y) of two copies, in bits. Independent modalities never share so much beyond the label, no
matter how much of the label they know (benchmarks/diagnostics.py)."""
MIN_TOLD = 0.5
"""The least share of what a copy holds beyond the label that the other modality tells by a held-out linear prediction:
0.4 to 0.6 for two random encoders of the same input with a nonlinearity, 0.97 for two convolutions, and 0.0 to 0.4 for
accelerometer and gyroscope of one movement."""
MAX_UNIQUE_SHARE = 0.15
"""The largest share of a copy's information that may appear as unique; the copy is the one that knows less."""
NEGLIGIBLE_UNIQUENESS = 0.1
"""Uniqueness up to so many bits, or up to the noise floor, counts as nothing."""
MIN_KNOWN_SHARE = 0.5
"""The least share of the other modality's information that a copy knows."""
MAX_SYNERGY_SHARE = 0.5
"""The largest share of I(X1; X2 | Y) that may appear as synergy of two copies. It is not zero, because two encoders
keep different parts of the same input."""


def duplicate(
    information: Information,
    measurement: Measurement | None = None,
    told: Callable[[str, str], float] | None = None,
) -> Iterator[Finding]:
    """Find a modality that adds nothing to the other one and shares nearly all with it, beyond the label too.

    For exact copies, both uniquenesses and the synergy are 0 and I(X1; X2 | Y) > 0. Copies that pass through two
    encoders come near to this. Two modalities that only both know the label share nothing beyond it. If the label needs
    both modalities, what they share appears as synergy.

    Related modalities, such as two sensors of one movement, share many bits by clusters as well, but most of what each
    holds is its own. So a copy must be told by the other modality to a large share.

    In few rows, clusters of independent modalities seem to share bits beyond the label: nothing is said of them.

    Clusters lose much of what embeddings know, uniqueness too. So nothing is reported where the heads of the model show
    that the modality has something of its own: their uniqueness is clearly above noise, or the fused head is ahead of
    each of two heads.

    Args:
        information: the decomposition of two modalities, by clusters: heads do not show what they share.
        measurement: the measurement of the same rows; None for the clusters alone.
        told: from two modalities to the share of what the first holds beyond the label that the second tells
            (`ecsfusion.pid.linear_share`); None where the embeddings are not at hand.

    Yields:
        At most one finding.
    """
    shared = information.conditional_mutual_information
    if not information.floor or shared is None or not information.shows_dependence:
        return
    known = information.mutual_information
    copy = min(known, key=lambda name: known[name])
    other = next(name for name in known if name != copy)
    unique, floor = information.unique[copy], information.floor[copy]
    if measurement is not None and _has_its_own(measurement, copy):
        return
    synergy_floor = information.floor["synergy"]
    if (
        known[copy] > floor
        and unique <= max(floor, MAX_UNIQUE_SHARE * known[copy])
        and information.redundancy >= MIN_KNOWN_SHARE * max(known.values())
        and information.synergy <= max(synergy_floor, NEGLIGIBLE_SYNERGY, MAX_SYNERGY_SHARE * shared)
        and shared > max(synergy_floor, MIN_SHARED)
    ):
        share = None if told is None else told(copy, other)
        if share is not None and share < MIN_TOLD:
            return
        says = "nothing" if unique <= max(floor, NEGLIGIBLE_UNIQUENESS) else "little"
        bits, noise = told_apart(unique, floor)
        yield Finding(
            "copy",
            f"{copy}, {other}",
            f"{copy} says {says} about the label that {other} does not (uniqueness {bits} of {known[copy]:.2f} bits, "
            f"noise floor {noise}), and the two share {shared:.2f} bits beyond the label"
            f"{'' if share is None else f', {share:.0%} of what {copy} holds'}, as copies do: check whether "
            f"both read the same input{', or leave ' + copy + ' out' if says == 'nothing' else ''}.",
        )


def _has_its_own(measurement: Measurement, name: str) -> bool:
    """Whether the heads of the model show that a modality tells something that no other tells."""
    by_heads = measurement.information
    if by_heads is None or not by_heads.is_by_heads:
        return False
    return by_heads.unique[name] > max(by_heads.floor[name], NEGLIGIBLE_UNIQUENESS) or fusion_is_ahead(
        measurement, by_heads.unique
    )
