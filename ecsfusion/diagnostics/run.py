"""Runs the diagnostics at each probe, at the end of stage 1 and after training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import combinations
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerState
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ecsfusion.controller.probe import Probe
from ecsfusion.controller.reading import Reading
from ecsfusion.controller.rule import Rule
from ecsfusion.diagnostics.duplicate import duplicate
from ecsfusion.diagnostics.estimate import atoms_below_noise, few_rows, wide_certificate
from ecsfusion.diagnostics.finding import Finding
from ecsfusion.diagnostics.groups import few_groups, repeating_rows
from ecsfusion.diagnostics.late_decision import late_end_of_stage, late_pause
from ecsfusion.diagnostics.memorization import memorized
from ecsfusion.diagnostics.no_information import information_lost, no_information
from ecsfusion.diagnostics.short_stage import only_scouting, short_stage
from ecsfusion.diagnostics.shortcut import shortcut
from ecsfusion.evaluation.information import decompose
from ecsfusion.evaluation.measurement import Information, Measurement
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.evaluation.scores import quality
from ecsfusion.pid.clusters import FewSamplesWarning
from ecsfusion.pid.linear_share import linear_share

logger = logging.get_logger(__name__)

MIN_READINGS_WITHOUT_INFORMATION = 3
"""Readings without information after which a modality is reported. Some learn nothing in the first two epochs."""
MIN_READINGS_BELOW_NOISE = 2
"""Readings in a row without any atom above its noise floor after which this is reported."""


class ObservedModel(Protocol):
    """For `RunDiagnostics`: what it reads of the model."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities."""

    @property
    def problem_type(self) -> str:
        """The kind of the labels; see `ecsfusion.model.problem_types`."""

    @property
    def trained_heads(self) -> tuple[str, ...]:
        """The modalities whose own heads are trained as their encoders are now."""


class ObservedPlan(Protocol):
    """For `RunDiagnostics`: what it reads of the plan of a run."""

    @property
    def stages(self) -> str:
        """The stages that are trained: "two-stage", "joint" or "unimodal"."""


class ObservedRecord(Protocol):
    """For `RunDiagnostics`: what it reads of the record of a run, and the list of warnings that it adds to."""

    stage: str
    """The present stage: "unimodal" or "joint"."""
    training: list[str]
    """The modalities that train at present."""
    history: list[Probe]
    """The probes up to now."""
    warnings: list[dict[str, Any]]
    """The warnings of the run: dictionaries with "step" and the fields of a `Finding`."""


class ReadableRun(Protocol):
    """For diagnostics and reports: what both read of the trainer.

    Attributes:
        args: a `FusionTrainingArguments`.
        state: the state of the trainer.
        train_dataset: the training rows.
        measurements: evaluations after training, by split; "validation" is the probe set.
    """

    args: Any
    state: TrainerState
    train_dataset: Any
    measurements: dict[str, Measurement]

    @property
    def model(self) -> ObservedModel:
        """The model that is trained."""

    @property
    def record(self) -> ObservedRecord:
        """The record that checkpoints keep."""

    @property
    def rule(self) -> Rule | None:
        """The rule of the controller; None if no rule decides."""

    @property
    def plan(self) -> ObservedPlan:
        """What the run does, as resolved when training started."""


class ObservedGroups(Protocol):
    """For `RunDiagnostics`: the groups of rows in a run."""

    def shared(self, groups: torch.Tensor | None, split: str) -> Iterator[Finding]:
        """Find groups (N,) of an evaluation that the run has trained on."""


class ObservedRun(ReadableRun, Protocol):
    """For `RunDiagnostics`: the trainer that it observes.

    Attributes:
        groups: the groups of its rows.
    """

    groups: ObservedGroups

    def evaluation_sets(self) -> dict[str, Any]:
        """The evaluation sets by name, the probe set first."""

    def is_world_process_zero(self) -> bool:
        """Whether this is the first process."""

    def evaluate_training_rows(self) -> Evaluation:
        """Evaluate training rows, at most as many as the probe set has."""

    def probe_options(self) -> dict[str, Any]:
        """The keyword arguments of this run for `decompose`."""


class RunDiagnostics:
    """Calls the diagnostics of a run, and logs and records each finding as a warning.

    Each finding is logged once, by the first process, and kept in `run.record.warnings`. Every checkpoint holds this
    list, so a resumed run does not repeat a warning. The summary at the end of training and the model card list all
    warnings. No diagnostic changes what a run does.

    At the end of stage 1 and after training, training rows are evaluated too, to see whether a modality has memorized
    them. They are at most as many rows as the probe set has, so the cost in the whole run is that of two more
    evaluations and decompositions. This is left out in the first epoch, and if the training set is a stream.

    Args:
        run: the trainer.
    """

    def __init__(self, run: ObservedRun) -> None:
        self.run = run

    def before_rows(self, findings: Iterable[Finding]) -> None:
        """Report what was found of the data sets, the model and a schedule, before rows are trained on."""
        self._warn(findings)

    def after_probe(
        self, evaluation: Evaluation, measurement: Measurement, asks_for_dependence: bool = True
    ) -> None:
        """Run the diagnostics of a probe in training, whose entry is the last one of `run.record.history`.

        Args:
            evaluation: the model's outputs on the probe set.
            measurement: the measurement that was made of them.
            asks_for_dependence: whether the rule decided by the dependence.
        """
        run, information = self.run, measurement.information
        # Probes in checkpoints of an older version lack the information by modality.
        history = [probe for probe in run.record.history if probe.reading.mutual_information]
        if information is None or not history:
            return
        latest = history[-1]
        self._warn(
            [
                *few_rows(information, asks_for_dependence, measurement.score == "r2"),
                *wide_certificate(information),
                *information_lost(history),
            ]
        )
        self._warn_of_groups(evaluation, "validation", information)
        if run.rule is not None and (run.rule.context.joint_pausing or latest.stage == "unimodal"):
            self._warn(late_pause(history, run.rule.pauses_at))
        ends_unimodal_stage = latest.restored is not None
        if ends_unimodal_stage or run.state.global_step >= run.state.max_steps:
            self._warn(
                finding
                for pair in self._pairs(evaluation, information)
                for finding in duplicate(pair, measurement, partial(self._told, evaluation))
            )
        if ends_unimodal_stage:
            self._after_unimodal_stage(history, measurement)

    def after_training(self) -> None:
        """Run the diagnostics of the trained model, whose evaluations are in `run.measurements` by now."""
        run, measurement = self.run, self.run.measurements.get("validation")
        if measurement is None or measurement.information is None:
            return
        reading = Reading(
            step=run.state.global_step,
            epoch=float(run.state.epoch or 0.0),
            progress=run.state.global_step / max(run.state.max_steps, 1),
            stage=run.record.stage,
            training=tuple(run.record.training),
            measurement=measurement,
        )
        silent = no_information([reading], run.model.trained_heads)
        self._warn([*silent, *atoms_below_noise(measurement), *self._shortcuts()])
        self._compare_with_training_rows(measurement)

    def after_evaluation(self, evaluation: Evaluation, split: str) -> None:
        """Run the diagnostics of shortcuts and of groups after an evaluation outside of training."""
        self._warn(self._shortcuts())
        self._warn_of_groups(evaluation, split, self.run.measurements[split].information)

    def _warn_of_groups(self, evaluation: Evaluation, split: str, information: Information | None) -> None:
        name = split.removeprefix("eval_")
        self._warn(self.run.groups.shared(evaluation.groups, name))
        if not any(warning["diagnostic"] == "repeated rows" for warning in self.run.record.warnings):
            self._warn(repeating_rows(evaluation))
        if information is not None and split == "validation":
            self._warn(few_groups(information))

    def _after_unimodal_stage(self, history: Sequence[Probe], measurement: Measurement) -> None:
        self._warn(late_end_of_stage(history))
        if self.run.plan.stages == "two-stage":
            self._warn([*short_stage(history), *only_scouting(history)])
        readings = [probe.reading for probe in history]
        if len(readings) >= MIN_READINGS_WITHOUT_INFORMATION:
            self._warn(no_information(readings[-MIN_READINGS_WITHOUT_INFORMATION:]))
        findings = [
            [*atoms_below_noise(reading.measurement)] for reading in readings[-MIN_READINGS_BELOW_NOISE:]
        ]
        if len(findings) >= MIN_READINGS_BELOW_NOISE and all(findings):
            self._warn(findings[-1])
        self._compare_with_training_rows(measurement)

    def _compare_with_training_rows(self, validation: Measurement) -> None:
        """Run the diagnostic of memorization, with one pass over training rows and one decomposition of them.

        At most as many rows are used as the probe set has. The random state of the run is not changed.
        """
        run, information = self.run, validation.information
        # Rows that were not trained on yet are not memorized: there validation rows are of another kind (other groups).
        if information is None or (run.state.epoch or 0.0) < 1.0:
            return
        if not all(map(has_length, [run.train_dataset, *run.evaluation_sets().values()])):
            logger.info(
                "A data set is a stream, of which no rows can be drawn: the run is not checked for memorization."
            )
            return
        device = run.args.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            evaluation = run.evaluate_training_rows()
        rows = evaluation.probed_rows(run.args.probe_rows, run.args.seed)
        # Rows that are not finite are left out here. A training step raises an error for them.
        for name in evaluation.embeddings:
            rows = rows[evaluation.embedded(name, rows).isfinite().all(dim=1).cpu().numpy()]
        names, num_clusters = tuple(information.unique), max(information.num_clusters, default=1)
        min_rows = max(num_clusters, information.num_samples / 2)
        if len(rows) < min_rows or not set(names) <= set(evaluation.present):
            # There are too few rows that have every modality.
            return
        options: dict[str, Any] = {"reads_heads": information.is_by_heads}
        if not information.is_by_heads:
            options["num_clusters"] = num_clusters
        training = self._decompose(evaluation, rows, names, **options)
        scores = {name: quality(evaluation, name, run.model.problem_type)[0] for name in run.model.modalities}
        self._warn(memorized(training, scores, validation))

    def _pairs(self, evaluation: Evaluation, information: Information) -> Iterator[Information]:
        """The decomposition of each pair of modalities by clusters, which show what copies share beyond the label.

        If there is only one pair and clusters were counted, it is the given one.
        """
        names = tuple(information.unique)
        if len(names) == 2 and not information.is_by_heads:
            yield information
            return
        rows = evaluation.probed_rows(self.run.args.probe_rows, self.run.args.seed)
        for pair in combinations(names, 2):
            yield self._decompose(evaluation, rows, pair, reads_heads=False)

    def _told(self, evaluation: Evaluation, name: str, by: str) -> float:
        """The share of what a modality holds beyond the label that another one tells, on the rows of a probe."""
        rows = evaluation.probed_rows(self.run.args.probe_rows, self.run.args.seed)
        target, source = (evaluation.embedded(each, rows) for each in (name, by))
        return linear_share(target, source, evaluation.labels[rows], evaluation.group_numbers(rows))

    def _decompose(
        self, evaluation: Evaluation, rows: np.ndarray, names: Sequence[str], **options: Any
    ) -> Information:
        """Decompose these rows and modalities, in the first process for all."""
        decomposed: list[Any] = [None]
        if self.run.is_world_process_zero():
            options = {**self.run.probe_options(), "bootstrap": 0, **options}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FewSamplesWarning)
                decomposed = [Information.from_pid(decompose(evaluation, rows, names, **options))]
        return broadcast_object_list(decomposed)[0]

    def _shortcuts(self) -> Iterator[Finding]:
        """Compare every other set that was evaluated after training with the probe set."""
        measurements = self.run.measurements
        if "validation" in measurements:
            for split, other in measurements.items():
                if split != "validation":
                    name, heads = split.removeprefix("eval_"), self.run.model.trained_heads
                    yield from shortcut(measurements["validation"], other, name, heads)

    def _warn(self, findings: Iterable[Finding]) -> None:
        """Log and record each finding of which the run has not warned yet."""
        record, step = self.run.record, self.run.state.global_step
        for finding in findings:
            if any(
                (warning["diagnostic"], warning["about"]) == (finding.diagnostic, finding.about)
                for warning in record.warnings
            ):
                continue
            record.warnings.append({"step": step, **asdict(finding)})
            if self.run.is_world_process_zero():
                logger.warning(f"Step {step}, {finding.diagnostic}: {finding.sentence}")
