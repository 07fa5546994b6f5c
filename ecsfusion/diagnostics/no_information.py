"""Diagnostics: a modality knows nothing about the label, from the start or after it knew something."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from ecsfusion.controller.probe import Probe
from ecsfusion.controller.reading import Reading
from ecsfusion.diagnostics.finding import NEGLIGIBLE_SYNERGY, Finding
from ecsfusion.evaluation.measurement import Measurement
from ecsfusion.evaluation.rounding import told_apart
from ecsfusion.model.names import FUSED

NEGLIGIBLE_INFORMATION = 0.02
"""Information up to this many bits counts as none, even if the noise floor is lower."""
MAX_FLOOR_SHARE = 0.1
"""Where noise alone reaches a larger share of the bits of the label, as in few rows or groups, or few rows of a rare
class, nothing is said of a modality: it may know as much. A head that was right in 84 % of 50 rows of two classes, and
in 92 % of others (chance: 74 %), told less than noise might, 0.23 bits."""
LOST_READINGS = 2
"""Readings in a row without information after which it counts as lost. A single one may follow an unlucky step."""


def no_information(
    readings: Sequence[Reading], trained_heads: Collection[str] | None = None
) -> Iterator[Finding]:
    """Find each modality that trained and says nothing about the label in all of these readings.

    Its information is within its noise floor, and the accuracy of its head, if that is trained, is within three
    standard errors of chance. Synergy must be within its floor too, and the fused head must not be ahead of every
    single head: if the label needs several modalities together, each says nothing alone, and that is no failure. Rows
    of a single class have nothing to say.

    Args:
        readings: successive readings, or a single reading of the trained model.
        trained_heads: the modalities whose own heads are trained; None for all.

    Yields:
        One finding for each such modality.
    """
    last = readings[-1]
    scale = last.measurement.scale
    heads = set(last.unique if trained_heads is None else trained_heads)
    if fusion_is_ahead(last.measurement, heads & set(last.unique)):
        return
    for name in last.unique:
        if all(name in reading.training and _is_silent(reading, name, heads) for reading in readings):
            bits, floor = told_apart(last.mutual_information[name], last.floor[name], 3)
            score = last.score_in_words
            alone = f"; its head's {score} is {last.accuracy[name]:.3f}, chance {scale.chance:.3f}"
            yield Finding(
                "no information",
                name,
                f"{name} says nothing about the label ({bits} bits, noise floor {floor}"
                f"{alone if name in heads else ''}): look at its inputs, check whether its rows belong to these "
                "labels, raise its rate in modality_learning_rates, or leave it out if fusion is no worse without it.",
            )


def fusion_is_ahead(measurement: Measurement, trained_heads: Collection[str]) -> bool:
    """Whether the fused head is better than each of these heads by more than three standard errors.

    Then every modality of two is worth its place.
    """
    alone = [measurement.scores[name] for name in trained_heads if name in measurement.scores]
    if not alone or len(alone) != 2 or FUSED not in measurement.scores:
        return False
    error = measurement.scale.error
    fused, best = measurement.scores[FUSED], max(alone)
    return fused - best > 3 * math.hypot(error(fused), error(best))


def information_lost(history: Sequence[Probe]) -> Iterator[Finding]:
    """Find each modality that clearly knew the label and has said nothing in the last `LOST_READINGS` probes.

    It clearly knew the label if its accuracy was six standard errors above chance and its information was twice the
    noise floor. What it knew before it was reset to its initial weights does not count.

    Args:
        history: the probes up to now, at least one.

    Yields:
        One finding for each such modality.
    """
    for name in history[-1].reading.unique:
        start = max((i + 1 for i, probe in enumerate(history) if name in probe.decision.reset), default=0)
        if start > len(history) - LOST_READINGS:
            continue
        earlier = [probe.reading for probe in history[start:-LOST_READINGS]]
        latest = [probe.reading for probe in history[-LOST_READINGS:]]
        known = [reading for reading in earlier if _clearly_knows(reading, name)]
        if known and all(_is_silent(reading, name, {name}) for reading in latest):
            last_known, measurement = known[-1], latest[-1].measurement
            score, chance = measurement.score_in_words, measurement.scale.chance
            yield Finding(
                "information lost",
                name,
                f"{name} said {last_known.mutual_information[name]:.2f} bits about the label at step "
                f"{last_known.step}, with an {score} of {last_known.accuracy[name]:.3f}, and has said nothing since "
                f"step {latest[0].step} ({score} {latest[-1].accuracy[name]:.3f}, chance {chance:.3f}): check whether "
                "its inputs have failed, or lower its rate in modality_learning_rates.",
            )


def _clearly_knows(reading: Reading, name: str) -> bool:
    scale = reading.measurement.scale
    is_right = reading.accuracy[name] > scale.chance + 6 * scale.error(scale.chance)
    return is_right and reading.mutual_information[name] > 2 * max(
        reading.floor[name], NEGLIGIBLE_INFORMATION
    )


def _is_silent(reading: Reading, name: str, trained_heads: Collection[str]) -> bool:
    return (
        reading.floor[name] <= MAX_FLOOR_SHARE * _label_bits(reading)
        and reading.mutual_information[name] <= max(reading.floor[name], NEGLIGIBLE_INFORMATION)
        and reading.synergy <= max(reading.floor["synergy"], NEGLIGIBLE_SYNERGY)
        and (name not in trained_heads or reading.measurement.scale.is_chance(reading.accuracy[name]))
    )


def _label_bits(reading: Reading) -> float:
    """The most bits that a label can have, whose commonest class is as frequent as chance says."""
    classes = max(reading.information.num_classes, 2)
    # Chance is 0 for a real target, whose classes are equally frequent.
    commonest = max(reading.measurement.scale.chance, 1 / classes)
    shares = [commonest, *[(1 - commonest) / (classes - 1)] * (classes - 1)]
    return -sum(share * math.log2(share) for share in shares if share > 0)
