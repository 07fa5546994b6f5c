"""Lag: a pause, or the end of stage 1, that came later than the rule's own threshold and patience say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from ecsfusion.controller.lead import Lead
from ecsfusion.controller.rule import PauseThreshold
from ecsfusion.diagnostics.finding import Finding

LATE_READINGS = 2
"""A rule ends stage 1 after a patience of its own. One or two readings later may be the end of an epoch."""


def late_pause(history: Sequence[Mapping[str, Any]], threshold: PauseThreshold | None) -> Iterator[Finding]:
    """A modality leads clearly in more readings than the rule's patience, and trains on.

    A modality that was paused in this stage before is left out: the rule has let it go on knowingly. So is a rule that
    pauses nobody for a lead, whose threshold is None.
    """
    if threshold is None:
        return
    now = history[-1]
    stage = [entry for entry in history if entry["stage"] == now["stage"]]
    for name in now["training"]:
        if any(name not in entry["training"] for entry in stage):
            continue
        leading = _readings_in_the_lead(stage, name, threshold)
        if len(leading) > threshold.patience:
            lead = _lead(now, name)
            yield Finding(
                "lag",
                f"pause of {name}",
                f"{name} has led clearly since step {leading[-1]['step']} and still trained up to step {now['step']}, "
                f"{len(leading)} readings where the rule's patience is {threshold.patience} ({lead}): the rule reacts "
                "later than its own threshold; pause the modality there, or use rule='peak-synergy'.",
            )


def late_end_of_stage(history: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Stage 1 had a given length, and the rule had wanted to end it more than `LATE_READINGS` readings before.

    Args:
        history: the probes up to the one that ended stage 1.
    """
    late = list(takewhile(lambda entry: entry["overdue"], reversed(history[:-1])))
    if len(late) > LATE_READINGS:
        first = late[-1]
        yield Finding(
            "lag",
            "hand-over",
            f"stage 1 ended at step {history[-1]['step']}, {len(late)} readings after the rule would have ended it "
            f"(step {first['step']}: {first['reason'].split('otherwise it would end, ')[-1]}): give a smaller "
            "unimodal_epochs, or leave it out.",
        )


def _lead(entry: Mapping[str, Any], name: str) -> Lead:
    rivals = [other for other in entry["training"] if other != name]
    unique, floor = entry["unique"], entry["floor"]
    rival = max(rivals, key=lambda other: unique[other])
    return Lead(unique[name], floor[name], rival, unique[rival], floor[rival])


def _readings_in_the_lead(
    stage: Sequence[Mapping[str, Any]], name: str, threshold: PauseThreshold
) -> list[Mapping[str, Any]]:
    """The latest readings in a row, the last one first."""
    return list(takewhile(lambda entry: _leads(entry, name, threshold), reversed(stage)))


def _leads(entry: Mapping[str, Any], name: str, threshold: PauseThreshold) -> bool:
    if entry["step"] == 0 or len(entry["training"]) < 2 or name not in entry["training"]:
        return False
    return _lead(entry, name).is_clear(threshold.ratio, threshold.margin)
