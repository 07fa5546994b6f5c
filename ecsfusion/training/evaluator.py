"""Evaluations of a run: outputs become a measurement, and what may be the last word on the final weights is kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import EvalPrediction
from transformers.utils import logging

from ecsfusion.evaluation.logged_values import log_values
from ecsfusion.evaluation.measure import measure
from ecsfusion.evaluation.measurement import Measurement
from ecsfusion.evaluation.outputs import Evaluation, check_probe_set
from ecsfusion.evaluation.scores import head_answers, score, score_name
from ecsfusion.model.problem_types import SINGLE_LABEL
from ecsfusion.model.readout import Readout
from ecsfusion.pid.decomposition import PID
from ecsfusion.pid.estimate import FewSamplesWarning
from ecsfusion.reporting.reliability import reliability_of
from ecsfusion.training.run import Run

logger = logging.get_logger(__name__)

BOOTSTRAP_REPLICATES = 100
"""Of the intervals after training. While training there are none: intervals are for people, a rule reads floors."""


@dataclass(frozen=True)
class Evaluated:
    """One evaluation.

    Attributes:
        outputs: what the model answered, row by row.
        measurement: the record of it.
        metrics: what was logged, with the prefix of the evaluation set.
    """

    outputs: Evaluation
    measurement: Measurement
    metrics: Mapping[str, float]


class Evaluator:
    """Measures what `transformers.Trainer` has evaluated.

    Args:
        user_metrics: `compute_metrics` of the user, or None.

    Attributes:
        probes: whether the present evaluation makes a decomposition.
        pid: the decomposition of the latest evaluation, with its tensors.
        seconds: time that the probes of this run took.
    """

    def __init__(self, user_metrics: Callable[[EvalPrediction], dict] | None) -> None:
        self.user_metrics = user_metrics
        self.probes = True
        self.pid: PID | None = None
        self.seconds = 0.0
        self._measured: list[tuple[Evaluation, Measurement]] = []
        """Evaluations whose log is being written; a callback of the user may evaluate within another evaluation."""
        self._kept: dict[tuple[str, int], Evaluated] = {}
        """By prefix and step: the latest evaluation, that of the best model, and that of the peak."""

    def begin(self) -> None:
        """Start a run."""
        self.seconds = 0.0
        self._kept.clear()

    def compute_metrics(self, run: Run, prediction: EvalPrediction) -> dict[str, float]:
        """What `transformers.Trainer` is to log of an evaluation: the measurement's values and the user's."""
        outputs, labels = prediction.predictions, prediction.label_ids
        of_user: dict[str, float] = {}
        if self.user_metrics is not None:
            logits = outputs[0] if isinstance(outputs, tuple) else outputs
            of_user = self.user_metrics(
                EvalPrediction(logits, labels, inputs=prediction.inputs, losses=prediction.losses)
            )
        if not isinstance(outputs, tuple):
            # `predict` keeps the fused logits only.
            kind = run.model.problem_type
            answers = head_answers(torch.from_numpy(outputs), kind)
            return {score_name(kind): score(answers, torch.from_numpy(labels), kind), **of_user}
        missing = [name for name in run.model.modalities if name not in outputs[1]]
        if missing:
            raise ValueError(
                f"the evaluation set has no {missing[0]!r}; a probe needs rows that have every modality."
            )
        evaluation = Evaluation.from_outputs(outputs, labels)
        evaluation.excluded_from_readout = run.plan.excluded_from_readout
        evaluation.check_finite()
        measurement = self._measure(run, evaluation)
        self._measured.append((evaluation, measurement))
        return {**log_values(measurement), **of_user}

    @contextmanager
    def measuring(self) -> Iterator[Callable[[Mapping[str, float]], Evaluated | None]]:
        """Around an evaluation by `transformers.Trainer`.

        Yields:
            A function that gives, afterwards, the evaluation whose log is given; None where it had no labels, or was
            one of several sets.
        """
        before = len(self._measured)
        latest: list[tuple[Evaluation, Measurement]] = []
        try:
            yield lambda metrics: Evaluated(*latest[-1], metrics) if latest else None
        finally:
            latest += self._measured[before:]
            del self._measured[before:]

    def _measure(self, run: Run, evaluation: Evaluation) -> Measurement:
        args, config = run.args, run.model.config
        rows = evaluation.probed_rows(args.probe_rows, args.seed) if self.probes else None
        decides = run.is_in_train and (run.plan.stages != "joint" or args.joint_pausing)
        if rows is not None and decides and run.model.problem_type == SINGLE_LABEL:
            names = {int(index): name for index, name in config.id2label.items()}
            check_probe_set(evaluation.labels.numpy()[rows], names, args.probe_clusters)
        # The first process measures for all, so that decisions agree whatever the other machines compute.
        measured: list[Any] = [None]
        if run.is_world_process_zero():
            measured = [self._measure_here(run, evaluation, rows)]
        measurement, pid = broadcast_object_list(measured)[0]
        if rows is not None:
            self.pid = pid
            self.seconds += measurement.seconds if run.is_in_train else 0.0
        return measurement

    def _measure_here(self, run: Run, evaluation: Evaluation, rows: Any) -> tuple[Measurement, PID | None]:
        fitted = run.model.config.readout
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            # Where it matters that samples are few, the run warns of it (`ecsfusion.diagnostics.estimate`).
            warnings.simplefilter("ignore", FewSamplesWarning)
            measurement, pid = measure(
                evaluation,
                rows,
                readout=None if fitted is None else Readout.from_dict(fitted),
                bootstrap=0 if run.is_in_train else BOOTSTRAP_REPLICATES,
                **probe_options(run),
            )
        for warning in caught:
            # Once a run, not at every probe.
            logger.warning_once(f"Probe: {warning.message}")
        complete, rows_in_all = measurement.complete_rows, measurement.num_rows
        if complete < rows_in_all:
            logger.warning_once(
                f"Probe: {complete} of {rows_in_all} rows have every modality; it takes these."
            )
        return measurement, pid

    # ---- evaluations that are kept ----

    def keep(self, run: Run, prefix: str, evaluated: Evaluated) -> None:
        """While training, remember what may be the last word: the latest, that of the best model, that of the peak."""
        wanted = {run.state.best_global_step, run.record.peak_step}
        for key in [key for key in self._kept if key[0] == prefix and key[1] not in wanted]:
            del self._kept[key]
        self._kept[prefix, run.state.global_step] = evaluated

    def keep_only(self, run: Run, prefix: str, evaluated: Evaluated) -> None:
        """After training, remember the latest evaluation of the probe set."""
        self._kept = {(prefix, run.state.global_step): evaluated}

    def forget(self) -> None:
        """Forget all evaluations."""
        self._kept.clear()

    def at(self, prefix: str, step: int) -> Evaluated | None:
        """The evaluation of the weights of this step, where it has been kept."""
        return self._kept.get((prefix, step))

    def latest(self, prefix: str) -> Evaluated | None:
        """An evaluation of this set that has been kept."""
        return next((evaluated for key, evaluated in self._kept.items() if key[0] == prefix), None)

    def measure_again(self, run: Run, prefix: str, evaluated: Evaluated) -> Evaluated:
        """The same pass, measured as after training: with intervals, and with the readout that the model has now."""
        self.probes = True
        measurement = self._measure(run, evaluated.outputs)
        values = {f"{prefix}_{key}": value for key, value in log_values(measurement).items()}
        return Evaluated(evaluated.outputs, measurement, {**evaluated.metrics, **values})

    def with_reliability(self, run: Run, evaluated: Evaluated) -> Measurement:
        """The measurement of an evaluation after training, with what the picture of reliability shows."""
        if not run.is_world_process_zero():
            return evaluated.measurement
        fitted = run.model.config.readout
        readout = None if fitted is None else Readout.from_dict(fitted)
        reliability = reliability_of(evaluated.outputs, readout, run.model.problem_type)
        return replace(evaluated.measurement, reliability=reliability)


def probe_options(run: Run) -> dict[str, Any]:
    """What `decompose_embeddings` is told in this run, but for the intervals."""
    return {
        "problem_type": run.model.problem_type,
        "device": run.args.device,
        "num_classes": run.model.config.num_labels,
        "num_clusters": run.args.probe_clusters,
        "num_components": run.args.probe_components,
        "seed": run.args.seed,
    }
