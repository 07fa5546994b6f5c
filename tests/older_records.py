"""The record of a run as version 0.1.0 saved it, in format 1, made of a present one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ecsfusion.controller.probe import Probe
from ecsfusion.training.record import StageRecord


def entry_of_format_1(probe: Probe) -> dict[str, Any]:
    """An entry of the history, which was flat."""
    reading, decision = probe.reading, probe.decision
    scores = dict(reading.accuracy)
    return {
        "calibrated": scores.pop("calibrated"),
        "accuracy": scores,
        "conditional_dependence": reading.information.dependence,
        "information": reading.mutual_information,
        "fused_trains": probe.trained_fused_head,
        "reason": decision.reason,
        "peak": decision.peak,
        "overdue": decision.overdue,
        "reset": list(decision.reset),
        "restored": probe.restored,
        "training": list(probe.training),
        **{key: getattr(reading, key) for key in ("step", "epoch", "stage")},
        **{key: getattr(reading, key) for key in ("redundancy", "unique", "synergy", "floor")},
    }


def record_of_format_1(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON values of a record, from those of the present format."""
    record = StageRecord.from_json(saved)
    pending = None
    if record.pending is not None:
        pending = record.pending.to_json()
        pending["stage_over"] = pending.pop("ends_stage")
    return {
        **saved,
        "format": 1,
        "pending": pending,
        "history": [entry_of_format_1(probe) for probe in record.history],
        "warnings": [
            {"signature" if key == "diagnostic" else key: value for key, value in warning.items()}
            for warning in record.warnings
        ],
    }
