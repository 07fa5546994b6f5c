"""Failure signatures of a run, looked for at probes, at the hand-over and at the end, and each said once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ecsfusion.diagnostics.duplicate import duplicate
from ecsfusion.diagnostics.estimate import beneath_noise, certificate_missed, few_rows
from ecsfusion.diagnostics.finding import Finding, Scale
from ecsfusion.diagnostics.late_decision import late_end_of_stage, late_pause
from ecsfusion.diagnostics.memorization import memorized
from ecsfusion.diagnostics.no_information import lost_modality, silent_modality
from ecsfusion.diagnostics.short_stage import stage_one_too_short
from ecsfusion.diagnostics.shortcut import shortcut
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.evaluation.probe import decompose_embeddings, scale_of
from ecsfusion.pid.decomposition import PID
from ecsfusion.pid.estimate import FewSamplesWarning
from ecsfusion.training.best_heads import quality
from ecsfusion.training.callbacks import reading_from_metrics, reading_values
from ecsfusion.training.probing import ProbingTrainer

logger = logging.get_logger(__name__)

SILENT_READINGS = 3
"""A modality may learn nothing in an epoch or two before it starts."""
BLIND_READINGS = 2


class WatchingTrainer(ProbingTrainer):
    """The part of [`FusionTrainer`] that warns: what the readings say against a run, in one sentence each.

    A warning is said once about each modality, by the first process, and kept in `record.warnings`, which every
    checkpoint holds: a resumed run does not repeat it. The end of training and the model card list them all. Every
    signature is a function of its own (`ecsfusion.diagnostics`), and none of them changes what a run does.

    At the hand-over, and when training is over, training rows are evaluated too, to see whether a modality has
    memorized them: as many as the evaluation set has at most, so it costs as much as two more evaluations and
    probes in the whole run. It is left out where the training set is a stream.
    """

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As `ProbingTrainer.evaluate`; afterwards look for what the run has to be warned of."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if not self.is_in_train:
            self._warn(self._shortcuts())
        elif metric_key_prefix == self._probe_prefix() and self.pid is not None and self.record.history:
            self._watch_probe(self.pid)
        return metrics

    def _watch_probe(self, pid: PID) -> None:
        # Probes of a checkpoint of an older version lack what signatures read.
        history = [entry for entry in self.record.history if "information" in entry]
        evaluation = self._kept[self._probe_prefix(), self.state.global_step]
        rule = self.controller.rule
        scale = scale_of(evaluation, self.model.problem_type)
        self._warn([*few_rows(pid), *certificate_missed(pid), *lost_modality(history, scale)])
        if rule is not None and (rule.joint_pausing or history[-1]["stage"] == "unimodal"):
            self._warn(late_pause(history, rule.pauses_at))
        ends_stage_one = history[-1]["restored"] is not None
        if ends_stage_one or self.state.global_step >= self.state.max_steps:
            self._warn(finding for pair in self._pairs(evaluation, pid) for finding in duplicate(pair))
        if ends_stage_one:
            self._watch_end_of_stage_one(history, evaluation, pid, scale)

    def _watch_end_of_stage_one(
        self, history: Sequence[Mapping[str, Any]], evaluation: Evaluation, pid: PID, scale: Scale
    ) -> None:
        self._warn(late_end_of_stage(history))
        if self.args.stages == "two-stage":
            self._warn(stage_one_too_short(history, scale))
        if len(history) >= SILENT_READINGS:
            self._warn(silent_modality(history[-SILENT_READINGS:], scale))
        if len(history) >= BLIND_READINGS and all(
            [*beneath_noise(entry, scale)] for entry in history[-BLIND_READINGS:]
        ):
            self._warn(beneath_noise(history[-1], scale))
        self._watch_training_rows(pid, self._accuracies(evaluation), scale)

    def _watch_end(self) -> None:
        """Look at the model as training left it: the reports have just been made."""
        report = self.reports.get("validation")
        if report is None or report["pid"] is None:
            return
        entry, scale = self._entry_of(report), report["scale"]
        self._warn([*silent_modality([entry], scale), *beneath_noise(entry, scale), *self._shortcuts()])
        self._watch_training_rows(report["pid"], entry["accuracy"], scale)

    def _watch_training_rows(self, pid: PID, accuracy: Mapping[str, float], scale: Scale) -> None:
        """Compare training rows with the probe set's decomposition and accuracies: memorization.

        One pass over training rows, as many as are evaluated, and one decomposition. No random number of the run is
        used up.
        """
        if not all(map(has_length, [self.train_dataset, *self._evaluation_sets().values()])):
            logger.info("A stream has no rows to draw from: nothing is said about memorized training rows.")
            return
        device = self.args.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            evaluation = self.evaluate_training_rows()
        rows = evaluation.probed_rows(self.args.probe_rows, self.args.seed)
        for (
            values
        ) in evaluation.embeddings.values():  # a row that breaks the loss is the training step's to name
            rows = rows[np.isfinite(values[rows]).all(axis=1)]
        enough = max(pid.num_clusters[0], (pid.num_samples or 0) / 2)
        if len(rows) < enough or not set(pid.names) <= set(evaluation.present):
            return  # too few have every modality to be compared
        training = self._decompose(evaluation, rows, pid.names, num_clusters=pid.num_clusters[0])
        self._warn(memorized(training, pid, self._accuracies(evaluation), accuracy, scale))

    def _pairs(self, evaluation: Evaluation, pid: PID) -> Iterator[PID]:
        """The decomposition of every two modalities; of only two it is `pid`."""
        if len(pid.names) == 2:
            yield pid
            return
        rows = evaluation.probed_rows(self.args.probe_rows, self.args.seed)
        for pair in combinations(pid.names, 2):
            yield self._decompose(evaluation, rows, pair)

    def _decompose(self, evaluation: Evaluation, rows: Any, names: Sequence[str], **options: Any) -> PID:
        """Of these rows and modalities, by the first process, for all."""
        found: list[Any] = [None]
        if self.is_world_process_zero():
            embeddings = {name: evaluation.embeddings[name][rows] for name in names}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FewSamplesWarning)
                found = [
                    decompose_embeddings(
                        embeddings,
                        evaluation.labels.numpy()[rows],
                        bootstrap=0,
                        **{**self._probe_options(), **options},
                    )
                ]
        return broadcast_object_list(found)[0]

    def _accuracies(self, evaluation: Evaluation) -> dict[str, float]:
        kind = self.model.problem_type
        return {name: quality(evaluation, name, kind)[0] for name in self.model.modalities}

    def _shortcuts(self) -> Iterator[Finding]:
        """Every other set that was evaluated after training, compared with the probe set."""
        ours = self.reports.get("validation")
        for split, other in self.reports.items():
            if ours is not None and other is not ours:
                entries = self._entry_of(ours), self._entry_of(other)
                yield from shortcut(
                    entries[0], ours["scale"], entries[1], other["scale"], split.removeprefix("eval_")
                )

    def _entry_of(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """A report as a probe of the trained model."""
        return reading_values(
            reading_from_metrics(
                report["metrics"], report["prefix"], self.model.modalities, self.state, self.record
            )
        )

    def _warn(self, findings: Iterable[Finding]) -> None:
        """Say and keep what has not been said yet."""
        for finding in findings:
            if any(
                (w["signature"], w["about"]) == (finding.signature, finding.about)
                for w in self.record.warnings
            ):
                continue
            self.record.warnings.append({"step": self.state.global_step, **asdict(finding)})
            if self.is_world_process_zero():
                logger.warning(f"Step {self.state.global_step}, {finding.signature}: {finding.sentence}")
