"""Diagnostics of the estimate: too few rows, a solver that stopped early, or noise above every measured value."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ecsfusion.diagnostics.finding import Finding
from ecsfusion.evaluation.measurement import (
    MIN_ROWS_FOR_DEPENDENCE,
    MIN_ROWS_PER_CLASS_FOR_DEPENDENCE,
    Information,
    Measurement,
)
from ecsfusion.evaluation.rounding import told_apart
from ecsfusion.model.names import CALIBRATED

TOLERANCE = 1e-3
"""The width in bits of the certified interval that `fast_pid` demands of the solver."""
MIN_SHARE_OF_ENOUGH_SAMPLES = 0.1
"""The least share of `enough_samples` that a probe needs. `enough_samples` is the number of rows with which noise is
less than half of the label's entropy before the correction; with the correction, a tenth of them is enough. With fewer
rows, an atom is wrong by 0.2 to 0.7 bits, which is more than the noise floors say (benchmarks/diagnostics.py)."""


def few_rows(
    information: Information, asks_for_dependence: bool = True, is_regression: bool = False
) -> Iterator[Finding]:
    """Find that a decomposition has too few rows for its classes, or for the cells of its table.

    Args:
        information: the decomposition of the probe set.
        asks_for_dependence: whether the rule decides by the dependence of this reading.
        is_regression: whether the classes are parts of the range of a target.

    Yields:
        At most one finding.
    """
    rows, classes = information.num_samples, information.num_classes
    cut = ", into which the target is cut," if is_regression else ""
    if asks_for_dependence and not information.shows_dependence:
        needed = max(MIN_ROWS_FOR_DEPENDENCE, MIN_ROWS_PER_CLASS_FOR_DEPENDENCE * classes)
        yield Finding(
            "few rows",
            "",
            f"{rows} probed rows of {classes} classes{cut} are too few to see whether the modalities depend on each "
            "other given the label, so the probe reports a dependence of 0 bits: give at least "
            f"{MIN_ROWS_PER_CLASS_FOR_DEPENDENCE} rows per class and {MIN_ROWS_FOR_DEPENDENCE} in all, here {needed}.",
        )
        return
    if information.is_by_heads:
        return
    first, second = information.num_clusters
    cells = first * second
    enough = cells * (classes - 1) / math.log(classes) if classes > 1 else 0.0
    needed = math.ceil(MIN_SHARE_OF_ENOUGH_SAMPLES * enough)
    if rows < needed:
        yield Finding(
            "few rows",
            "",
            f"{rows} probed rows are too few for the {first} x {second} clusters and {classes} classes{cut} of the "
            f"probe, so its values are wrong by tenths of a bit: give at least {needed} rows, or fewer probe_clusters.",
        )


def wide_certificate(information: Information) -> Iterator[Finding]:
    """Find that the solver stopped before its certified interval was narrow enough.

    An interval that is wider than demanded, but within the noise floor of redundancy, is not reported, because it
    changes no decision. By heads it holds what clusters of posteriors lose, which the confidence intervals hold too.

    Args:
        information: the decomposition of the probe set.

    Yields:
        At most one finding.
    """
    gap = information.gap
    if not information.is_by_heads and gap > max(TOLERANCE, information.floor.get("redundancy", 0.0)):
        yield Finding(
            "certificate missed",
            "",
            f"the solver stopped with redundancy and synergy certified to {gap:.3f} bits only, not to {TOLERANCE:g}: "
            "do not trust smaller differences, or give fewer probe_clusters.",
        )


def atoms_below_noise(measurement: Measurement) -> Iterator[Finding]:
    """Find that no atom is above its noise floor although a head knows the label.

    A single atom within its noise floor is no failure; most runs have one. The head must be above chance by five
    standard errors, because a head shows that it knows a little earlier than a table of counts does.

    Args:
        measurement: the measurement of the probe set.

    Yields:
        At most one finding.
    """
    information, scale = measurement.information, measurement.scale
    if information is None or any(bits > information.floor[name] for name, bits in information.atoms.items()):
        return
    scores = {head: score for head, score in measurement.scores.items() if head != CALIBRATED}
    head = max(scores, key=lambda name: scores[name])
    if scores[head] > scale.chance + 5 * scale.error(scale.chance):
        atoms = information.atoms
        atom = max(atoms, key=lambda name: atoms[name])
        bits, floor = told_apart(atoms[atom], information.floor[atom], 3)
        units = "rows" if information.num_groups is None else "groups"
        kind = atom if atom in ("redundancy", "synergy") else f"uniqueness of {atom}"
        yield Finding(
            "noise above the atoms",
            "",
            f"no information is above its noise floor (the largest, {kind}, is {bits} bits, floor {floor}), although "
            f"the {head} head has an {measurement.score_in_words} of {scores[head]:.3f}, chance "
            f"{scale.chance:.3f}: these values are noise, and so are decisions by them; give more evaluation {units}.",
        )
