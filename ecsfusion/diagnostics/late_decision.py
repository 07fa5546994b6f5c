"""Diagnostics of the rule: a pause or an end of stage 1 that came later than the rule's threshold and patience say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from ecsfusion.controller.decision import PauseThreshold
from ecsfusion.controller.lead import Lead
from ecsfusion.controller.probe import Probe
from ecsfusion.controller.reading import Reading
from ecsfusion.diagnostics.finding import Finding

MAX_LATE_READINGS = 2
"""The largest number of readings between the rule's end of stage 1 and the real end that is not reported. A given
length of stage 1 is often a whole number of epochs, so one or two readings more are usual."""


def late_pause(history: Sequence[Probe], threshold: PauseThreshold | None) -> Iterator[Finding]:
    """Find each modality that has led clearly in more readings than the rule's patience and still trains.

    A modality that was paused earlier in this stage is left out, because the rule resumed it on purpose.

    Args:
        history: the probes up to now, at least one.
        threshold: the threshold of the rule. If it is None, the rule pauses no modality because of its lead, and
            nothing is reported.

    Yields:
        One finding for each such modality.
    """
    if threshold is None:
        return
    latest = history[-1]
    readings = [probe.reading for probe in history if probe.stage == latest.stage]
    for name in latest.training:
        if any(name not in reading.training for reading in readings):
            continue
        leading = _readings_in_the_lead(readings, name, threshold)
        if len(leading) > threshold.patience:
            lead = _lead(latest.reading, name)
            yield Finding(
                "late decision",
                f"pause of {name}",
                f"{name} has led clearly since step {leading[-1].step} and still trained up to step {latest.step}, "
                f"{len(leading)} readings where the rule's patience is {threshold.patience} ({lead}): the rule reacts "
                "later than its own threshold; pause the modality there, or use strategy='peak-synergy'.",
            )


def late_end_of_stage(history: Sequence[Probe]) -> Iterator[Finding]:
    """Find that a stage 1 of given length ended more than `MAX_LATE_READINGS` after the rule would have ended it.

    Args:
        history: the probes up to the one that ended stage 1.

    Yields:
        At most one finding.
    """
    overdue = list(takewhile(lambda probe: probe.decision.overdue, reversed(history[:-1])))
    if len(overdue) > MAX_LATE_READINGS:
        first = overdue[-1]
        why = first.decision.reason.split("otherwise it would end, ")[-1]
        yield Finding(
            "late decision",
            "end of stage 1",
            f"stage 1 ended at step {history[-1].step}, {len(overdue)} readings after the rule would have ended it "
            f"(step {first.step}: {why}): give a smaller unimodal_epochs, or leave it out.",
        )


def _lead(reading: Reading, name: str) -> Lead:
    return Lead.over(reading, name, [other for other in reading.training if other != name])


def _readings_in_the_lead(readings: Sequence[Reading], name: str, threshold: PauseThreshold) -> list[Reading]:
    """The latest readings in a row in which the modality leads, the newest first."""
    return list(takewhile(lambda reading: _leads(reading, name, threshold), reversed(readings)))


def _leads(reading: Reading, name: str, threshold: PauseThreshold) -> bool:
    if reading.step == 0 or len(reading.training) < 2 or name not in reading.training:
        return False
    return _lead(reading, name).is_clear(threshold.ratio, threshold.margin)
