"""What a report reads of a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from ecsfusion.diagnostics.run import ObservedModel, ObservedPlan, ObservedRecord, ReadableRun
from ecsfusion.evaluation.measurement import Measurement


class ReportedModel(ObservedModel, Protocol):
    """What a report reads of the model."""

    config: Any
    """A `FusionConfig`, of which `num_labels` is read."""
    encoders: nn.ModuleDict
    """The encoder of each modality."""
    best_heads: nn.ModuleDict
    """The second copies of encoder and head, by modality."""
    sources: dict[str, str | None]
    """By modality, the name or path of the weights that the encoder started from."""

    def num_parameters(self) -> int:
        """Number of parameters."""


class ReportedStrategy(Protocol):
    """What a report reads of the strategy."""

    @property
    def label(self) -> str:
        """Its name, by which it is chosen."""


class ReportedPlan(ObservedPlan, Protocol):
    """What a report reads of the plan of a run."""

    @property
    def strategy(self) -> ReportedStrategy:
        """How the model was trained."""

    @property
    def auxiliary_weight(self) -> float:
        """The weight of the unimodal losses in stage 2."""


class ReportedRecord(ObservedRecord, Protocol):
    """What a report reads of a run's record."""

    stage_start: int
    """The step at which the present stage began."""
    best_heads: dict[str, list[float]]
    """By modality, the step, score and negative loss of its best weights."""


class ReportedRun(ReadableRun, Protocol):
    """For reports: what they read of the trainer after training."""

    @property
    def model(self) -> ReportedModel:
        """The trained model."""

    @property
    def record(self) -> ReportedRecord:
        """The record that checkpoints keep."""

    @property
    def plan(self) -> ReportedPlan:
        """What the run did, as resolved when training started."""

    @property
    def loaded_best_step(self) -> int | None:
        """The step of the best weights that the model got at the end of the run; None if it has not got them."""


def rows_by_split(run: ReportedRun) -> dict[str, int]:
    """The number of rows of the training set, where it has a length, and of every split that was evaluated."""
    rows = {"train": len(run.train_dataset)} if hasattr(run.train_dataset, "__len__") else {}
    measured: Mapping[str, Measurement] = run.measurements
    return rows | {split: each.num_rows for split, each in measured.items() if each.num_rows}


def groups_by_split(run: ReportedRun) -> dict[str, int]:
    """The number of groups, such as subjects, of every split that was evaluated and whose rows have groups."""
    measured: Mapping[str, Measurement] = run.measurements
    return {split: each.num_groups for split, each in measured.items() if each.num_groups is not None}
