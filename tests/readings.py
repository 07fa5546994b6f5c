"""Measurements, readings and probes for tests, made of flat keyword arguments.

A value that is left out is that of a healthy run of ten classes; a value that is given is used as it is, broken or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ecsfusion.controller.decision import Decision
from ecsfusion.controller.probe import Probe
from ecsfusion.controller.reading import Reading
from ecsfusion.evaluation.measurement import Information, Measurement, Scale

TWO = ("image", "audio")


def make_information(
    modalities: Sequence[str] = TWO,
    *,
    redundancy: Any = 0.5,
    unique: Any = None,
    synergy: Any = 0.05,
    floor: Any = 0.05,
    mutual_information: Any = None,
    joint_mutual_information: Any = 2.0,
    conditional_mutual_information: Any = 0.02,
    gap: float = 1e-4,
    interval: dict[str, tuple[float, float]] | None = None,
    plugin: dict[str, Any] | None = None,
    num_samples: int = 1000,
    num_clusters: tuple[int, ...] = (20, 20),
    num_classes: int = 10,
    measured_dependence: float | None = None,
    num_groups: int | None = None,
) -> Information:
    """A decomposition.

    Args:
        modalities: names.
        redundancy: bits; `synergy` likewise.
        unique: bits by modality, or one number for all.
        floor: by modality, "redundancy" and "synergy", or one number for all.
        mutual_information: bits by modality; by default redundancy + uniqueness.
        plugin: the atoms without correction; by default the corrected ones.
        **others: as in `Information`.
    """
    if unique is None:
        unique = {name: 0.8 if number == 0 else 0.4 for number, name in enumerate(modalities)}
    elif isinstance(unique, float):
        unique = dict.fromkeys(modalities, unique)
    if isinstance(floor, float):
        floor = dict.fromkeys((*modalities, "redundancy", "synergy"), floor)
    if mutual_information is None:
        mutual_information = {name: redundancy + bits for name, bits in unique.items()}
    return Information(
        redundancy=redundancy,
        unique=unique,
        synergy=synergy,
        mutual_information=mutual_information,
        joint_mutual_information=joint_mutual_information,
        conditional_mutual_information=conditional_mutual_information,
        gap=gap,
        floor=floor,
        interval=interval or {},
        plugin=plugin or {"redundancy": redundancy, "unique": unique, "synergy": synergy},
        num_samples=num_samples,
        num_clusters=num_clusters,
        num_classes=num_classes,
        measured_dependence=measured_dependence,
        num_groups=num_groups,
    )


def make_measurement(
    modalities: Sequence[str] = TWO,
    *,
    score: str = "accuracy",
    accuracy: Any = None,
    calibration_error: dict[str, float] | None = None,
    rows: int = 1000,
    complete_rows: int | None = None,
    chance: float = 0.1,
    reliability: dict[str, Any] | None = None,
    seconds: float = 0.0,
    **information: Any,
) -> Measurement:
    """An evaluation.

    Args:
        modalities: names.
        score: "accuracy" or "r2".
        accuracy: the score by head, or one number for all heads.
        rows: of the evaluation set.
        chance: of the scale.
        **information: of `make_information`, or `information=` for a decomposition that exists (or None).
    """
    if accuracy is None:
        accuracy = {name: 0.6 if number == 0 else 0.45 for number, name in enumerate(modalities)}
        accuracy |= {"fused": 0.7, "calibrated": 0.72}
    elif isinstance(accuracy, float):
        accuracy = dict.fromkeys((*modalities, "fused", "calibrated"), accuracy)
    if calibration_error is None:
        calibration_error = {} if score == "r2" else {"fused": 0.08, "calibrated": 0.02}
    if "information" in information:
        decomposition = information.pop("information")
        assert not information, f"information= and {sorted(information)} exclude each other"
    else:
        decomposition = make_information(modalities, **{"num_samples": rows, **information})
    return Measurement(
        score=score,
        scores=accuracy,
        calibration_error=calibration_error,
        num_rows=rows,
        complete_rows=rows if complete_rows is None else complete_rows,
        scale=Scale(rows=rows, chance=chance),
        information=decomposition,
        reliability=reliability,
        seconds=seconds,
    )


def make_reading(
    step: Any = 100,
    epoch: Any = None,
    progress: Any = None,
    stage: Any = "unimodal",
    training: Sequence[str] | None = None,
    *,
    modalities: Sequence[str] = TWO,
    **measurement: Any,
) -> Reading:
    """A reading. An epoch is ten steps and the budget a thousand, unless `epoch` and `progress` say otherwise.

    Args:
        step: optimizer steps done.
        epoch: epochs done.
        progress: share of the budget.
        stage: "unimodal" or "joint".
        training: the modalities that trained up to it; by default all.
        modalities: names.
        **measurement: of `make_measurement`, or `measurement=` for one that exists.
    """
    if "measurement" in measurement:
        measured = measurement.pop("measurement")
        assert not measurement, f"measurement= and {sorted(measurement)} exclude each other"
    else:
        measured = make_measurement(modalities, **measurement)
    return Reading(
        step=step,
        epoch=step / 10 if epoch is None else epoch,
        progress=step / 1000 if progress is None else progress,
        stage=stage,
        training=tuple(modalities if training is None else training),
        measurement=measured,
    )


def make_probe(step: Any = 100, *, trained_fused_head: bool = False, **values: Any) -> Probe:
    """A probe: the fields of a decision, and all that `make_reading` takes.

    Args:
        step: of the reading.
        trained_fused_head: whether the fused head trained up to the probe.
        **values: `reason`, `ends_stage`, `restore`, `peak`, `reset`, `overdue` make the decision, whose `training` is
            `next_training` (by default that of the reading, or all where the stage ends). A `decision=` that exists
            can be given instead. All others are of the reading.
    """
    of_decision = {field.name for field in fields(Decision)} - {"training"}
    decided = {name: values.pop(name) for name in of_decision & values.keys()}
    next_training, decision = values.pop("next_training", None), values.pop("decision", None)
    reading = make_reading(step, **values)
    if decision is None:
        ends = decided.get("ends_stage", False)
        following = tuple(values.get("modalities", TWO)) if ends else reading.training
        decision = Decision(
            **{
                "training": following if next_training is None else tuple(next_training),
                "reason": "all train",
                **decided,
            }
        )
    return Probe(reading, decision, trained_fused_head)
