"""Evaluation as a probe: one pass gives scores, decomposition and readout, and none is repeated."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import Subset
from transformers import EvalPrediction
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ecsfusion.evaluation.outputs import Evaluation, check_probe_set
from ecsfusion.evaluation.probe import head_answers, probe_metrics, scale_of, score, score_name
from ecsfusion.model.problem_types import SINGLE_LABEL
from ecsfusion.model.readout import Readout
from ecsfusion.pid.decomposition import PID
from ecsfusion.pid.estimate import FewSamplesWarning
from ecsfusion.reporting.reliability import reliability_of
from ecsfusion.training.callbacks import ControllerCallback, StageRecord
from ecsfusion.training.stepping import SteppingTrainer

logger = logging.get_logger(__name__)


class ProbingTrainer(SteppingTrainer):
    """The part of [`FusionTrainer`] that evaluates, probes, and fits the readout."""

    compute_metrics: Any
    control: Any

    def __init__(
        self, *args: Any, compute_metrics: Callable[[EvalPrediction], dict] | None = None, **kwargs: Any
    ) -> None:
        self._user_metrics = compute_metrics
        self._evaluated: Evaluation | None = None
        self._kept: dict[tuple[str, int], Evaluation] = {}  # by prefix and step: latest, best, and peak
        self._probing = True
        self._probe_seconds = 0.0
        self.pid: PID | None = None
        """The decomposition of the latest evaluation."""
        self.reports: dict[str, dict[str, Any]] = {}
        """Evaluations after training by split: their metrics, prefix, number of rows, and decomposition."""
        super().__init__(*args, compute_metrics=self._compute_metrics, **kwargs)

    @property
    def controller(self) -> ControllerCallback:
        """The callback that holds the rule and the record (a restored checkpoint replaces it)."""
        return next(cb for cb in self.callback_handler.callbacks if isinstance(cb, ControllerCallback))

    @property
    def record(self) -> StageRecord:
        """Stage, who trains, and the history of probes."""
        return self.controller.record

    def _probe_prefix(self) -> str:
        if isinstance(self.eval_dataset, Mapping):
            return f"eval_{next(iter(self.eval_dataset))}"
        return "eval"

    def _evaluation_sets(self) -> dict[str, Any]:
        if self.eval_dataset is None:
            return {}
        sets = self.eval_dataset
        return (
            {f"eval_dataset[{n!r}]": d for n, d in sets.items()}
            if isinstance(sets, Mapping)
            else {"eval_dataset": sets}
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate all heads and probe the embeddings in the same pass.

        Metrics: `accuracy` (fused head), `accuracy_MODALITY`, `accuracy_calibrated` (fractions), and in bits
        `redundancy`, `unique_MODALITY`, `synergy`, `information_MODALITY`, their noise floors `*_floor*` and the
        uncorrected `plugin_*`. Args and returns otherwise as in `transformers.Trainer.evaluate`.
        """
        is_probe = metric_key_prefix == self._probe_prefix()
        self._probing = is_probe or not self.is_in_train  # of several evaluation sets, the first is probed
        metrics = super().evaluate(
            eval_dataset, [] if ignore_keys is None else ignore_keys, metric_key_prefix
        )
        evaluation, self._evaluated = self._evaluated, None
        if evaluation is None:  # it has no labels, or was an evaluation of several sets
            return metrics
        evaluation.metrics = metrics
        if self.is_in_train:
            self._keep(metric_key_prefix, evaluation)
        else:
            self._report(metric_key_prefix, evaluation)
            self._kept = {(metric_key_prefix, self.state.global_step): evaluation} if is_probe else self._kept
        return metrics

    def evaluate_rows(self, dataset: Any) -> Evaluation:
        """Answers of all heads, and embeddings, on the rows of any data set: nothing is logged, nothing decided."""
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        try:
            output = self.evaluation_loop(
                self.get_test_dataloader(dataset), "Embedding", prediction_loss_only=False, ignore_keys=[]
            )
        finally:
            self.compute_metrics = compute_metrics
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, output.metrics)
        return Evaluation.from_outputs(output.predictions, output.label_ids)

    def evaluate_training_rows(self) -> Evaluation:
        """`evaluate_rows` of rows of the training set: at most as many as are evaluated, drawn by `args.seed`."""
        rows, evaluated = self.train_dataset, next(iter(self._evaluation_sets().values()))
        if not (has_length(rows) and has_length(evaluated)):
            raise ValueError(
                "train_dataset or eval_dataset is a stream, of which no rows can be drawn; give data sets of a length."
            )
        number = min(len(rows), len(evaluated))
        drawn = np.random.default_rng(self.args.seed).choice(len(rows), number, replace=False)
        return self.evaluate_rows(Subset(rows, np.sort(drawn).tolist()))

    def _keep(self, prefix: str, evaluation: Evaluation) -> None:
        """Remember what may be the last word: the latest evaluation, that of the best model, and of the peak."""
        wanted = {self.state.best_global_step, self.record.peak_step}
        for key in [key for key in self._kept if key[0] == prefix and key[1] not in wanted]:
            del self._kept[key]
        self._kept[prefix, self.state.global_step] = evaluation

    def _report(self, prefix: str, evaluation: Evaluation) -> None:
        split = "validation" if prefix == self._probe_prefix() else prefix
        report = {"metrics": evaluation.metrics, "prefix": prefix, "rows": len(evaluation.labels)}
        report["scale"] = scale_of(evaluation, self.model.problem_type)
        if self.is_world_process_zero():
            fitted = self.model.config.readout
            readout = None if fitted is None else Readout.from_dict(fitted)
            report["reliability"] = reliability_of(evaluation, readout, self.model.problem_type)
        self.reports[split] = {**report, "pid": self.pid}

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        outputs, labels = prediction.predictions, prediction.label_ids
        extra: dict[str, float] = {}
        if self._user_metrics is not None:
            logits = outputs[0] if isinstance(outputs, tuple) else outputs
            extra = self._user_metrics(
                EvalPrediction(logits, labels, inputs=prediction.inputs, losses=prediction.losses)
            )
        if not isinstance(outputs, tuple):  # predict() keeps the fused logits only
            kind = self.model.problem_type
            answers = head_answers(torch.from_numpy(outputs), kind)
            return {score_name(kind): score(answers, torch.from_numpy(labels), kind), **extra}
        missing = [name for name in self.model.modalities if name not in outputs[1]]
        if missing:
            raise ValueError(
                f"the evaluation set has no {missing[0]!r}; a probe needs rows that have every modality."
            )
        self._evaluated = Evaluation.from_outputs(outputs, labels)
        rule = self.controller.rule
        self._evaluated.excluded_from_readout = () if rule is None else rule.excluded_from_readout
        self._evaluated.check_finite()
        return {**self._measure(self._evaluated), **extra}

    def _measure(self, evaluation: Evaluation) -> dict[str, float]:
        """Accuracies, and the decomposition where this evaluation is a probe."""
        args, config = self.args, self.model.config
        rows = evaluation.probed_rows(args.probe_rows, args.seed) if self._probing else None
        decides = self.is_in_train and (args.stages != "joint" or args.joint_pausing)
        if rows is not None and decides and self.model.problem_type == SINGLE_LABEL:
            names = {int(index): name for index, name in config.id2label.items()}
            check_probe_set(evaluation.labels.numpy()[rows], names, args.probe_clusters)
        # The first process probes for all, so that decisions agree whatever the other machines compute.
        probed: list[Any] = [None]
        if self.is_world_process_zero():
            start = time.perf_counter()
            probed = [(*self._probe(evaluation, rows), time.perf_counter() - start)]
        metrics, pid, seconds = broadcast_object_list(probed)[0]
        if rows is None:
            return metrics
        self.pid = pid
        if self.is_in_train:
            self._probe_seconds += seconds
        return {**metrics, "probe_seconds": round(seconds, 4)}

    def _probe(self, evaluation: Evaluation, rows: Any) -> tuple[dict[str, float], PID | None]:
        fitted = self.model.config.readout
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            # Where it matters that samples are few, the run warns of it (`ecsfusion.diagnostics.estimate`).
            warnings.simplefilter("ignore", FewSamplesWarning)
            measured = probe_metrics(
                evaluation,
                rows,
                readout=None if fitted is None else Readout.from_dict(fitted),
                # Intervals are for people; the rule reads values and floors.
                bootstrap=0 if self.is_in_train else 100,
                **self._probe_options(),
            )
        for warning in caught:  # once a run, not at every probe
            logger.warning_once(f"Probe: {warning.message}")
        complete, number = int(measured[0]["complete_rows"]), len(evaluation.labels)
        if complete < number:
            logger.warning_once(f"Probe: {complete} of {number} rows have every modality; it takes these.")
        return measured

    def _probe_options(self) -> dict[str, Any]:
        """What `decompose_embeddings` is told in this run, but for the intervals."""
        return {
            "problem_type": self.model.problem_type,
            "device": self.args.device,
            "num_classes": self.model.config.num_labels,
            "num_clusters": self.args.probe_clusters,
            "num_components": self.args.probe_components,
            "seed": self.args.seed,
        }

    def fit_readout(self) -> Readout | None:
        """Evaluate the model as it is and fit the calibrated combination of its heads on the evaluation set.

        The result is kept in `model.config.readout`, so that the saved model returns calibrated probabilities.
        """
        self.model.config.readout = None
        self._kept.clear()
        self.evaluate()
        return self._set_readout(
            next((e for key, e in self._kept.items() if key[0] == self._probe_prefix()), None)
        )

    def _final_step(self) -> int:
        """The step of the weights that training ended with."""
        best = self.state.best_global_step
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint and best is not None:
            return best
        if self.args.stages == "unimodal":  # which may have ended at an earlier peak, also before a restart
            kept = [entry["restored"] for entry in self.record.history if entry["restored"] is not None]
            return kept[-1] if kept else self.state.global_step
        return self.state.global_step

    def _fit_readout_once_evaluated(self) -> None:
        """The same without another pass where the final weights were evaluated in training."""
        step = self._final_step()
        prefixes = (
            [f"eval_{name}" for name in self.eval_dataset]
            if isinstance(self.eval_dataset, Mapping)
            else ["eval"]
        )
        full_precision = not (self.args.bf16_full_eval or self.args.fp16_full_eval)
        if not full_precision or any((prefix, step) not in self._kept for prefix in prefixes):
            self.fit_readout()
            return
        self.model.config.readout, self._probing = None, True
        for prefix in prefixes:
            evaluation = self._kept[prefix, step]
            again = {f"{prefix}_{key}": value for key, value in self._measure(evaluation).items()}
            evaluation.metrics = {**evaluation.metrics, **again}
            self.log(dict(evaluation.metrics))
            self._report(prefix, evaluation)
        self._set_readout(self._kept[prefixes[0], step])

    def _set_readout(self, evaluation: Evaluation | None) -> Readout | None:
        if evaluation is None:
            return None
        readout = evaluation.fit_readout(self.model.problem_type)
        self.model.config.readout = readout.to_dict()
        self._kept.clear()
        return readout
