"""The record of a run: what it must remember across a restart, and how a checkpoint saves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from ecsfusion import __version__
from ecsfusion.controller.decision import Decision
from ecsfusion.controller.probe import Probe
from ecsfusion.training.record_formats import FORMAT, FORMATS, to_present_format


@dataclass
class StageRecord:
    """Everything that a run must remember across a restart.

    Attributes:
        stage: "unimodal" or "joint".
        training: the modalities that train at present.
        stage_start: the optimizer step at which this stage began.
        peak_step: the step of the weights that are kept as the peak of stage 1, or None.
        pending: a decision that the next training step carries out, or None.
        best_heads: for each modality whose best weights are kept, [step, score, minus the loss].
        processes: the number of processes that train; 0 before the first step.
        rule: the state of the rule.
        strategy: the state of the strategy.
        history: the probes, in order.
        warnings: the warnings of the run: "step", and the fields of `ecsfusion.diagnostics.finding.Finding`.
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
        """The record as JSON values, with the number of the format and the version of the library."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        values["pending"] = None if self.pending is None else self.pending.to_json()
        values["history"] = [probe.to_json() for probe in self.history]
        return {"format": FORMAT, "ecsfusion": __version__, **values}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> StageRecord:
        """Make the record from the values that `to_json` returned in this version or an earlier one.

        Fields that an older format lacks get the values of the start of a run.

        Raises:
            ValueError: the record was saved in a format that this version cannot read.
        """
        number, version = saved.get("format", 0), saved.get("ecsfusion", "before 0.1.0")
        values = {key: value for key, value in saved.items() if key not in ("format", "ecsfusion")}
        known = {entry.name for entry in fields(cls)}
        absent = sorted(FORMATS.get(number, frozenset()) - values.keys())
        unknown = sorted(values.keys() - known)
        if number not in FORMATS or absent or unknown:
            raise ValueError(
                f"the controller's state was saved by ecsfusion {version} in format {number!r}"
                + "".join(f", without {name!r}" for name in absent)
                + "".join(f", with {name!r}" for name in unknown)
                + f"; this is ecsfusion {__version__}, which reads formats 0 to {FORMAT}"
            )
        values = to_present_format(values, number)
        pending = values.get("pending")
        values["pending"] = None if pending is None else Decision.from_json(pending)
        values["history"] = [Probe.from_json(probe) for probe in values.get("history", [])]
        return cls(**values)


def check_saved_record(checkpoint: str | Path) -> list[str]:
    """Check that the state of the controller in a checkpoint can be read.

    Returns:
        The names of the fields that it lacks because an older version saved it.

    Raises:
        ValueError: there is no such state, or this version cannot read it; the message names the file and what to do.
    """
    file = Path(checkpoint, TRAINER_STATE_NAME)
    callbacks = json.loads(file.read_text(encoding="utf-8")).get("stateful_callbacks", {})
    start_anew = "start anew in another output_dir"
    try:
        saved = callbacks["ControllerCallback"]["attributes"]["saved_record"]
    except (KeyError, TypeError):
        raise ValueError(
            f"{file} has no state of the controller: no FusionTrainer saved it. Resume with the Trainer that did, or "
            f"{start_anew}."
        ) from None
    try:
        record = StageRecord.from_json(saved)
    except ValueError as error:
        raise ValueError(
            f"{file}: {error}. Install the version that saved it to go on, or {start_anew}."
        ) from error
    return sorted({entry.name for entry in fields(record)} - saved.keys())
