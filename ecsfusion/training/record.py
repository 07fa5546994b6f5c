"""What the controller must remember across a restart, and how a checkpoint keeps it: in a format with a number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from ecsfusion import __version__


@dataclass
class StageRecord:
    """Everything the controller must remember across a restart, as plain JSON values.

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
        history: one dictionary per probe (see `ecsfusion.reporting.trajectory`).
        warnings: what the run has warned of: step, and what `ecsfusion.diagnostics.finding.Finding` has.
    """

    stage: str = "unimodal"
    training: list[str] = field(default_factory=list)
    stage_start: int = 0
    peak_step: int | None = None
    pending: dict[str, Any] | None = None
    best_heads: dict[str, list[float]] = field(default_factory=dict)
    processes: int = 0
    rule: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)


RECORD_FORMAT = 1
"""Of the record in a checkpoint; raised when fields change. Records without a number are older, of format 0."""
FIELDS_OF_0 = frozenset({"stage", "training", "stage_start", "peak_step", "pending", "rule", "history"})


def plain(record: StageRecord) -> dict[str, Any]:
    """The record as JSON values, with the number of its format and the version that saved it."""
    return {"format": RECORD_FORMAT, "ecsfusion": __version__, **asdict(record)}


def record_of(saved: Mapping[str, Any]) -> StageRecord:
    """The record that `plain` made these values of; what format 0 did not know yet is as at the start of a run.

    Raises:
        ValueError: the record is of another version, and cannot be read.
    """
    number, version = saved.get("format", 0), saved.get("ecsfusion", "before 0.1.0")
    values = {key: value for key, value in saved.items() if key not in ("format", "ecsfusion")}
    fields_of = {0: FIELDS_OF_0, RECORD_FORMAT: frozenset(each.name for each in fields(StageRecord))}
    absent = sorted(fields_of.get(number, frozenset()) - values.keys())
    unknown = sorted(values.keys() - fields_of[RECORD_FORMAT])
    if number not in fields_of or absent or unknown:
        raise ValueError(
            f"the controller's state was saved by ecsfusion {version} in format {number!r}"
            + "".join(f", without {name!r}" for name in absent)
            + "".join(f", with {name!r}" for name in unknown)
            + f"; this is ecsfusion {__version__}, which reads formats 0 to {RECORD_FORMAT}"
        )
    return StageRecord(**values)


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
        record = record_of(saved)
    except ValueError as error:
        raise ValueError(
            f"{file}: {error}. Install the version that saved it to go on, or {anew}."
        ) from error
    return sorted(asdict(record).keys() - saved.keys())
