"""Converts records in older formats, from checkpoints of earlier versions, to the present format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMAT = 3
"""The number of the present format. It is raised when fields change; records without a number have format 0."""

_FIELDS_OF_0 = frozenset({"stage", "training", "stage_start", "peak_step", "pending", "rule", "history"})
_FIELDS_OF_1 = _FIELDS_OF_0 | {"best_heads", "processes", "strategy", "warnings"}
FORMATS: dict[int, frozenset[str]] = {0: _FIELDS_OF_0, 1: _FIELDS_OF_1, 2: _FIELDS_OF_1, FORMAT: _FIELDS_OF_1}
"""The fields that a record of each format must have."""


def to_present_format(values: dict[str, Any], number: int) -> dict[str, Any]:
    """Convert the fields of a record to the present format.

    Args:
        values: the fields of the saved record.
        number: the number of the format that it was saved in.
    """
    if number in (2, FORMAT):
        # What format 3 added to the information has neutral values where it is absent.
        return values
    history = values["history"]
    pending = None if values["pending"] is None else _decision(values["pending"])
    # The modalities that train after a probe are those that trained up to the next one. After the last probe, they
    # are those of the pending decision, or those that train at present.
    training_after = [entry["training"] for entry in history[1:]]
    training_after.append(values["training"] if pending is None else pending["training"])
    return {
        **values,
        "pending": pending,
        "rule": _rule_state(values["rule"]),
        "history": [_probe(entry, after) for entry, after in zip(history, training_after, strict=False)],
        "warnings": [
            {"diagnostic" if key == "signature" else key: value for key, value in warning.items()}
            for warning in values.get("warnings", [])
        ],
    }


def _decision(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"ends_stage" if key == "stage_over" else key: value for key, value in values.items()}


def _probe(entry: Mapping[str, Any], training_after: list[str]) -> dict[str, Any]:
    """Convert an entry of the history, which was a flat dictionary. Values that it lacks become neutral ones."""
    calibrated = entry.get("calibrated")
    scores = {**entry["accuracy"], **({} if calibrated is None else {"calibrated": calibrated})}
    restored, reset = entry["restored"], entry.get("reset", [])
    # Where stage 2 started from the initial weights, all modalities were reset and no weights were restored.
    restores_nothing = restored is None or restored == entry["step"] or set(reset) == set(entry["unique"])
    information = {
        "redundancy": entry["redundancy"],
        "unique": entry["unique"],
        "synergy": entry["synergy"],
        "mutual_information": entry.get("information", {}),
        "joint_mutual_information": sum(entry["unique"].values()) + entry["redundancy"] + entry["synergy"],
        "conditional_mutual_information": entry.get("conditional_dependence", 0.0),
        "gap": 0.0,
        "floor": entry["floor"],
        "interval": {},
        "plugin": {},
        # With so many rows the conditional mutual information is used. It was saved as zero if rows were too few.
        "num_samples": 1 << 30,
        "num_clusters": [],
        "num_classes": 1,
    }
    return {
        "reading": {
            "step": entry["step"],
            "epoch": entry.get("epoch", 0.0),
            "progress": 0.0,
            "stage": entry["stage"],
            "training": entry["training"],
            "measurement": {
                "score": "accuracy",
                "scores": scores,
                "calibration_error": {},
                "num_rows": 0,
                "complete_rows": 0,
                "scale": {"rows": 0, "chance": 0.0},
                "information": information,
                "reliability": None,
                "seconds": 0.0,
            },
        },
        "decision": {
            "training": list(training_after),
            "reason": entry["reason"],
            "ends_stage": restored is not None,
            "restore": None if restores_nothing else restored,
            "peak": entry["peak"],
            "reset": list(reset),
            "overdue": entry.get("overdue", False),
        },
        "trained_fused_head": entry.get("fused_trains", entry["stage"] == "joint"),
    }


def _rule_state(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the state of a rule to the present names."""
    if not values:
        return {}
    state = dict(values["state"])
    name = {"rehearsal": "pretrain-then-reset"}.get(values["rule"], values["rule"])
    if name == "weak-first" and "waited" in state:
        state["not_risen"] = state.pop("waited")
    if name == "peak-synergy" and "waited" in state:
        waiting = {"best_accuracy": state.pop("waiting_accuracy"), "not_risen": state.pop("waited")}
        state["waiting"] = waiting
    return {**values, "rule": name, "state": state}
