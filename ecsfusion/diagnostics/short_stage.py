"""Diagnostic: stage 1 was too short, because a modality was still learning when it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ecsfusion.controller.adaptive import least_dependence
from ecsfusion.controller.probe import Probe
from ecsfusion.controller.rule import BUDGET_IS_USED
from ecsfusion.diagnostics.finding import Finding

NUM_READINGS = 4
"""The number of readings that are looked at. The mean of the last two is compared with that of the two before, because
single readings jump from epoch to epoch."""
MIN_LEARNED_SHARE = 0.2
"""The least share of all that the modality has learned that it must have learned in the last two readings."""
MIN_LASTING_SHARE = 0.25
"""The least share of the rise that must fall into the last reading. A jump that is over does not count."""


def short_stage(history: Sequence[Probe]) -> Iterator[Finding]:
    """Find each modality whose accuracy or information still rose when the weights for stage 2 were taken.

    The rise is that of the mean of the last two readings over the mean of the two before. It counts if it lasts, if it
    is more than `MIN_LEARNED_SHARE` of all that was learned, and if it is beyond noise: two standard errors of an
    accuracy, or the noise floor of the information. Nothing is reported if stage 2 starts from the initial weights, if
    the modalities depend on each other given the label (then more unimodal training would not help), or for a modality
    that did not train. benchmarks/diagnostics.py shows what such modalities learned afterwards in the recorded
    comparisons.

    Args:
        history: the probes up to the one that ended stage 1.

    Yields:
        One finding for each such modality.
    """
    start = history[-1].restored
    readings = [
        probe.reading for probe in history if probe.stage == "unimodal" and probe.step <= (start or 0)
    ]
    if len(readings) < NUM_READINGS:
        return
    latest = readings[-NUM_READINGS:]
    last = latest[-1]
    # The rule may have asked for the dependence at an earlier reading alone.
    if any(
        reading.information.dependence > max(reading.floor["synergy"], least_dependence(reading))
        for reading in readings
    ):
        return
    measurement = history[-1].reading.measurement
    scale, score = measurement.scale, measurement.score_in_words
    for name in last.unique:
        if not all(name in reading.training for reading in latest):
            continue
        accuracy, accuracy_rise = _level_and_rise([reading.accuracy[name] for reading in latest])
        bits, bits_rise = _level_and_rise([reading.mutual_information[name] for reading in latest])
        learned = accuracy - scale.chance
        if accuracy_rise > max(2 * scale.error(accuracy), MIN_LEARNED_SHARE * learned):
            rise = (
                f"its {score} of {accuracy:.3f} is {accuracy_rise:.3f} above that of the two readings before"
            )
        elif bits_rise > max(last.floor[name], MIN_LEARNED_SHARE * bits):
            rise = f"its {bits:.2f} bits about the label are {bits_rise:.2f} more than in the two readings before"
        else:
            continue
        yield Finding(
            "short stage",
            name,
            f"stage 1 ended at step {start} while {name} was still learning: on the average of two readings {rise}; "
            "give stage 1 more steps: a larger max_unimodal_share or unimodal_epochs, or more epochs in all.",
        )


def only_scouting(history: Sequence[Probe]) -> Iterator[Finding]:
    """Find that stage 1 used up its share of the budget while the rule still scouted.

    Then no modality was trained by itself: the run is joint training whose schedule was restarted.

    Args:
        history: the probes up to the one that ended stage 1.

    Yields:
        At most one finding.
    """
    unimodal = [probe for probe in history if probe.stage == "unimodal"]
    if (
        any(probe.phase != "scouting" for probe in unimodal)
        or BUDGET_IS_USED not in history[-1].decision.reason
    ):
        return
    yield Finding(
        "only scouting",
        "",
        f"stage 1 was all scouting: its share of the budget ended at step {history[-1].step}, after "
        f"{len(unimodal)} reading{'s' if len(unimodal) > 1 else ''}, so that no modality was trained by itself, and "
        "this run is joint training whose schedule was restarted; give more epochs, evaluate more often (eval_steps), "
        "give strategy_options={'scouting_readings': 1}, or train jointly, with strategy='joint-auxiliary'.",
    )


def _level_and_rise(values: Sequence[float]) -> tuple[float, float]:
    """The mean of the last two of four values, and how far it is above that of the first two; 0 if the rise is over."""
    before, after = (values[0] + values[1]) / 2, (values[2] + values[3]) / 2
    lasts = values[3] - values[2] > MIN_LASTING_SHARE * (after - before)
    return after, after - before if lasts else 0.0
