"""The estimate is not to be trusted: too few rows, a solver that stopped early, or noise above all that was found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ecsfusion.diagnostics.finding import Finding, Scale
from ecsfusion.pid.decomposition import PID

ROWS_PER_CLASS_FOR_DEPENDENCE = 20
ROWS_FOR_DEPENDENCE = 64
"""With fewer rows, chance often makes independent modalities look dependent given the label, by bits. With 64 rows it
still does so in up to one case of five, with 100 in one of eight, with 400 in none of those tried
(benchmarks/bench_dependence.py)."""

TOLERANCE = 1e-3
"""Bits; the certified interval that `fast_pid` asks the solver for."""
ENOUGH = 0.1
"""Share of the rows that would keep noise under half of the label's entropy before correction (`enough_samples`). The
correction makes do with a tenth of them; with fewer, an atom is wrong by 0.2 to 0.7 bits, more than the floors say
(benchmarks/diagnostics.py)."""


def shows_dependence(pid: PID) -> bool:
    """Whether the decomposition is of enough rows to say something about I(X1; X2 | Y)."""
    return (pid.num_samples or 0) >= max(ROWS_FOR_DEPENDENCE, ROWS_PER_CLASS_FOR_DEPENDENCE * pid.num_classes)


def few_rows(pid: PID) -> Iterator[Finding]:
    """The decomposition is of too few rows for its classes, or for the cells of its table."""
    rows, classes = pid.num_samples or 0, pid.num_classes
    if not shows_dependence(pid):
        needed = max(ROWS_FOR_DEPENDENCE, ROWS_PER_CLASS_FOR_DEPENDENCE * classes)
        yield Finding(
            "few rows",
            "",
            f"{rows} probed rows of {classes} classes are too few to see whether the modalities depend on each other "
            f"given the label; the rule takes it that they do not: give at least {ROWS_PER_CLASS_FOR_DEPENDENCE} rows "
            f"a class and {ROWS_FOR_DEPENDENCE} in all, here {needed}.",
        )
        return
    first, second = pid.num_clusters
    needed = math.ceil(ENOUGH * first * second * (classes - 1) / math.log(classes)) if classes > 1 else 0
    if rows < needed:
        yield Finding(
            "few rows",
            "",
            f"{rows} probed rows are too few for the {first} x {second} clusters and {classes} classes of the probe, "
            f"so that its bits are wrong by tenths: give at least {needed} rows, or fewer probe_clusters.",
        )


def certificate_missed(pid: PID) -> Iterator[Finding]:
    """The solver stopped before its interval was narrow, and the rest is no small part of the noise.

    An interval wider than asked for, but within the noise floor of redundancy, changes nothing that a rule sees.
    """
    gap = float(pid.gap)
    floor = 0.0 if pid.redundancy_floor is None else float(pid.redundancy_floor)
    if gap > max(TOLERANCE, floor):
        yield Finding(
            "certificate missed",
            "",
            f"the solver stopped with redundancy and synergy certified to {gap:.3f} bits only, not to {TOLERANCE:g}: "
            "do not trust smaller differences, or give fewer probe_clusters.",
        )


def beneath_noise(entry: Mapping[str, Any], scale: Scale) -> Iterator[Finding]:
    """No atom is above its noise floor, although a head knows the label: the probe is blind here.

    That a single atom is within its floor is no failure, but what most runs have. The head must be above chance by five
    standard errors, because a head sees a little before a table of counts can.
    """
    floor, accuracy = entry["floor"], entry["accuracy"]
    atoms = {"redundancy": entry["redundancy"], "synergy": entry["synergy"], **entry["unique"]}
    if any(bits > floor[name] for name, bits in atoms.items()):
        return
    head = max(accuracy, key=lambda name: accuracy[name])
    if accuracy[head] > scale.chance + 5 * scale.error(scale.chance):
        atom = max(atoms, key=lambda name: atoms[name])
        kind = atom if atom in ("redundancy", "synergy") else f"uniqueness of {atom}"
        yield Finding(
            "noise above the atoms",
            "",
            f"no information is above its noise floor (the largest, {kind}, is {atoms[atom]:.3f} bits, floor "
            f"{floor[atom]:.3f}), although the {head} head has an accuracy of {accuracy[head]:.3f}, chance "
            f"{scale.chance:.3f}: what the rule decides here is noise; give more evaluation rows.",
        )
