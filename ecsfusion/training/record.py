"""What a run must remember across a restart, and how a checkpoint keeps it: in a format with a number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from ecsfusion.controller.decision import Decision
from ecsfusion.controller.probe import Probe
from ecsfusion.training.record_formats import FORMAT, FORMATS, to_present_format


@dataclass
class StageRecord:
    """Everything that a run must remember across a restart.

    Attributes:
        stage: "unimodal" or "joint".
        training: modalities that train now.
        stage_start: optimizer step at which this stage began.
        peak_step: step of the weights kept as stage 1's peak, or None.
        pending: a decision that the next training step carries out, or None.
        best_heads: of each modality whose best weights are kept, [step, score, minus its loss].
        processes: how many processes train; 0 before the first step.
        rule: the state of the rule.
        strategy: the state of the strategy.
        history: the probes, in order.
        warnings: what the run has warned of: "step", and what `ecsfusion.diagnostics.finding.Finding` has.
    """

    stage: str = "unimodal"
    training: list[str] = field(default_factory=list)
    stage_start: int = 0
    peak_step: int | None = None
    pending: Decision | None = None
    best_heads: dict[str, list[float]] = field(default_factory=dict)
    processes: int = 0
    rule: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    history: list[Probe] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """JSON values, with the number of their format and the version that saved them."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["pending"] = None if self.pending is None else self.pending.to_json()
        values["history"] = [probe.to_json() for probe in self.history]
        return {"format": FORMAT, "ecsfusion": version_of("ecsfusion"), **values}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> StageRecord:
        """The record that `to_json` made these values of, in this version or an earlier one.

        What an older format did not know yet is as at the start of a run.

        Raises:
            ValueError: the record is of another version, and cannot be read.
        """
        number, version = saved.get("format", 0), saved.get("ecsfusion", "before 0.1.0")
        values = {key: value for key, value in saved.items() if key not in ("format", "ecsfusion")}
        known = {each.name for each in fields(cls)}
        absent = sorted(FORMATS.get(number, frozenset()) - values.keys())
        unknown = sorted(values.keys() - known)
        if number not in FORMATS or absent or unknown:
            raise ValueError(
                f"the controller's state was saved by ecsfusion {version} in format {number!r}"
                + "".join(f", without {name!r}" for name in absent)
                + "".join(f", with {name!r}" for name in unknown)
                + f"; this is ecsfusion {version_of('ecsfusion')}, which reads formats 0 to {FORMAT}"
            )
        values = to_present_format(values, number)
        pending = values.get("pending")
        values["pending"] = None if pending is None else Decision.from_json(pending)
        values["history"] = [Probe.from_json(probe) for probe in values.get("history", [])]
        return cls(**values)


def check_saved_record(checkpoint: str | Path) -> list[str]:
    """Fields that the controller's state in a checkpoint lacks, because an older version saved it.

    Raises:
        ValueError: there is no such state, or one that this version cannot read; it names the file and what to do.
    """
    file = Path(checkpoint, TRAINER_STATE_NAME)
    callbacks = json.loads(file.read_text(encoding="utf-8")).get("stateful_callbacks", {})
    anew = "start anew in another output_dir"
    try:
        saved = callbacks["ControllerCallback"]["attributes"]["saved_record"]
    except (KeyError, TypeError):
        raise ValueError(
            f"{file} has no state of the controller: no FusionTrainer saved it. Resume with the Trainer that did, or "
            f"{anew}."
        ) from None
    try:
        record = StageRecord.from_json(saved)
    except ValueError as error:
        raise ValueError(
            f"{file}: {error}. Install the version that saved it to go on, or {anew}."
        ) from error
    return sorted({each.name for each in fields(record)} - saved.keys())
