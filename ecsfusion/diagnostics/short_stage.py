"""Stage 1 too short: a modality was still learning when it was handed over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ecsfusion.diagnostics.finding import Finding, Scale

READINGS = 4
"""Two readings are compared with the two before: single ones jump from epoch to epoch."""
SHARE = 0.2
"""Of all that the modality has learnt, which it must have learnt in the last two readings."""
LASTING = 0.25
"""Of that rise, which the last reading must still have gained: a jump that is over is no rise."""
DEPENDENCE = 0.15
"""Bits of I(X1; X2 | Y), as in the rule `adaptive`: where modalities depend on each other given the label, it is not
unimodal training that they need."""


def stage_one_too_short(history: Sequence[Mapping[str, Any]], scale: Scale) -> Iterator[Finding]:
    """For each modality whose accuracy, or information, rose up to the weights that stage 2 starts from.

    The rise is that of the last two readings over the two before. It counts where it lasts, is more than `SHARE` of all
    that was learnt, and is beyond noise: two standard errors of an accuracy, or the noise floor of the information.
    Nothing is said where stage 2 starts anew or the modalities depend on each other, nor of a modality that did not
    train. (What such modalities learnt afterwards, in the recorded comparisons: benchmarks/diagnostics.py.)

    Args:
        history: the probes up to the one that ended stage 1.
        scale: of the probe set.
    """
    start = history[-1]["restored"]
    readings = [entry for entry in history if entry["stage"] == "unimodal" and entry["step"] <= (start or 0)]
    if len(readings) < READINGS:
        return
    last = readings[-READINGS:]
    if last[-1]["conditional_mutual_information"] > max(last[-1]["floor"]["synergy"], DEPENDENCE):
        return
    for name in last[-1]["unique"]:
        if not all(name in entry["training"] for entry in last):
            continue
        accuracy, gained = _level_and_rise([entry["accuracy"][name] for entry in last])
        bits, gained_bits = _level_and_rise([entry["information"][name] for entry in last])
        learnt = accuracy - scale.chance
        if gained > max(2 * scale.error(accuracy), SHARE * learnt):
            grown = f"its accuracy of {accuracy:.3f} is {gained:.3f} above that of the two readings before"
        elif gained_bits > max(last[-1]["floor"][name], SHARE * bits):
            grown = f"its {bits:.2f} bits about the label are {gained_bits:.2f} more than in the two readings before"
        else:
            continue
        yield Finding(
            "stage 1 too short",
            name,
            f"stage 1 ended at step {start} while {name} was still learning: on the average of two readings {grown}; "
            "give stage 1 more steps: a larger max_unimodal_share or unimodal_epochs, or more epochs in all.",
        )


def _level_and_rise(values: Sequence[float]) -> tuple[float, float]:
    """The mean of the last two of four readings, and how far it is above that of the first two; 0 if that is over."""
    before, now = (values[0] + values[1]) / 2, (values[2] + values[3]) / 2
    lasts = values[3] - values[2] > LASTING * (now - before)
    return now, now - before if lasts else 0.0
