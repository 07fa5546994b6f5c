"""Diagnostic: stage 1 was too short, because a modality was still learning when it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ecsfusion.controller.adaptive import DEPENDENCE
from ecsfusion.controller.probe import Probe
from ecsfusion.diagnostics.finding import Finding

NUM_READINGS = 4
"""Readings that are looked at: the last two are compared with the two before, because single ones jump from epoch to
epoch."""
MIN_LEARNT_SHARE = 0.2
"""Share of all that the modality has learnt that it must have learnt in the last two readings."""
MIN_LASTING_SHARE = 0.25
"""Share of the rise that the last reading must still have gained: a jump that is over is no rise."""


def short_stage(history: Sequence[Probe]) -> Iterator[Finding]:
    """Find each modality whose accuracy, or information, rose up to the weights that stage 2 starts from.

    The rise is that of the last two readings over the two before. It counts where it lasts, is more than
    `MIN_LEARNT_SHARE` of all that was learnt, and is beyond noise: two standard errors of an accuracy, or the noise
    floor of the information. Nothing is said where stage 2 starts from the initial weights, nor where the modalities
    depend on each other given the label (more unimodal training is not what they need), nor of a modality that did not
    train. benchmarks/diagnostics.py shows what such modalities learnt afterwards in the recorded comparisons.

    Args:
        history: the probes up to the one that ended stage 1.
    """
    start = history[-1].restored
    readings = [
        probe.reading for probe in history if probe.stage == "unimodal" and probe.step <= (start or 0)
    ]
    if len(readings) < NUM_READINGS:
        return
    latest = readings[-NUM_READINGS:]
    last = latest[-1]
    if last.conditional_mutual_information > max(last.floor["synergy"], DEPENDENCE):
        return
    scale = history[-1].reading.measurement.scale
    for name in last.unique:
        if not all(name in reading.training for reading in latest):
            continue
        accuracy, gained = _level_and_rise([reading.accuracy[name] for reading in latest])
        bits, gained_bits = _level_and_rise([reading.mutual_information[name] for reading in latest])
        learnt = accuracy - scale.chance
        if gained > max(2 * scale.error(accuracy), MIN_LEARNT_SHARE * learnt):
            grown = f"its accuracy of {accuracy:.3f} is {gained:.3f} above that of the two readings before"
        elif gained_bits > max(last.floor[name], MIN_LEARNT_SHARE * bits):
            grown = f"its {bits:.2f} bits about the label are {gained_bits:.2f} more than in the two readings before"
        else:
            continue
        yield Finding(
            "short stage",
            name,
            f"stage 1 ended at step {start} while {name} was still learning: on the average of two readings {grown}; "
            "give stage 1 more steps: a larger max_unimodal_share or unimodal_epochs, or more epochs in all.",
        )


def _level_and_rise(values: Sequence[float]) -> tuple[float, float]:
    """The mean of the last two of four readings, and how far it is above that of the first two; 0 if that is over."""
    before, now = (values[0] + values[1]) / 2, (values[2] + values[3]) / 2
    lasts = values[3] - values[2] > MIN_LASTING_SHARE * (now - before)
    return now, now - before if lasts else 0.0
