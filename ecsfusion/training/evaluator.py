"""Makes a measurement of each evaluation in a run, and keeps the evaluations that may be those of the final weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import IterableDataset
from transformers import EvalPrediction
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ecsfusion.evaluation.contributions import contributions_of
from ecsfusion.evaluation.embeddings import HeldEmbeddings
from ecsfusion.evaluation.logged_values import log_values
from ecsfusion.evaluation.measure import measure
from ecsfusion.evaluation.measurement import Measurement
from ecsfusion.evaluation.outputs import Evaluation, check_enough_rows, check_probe_set
from ecsfusion.evaluation.scores import head_answers, score, score_name
from ecsfusion.model.names import FUSED
from ecsfusion.model.problem_types import REGRESSION, SINGLE_LABEL
from ecsfusion.model.readout import Readout
from ecsfusion.pid.clusters import FewSamplesWarning
from ecsfusion.pid.decomposition import PID
from ecsfusion.reporting.reliability import reliability_of
from ecsfusion.training.labels import class_column
from ecsfusion.training.run import Run

logger = logging.get_logger(__name__)

BOOTSTRAP_REPLICATES = 100
"""Bootstrap replicates for the intervals after training. In training there are none, because rules do not use them."""

NUM_OUTPUTS = 4
"""The outputs of the model that a probe reads: logits, unimodal logits, embeddings, present."""
EMBEDDINGS = 2
"""The place of the embeddings among these outputs."""
KEEP_OUTPUTS = (
    "If prediction_step is replaced, let it return all outputs of super().prediction_step as they are; "
    "compute_metrics gets the logits alone anyway, and preprocess_logits_for_metrics may change them for it."
)


@dataclass(frozen=True)
class Evaluated:
    """One evaluation.

    Attributes:
        outputs: the outputs of the model, row by row.
        measurement: the measurement of these outputs.
        user_names: the names of the user's own metrics, without a prefix.
        asks_for_dependence: whether the rule asked for the dependence.
        metrics: the values that were logged, with the prefix of the evaluation set.
    """

    outputs: Evaluation
    measurement: Measurement
    user_names: frozenset[str]
    asks_for_dependence: bool
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Pass:
    """One pass of the model over a data set.

    Attributes:
        embeddings: where its embeddings go; None where they stay with the other outputs.
        measures: whether something is computed from its outputs.
    """

    embeddings: HeldEmbeddings | None
    measures: bool


class Evaluator:
    """Makes a measurement of each evaluation by `transformers.Trainer`.

    Args:
        user_metrics: `compute_metrics` of the user, or None.

    Attributes:
        user_preprocessing: `preprocess_logits_for_metrics` of the user, or None.
        probes: whether the present evaluation makes a decomposition.
        decides: whether the present evaluation is one of the probe set in training, so that its rows must suffice for
            decisions.
        pid: the decomposition of the latest evaluation, with its tensors.
        seconds: time that the probes of this run took: all passes in training, with what is computed from them.
        seconds_measuring: the part of it for what is computed: scores, and the decomposition. The rest is the passes,
            which an evaluation without a probe would take as well.
    """

    def __init__(self, user_metrics: Callable[[EvalPrediction], dict] | None) -> None:
        self.user_metrics = user_metrics
        self.user_preprocessing: Callable[[Any, Any], Any] | None = None
        self.probes = True
        self.decides = False
        self.pid: PID | None = None
        self.seconds = self.seconds_measuring = 0.0
        self._passes: list[Pass] = []
        """The passes that run now, the innermost last: a callback may begin one during another one."""
        self._measured: list[tuple[Evaluation, Measurement, frozenset[str], bool]] = []
        """Evaluations that are not finished. There can be several: a callback may evaluate during an evaluation."""
        self._kept: dict[tuple[str, int], Evaluated] = {}
        """By prefix and step: the latest evaluation, that of the best model, and that of the peak."""

    def begin(self) -> None:
        """Start a run."""
        self.seconds = self.seconds_measuring = 0.0
        self._kept.clear()

    @contextmanager
    def passing(self, run: Run, holds_embeddings: bool, measures: bool) -> Iterator[None]:
        """A context for one pass over a data set, which may run inside of another one.

        Args:
            run: the trainer.
            holds_embeddings: whether the embeddings stay on the device; otherwise the Trainer makes arrays of them.
            measures: whether something is computed from the outputs.
        """
        widths, steps = run.model.embedding_dims, run.args.eval_accumulation_steps
        self._passes.append(Pass(HeldEmbeddings(widths, steps) if holds_embeddings else None, measures))
        try:
            yield
        finally:
            self._passes.pop()

    def preprocess(self, run: Run, outputs: Any, labels: Any) -> Any:
        """The outputs of a batch that the Trainer gathers, and behind them what the user's function makes of them.

        Of the embeddings an empty dictionary is left, where they are held. The function gets what it would get of a
        model with one head: the logits (B, C) of the fused head. So it can take nothing from the probe.
        """
        outputs = self._hold_embeddings(run, outputs)
        if self.user_preprocessing is None:
            return outputs
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return (*outputs, {"preprocessed": self.user_preprocessing(outputs[0], labels)})

    def _hold_embeddings(self, run: Run, outputs: Any) -> Any:
        held = self._passes[-1].embeddings if self._passes else None
        if held is None or not isinstance(outputs, tuple) or len(outputs) < NUM_OUTPUTS:
            return outputs
        # As the Trainer gathers what it keeps: on the device, without the rows that pad the last batch.
        held.add(run.accelerator.gather_for_metrics(outputs[EMBEDDINGS]))
        return (*outputs[:EMBEDDINGS], {}, *outputs[EMBEDDINGS + 1 :])

    def with_embeddings(self, outputs: Any) -> Any:
        """The outputs of the present pass, with the embeddings that are held in their place."""
        held = self._passes[-1].embeddings if self._passes else None
        if held is None or held.is_empty:
            return outputs
        return (*outputs[:EMBEDDINGS], held, *outputs[EMBEDDINGS + 1 :])

    def split_preprocessed(self, outputs: Any) -> tuple[Any, Any]:
        """The outputs of the model, and the predictions for the user: preprocessed, or the logits of the fused head."""
        if self.user_preprocessing is not None:
            *kept, last = outputs
            return (kept[0] if len(kept) == 1 else tuple(kept)), last["preprocessed"]
        return outputs, outputs[0] if isinstance(outputs, tuple) else outputs

    def compute_metrics(self, run: Run, prediction: EvalPrediction) -> dict[str, float]:
        """The values that `transformers.Trainer` logs of an evaluation: those of the measurement and of the user."""
        if self._passes and not self._passes[-1].measures:
            return {}
        labels = prediction.label_ids
        # transformers declares an array or a tuple of one array, and a fusion model returns more.
        outputs, for_user = self.split_preprocessed(prediction.predictions)
        user_values: dict[str, float] = {}
        if self.user_metrics is not None:
            user_values = checked_values(
                self.user_metrics(
                    EvalPrediction(for_user, labels, inputs=prediction.inputs, losses=prediction.losses)
                )
            )
        if not isinstance(outputs, tuple):
            # In `predict`, the Trainer keeps only the logits of the fused head.
            kind = run.model.problem_type
            answers = head_answers(torch.from_numpy(outputs), kind)
            return {score_name(kind): score(answers, torch.from_numpy(labels), kind), **user_values}
        if len(outputs) < NUM_OUTPUTS or outputs[0].ndim != 2:
            raise ValueError(
                f"an evaluation returned {len(outputs)} outputs, the first of shape {outputs[0].shape}, but the probe "
                f"needs those of the model, the first being logits (rows, classes). {KEEP_OUTPUTS}"
            )
        outputs = self.with_embeddings(outputs)
        evaluation = Evaluation.from_outputs(outputs, labels, run.model.embedding_dims)
        untrained_fusion = (FUSED,) if fuses_at_random(run) else ()
        excluded = {*run.plan.excluded_from_readout, *untrained_heads(run)}
        evaluation.excluded_from_readout = (
            *(name for name in run.model.modalities if name in excluded),
            *untrained_fusion,
        )
        evaluation.check_finite()
        asks = self.decides and asks_for_dependence(run)
        measurement = self._measure(run, evaluation, asks)
        self._measured.append((evaluation, measurement, frozenset(user_values), asks))
        return {**log_values(measurement), **user_values}

    @contextmanager
    def measuring(
        self, probes: bool, decides: bool
    ) -> Iterator[Callable[[Mapping[str, float]], Evaluated | None]]:
        """A context for an evaluation by `transformers.Trainer`, during which a callback may begin others.

        Args:
            probes: whether it makes a decomposition.
            decides: whether it is one of the probe set in training.

        Yields:
            A function that takes the logged metrics after the evaluation and returns the evaluation. It returns None if
            the set had no labels, or if several sets were evaluated.
        """
        number_before, outer = len(self._measured), (self.probes, self.decides)
        self.probes, self.decides = probes, decides
        latest: list[tuple[Evaluation, Measurement, frozenset[str], bool]] = []
        try:
            yield lambda metrics: Evaluated(*latest[-1], metrics) if latest else None
        finally:
            self.probes, self.decides = outer
            latest += self._measured[number_before:]
            del self._measured[number_before:]

    def _measure(self, run: Run, evaluation: Evaluation, asks: bool) -> Measurement:
        args, config = run.args, run.model.config
        rows = evaluation.probed_rows(args.probe_rows, args.seed) if self.probes else None
        if rows is not None and self.decides:
            evaluation.check_complete_rows()
            if _needs_every_class(run):
                names = {int(index): name for index, name in config.id2label.items()}
                labels = evaluation.labels.numpy()
                check_probe_set(labels[rows], names, args.probe_clusters, len(labels))
        # The first process measures for all, so that all processes decide by the same numbers.
        measured: list[Any] = [None]
        if run.is_world_process_zero():
            measured = [self._measure_here(run, evaluation, rows, asks)]
        measurement, pid = broadcast_object_list(measured)[0]
        if rows is not None:
            self.pid = pid
        if run.is_in_train:
            self.seconds_measuring += measurement.seconds
        return measurement

    def _measure_here(
        self, run: Run, evaluation: Evaluation, rows: Any, asks: bool
    ) -> tuple[Measurement, PID | None]:
        fitted = run.model.config.readout
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            # `ecsfusion.diagnostics.estimate` warns of too few rows where it matters.
            warnings.simplefilter("ignore", FewSamplesWarning)
            measurement, pid = measure(
                evaluation,
                rows,
                readout=None if fitted is None else Readout.from_dict(fitted),
                bootstrap=0 if run.is_in_train else BOOTSTRAP_REPLICATES,
                measures_dependence=asks,
                **probe_options(run),
            )
        for warning in caught:
            # Log each warning once per run, not at every probe.
            logger.warning_once(f"Probe: {warning.message}")
        complete, num_rows = measurement.complete_rows, measurement.num_rows
        if 0 < complete < num_rows:
            logger.warning_once(
                f"Probe: {complete} of {num_rows} rows have every modality; it uses only these."
            )
        return measurement, pid

    # ---- evaluations that are kept ----

    def keep(self, run: Run, prefix: str, evaluated: Evaluated) -> None:
        """In training, keep the evaluations of the latest weights, of the best model and of the peak.

        One of these is that of the final weights. Embeddings are kept where `measure_again` will read them; on the
        device stay those of the latest evaluation alone.
        """
        wanted = {run.state.best_global_step, run.record.peak_step}
        for key in [key for key in self._kept if key[0] == prefix]:
            if key[1] in wanted:
                _embeddings_of(self._kept[key]).move_to_cpu()
            else:
                del self._kept[key]
        self._kept[prefix, run.state.global_step] = evaluated if counts_clusters(run) else _dropped(evaluated)

    def keep_only(self, run: Run, prefix: str, evaluated: Evaluated) -> None:
        """After training, keep only this evaluation of the probe set, for the readout, which needs no embeddings."""
        self._kept = {(prefix, run.state.global_step): _dropped(evaluated)}

    def forget(self) -> None:
        """Drop all evaluations that are kept."""
        self._kept.clear()

    def at(self, run: Run, prefix: str, step: int) -> Evaluated | None:
        """The evaluation of the weights of this step; None if what `measure_again` needs of it was not kept."""
        evaluated = self._kept.get((prefix, step))
        if evaluated is not None and counts_clusters(run) and _embeddings_of(evaluated).is_empty:
            return None
        return evaluated

    def latest(self, prefix: str) -> Evaluated | None:
        """An evaluation of this set that was kept; None if there is none."""
        return next((evaluated for key, evaluated in self._kept.items() if key[0] == prefix), None)

    def measure_again(self, run: Run, prefix: str, evaluated: Evaluated) -> Evaluated:
        """Measure the same outputs as after training: with intervals, and with the present readout of the model."""
        self.probes, self.decides = True, False
        measurement = self._measure(run, evaluated.outputs, asks=False)
        values = {
            f"{prefix}_{key}": value
            for key, value in log_values(measurement).items()
            # A metric of the user stays what the user's function made of these outputs.
            if key not in evaluated.user_names
        }
        return replace(evaluated, measurement=measurement, metrics={**evaluated.metrics, **values})

    def for_reports(self, run: Run, evaluated: Evaluated) -> Measurement:
        """The measurement after training, with the data of the reliability diagram and each modality's contribution."""
        if not run.is_world_process_zero():
            return evaluated.measurement
        fitted = run.model.config.readout
        readout = None if fitted is None else Readout.from_dict(fitted)
        reliability = reliability_of(evaluated.outputs, readout, run.model.problem_type)
        contributions = contributions_of(evaluated.outputs, readout, run.model.problem_type)
        return replace(evaluated.measurement, reliability=reliability, contributions=contributions)


def _embeddings_of(evaluated: Evaluated) -> HeldEmbeddings:
    return cast("HeldEmbeddings", evaluated.outputs.embeddings)


def _dropped(evaluated: Evaluated) -> Evaluated:
    """The same evaluation, whose embeddings can no longer be read."""
    embeddings = _embeddings_of(evaluated).dropped()
    return replace(evaluated, outputs=replace(evaluated.outputs, embeddings=embeddings))


def _needs_every_class(run: Run) -> bool:
    """Whether a rule decides by the probes of this run, and labels are classes."""
    return (run.plan.stages != "joint" or run.args.joint_pausing) and run.model.problem_type == SINGLE_LABEL


def check_rows_to_decide_on(run: Run, dataset: Any) -> None:
    """Check before training what can be known then: that the probe set has enough rows, and some of every class.

    The labels are compared where they can be read without making the rows, as a column. The first evaluation checks all
    rows, of which some may lack a modality.

    Args:
        run: the trainer.
        dataset: the probe set, whose rows the collators of this library read.

    Raises:
        ValueError: as `check_probe_set`.
    """
    if not _needs_every_class(run) or isinstance(dataset, IterableDataset) or not has_length(dataset):
        return
    args, names = run.args, {int(index): name for index, name in run.model.config.id2label.items()}
    number = min(len(dataset), args.probe_rows or len(dataset))
    check_enough_rows(number, len(names), args.probe_clusters)
    labels = class_column(dataset)
    if labels is not None:
        check_probe_set(labels, names, args.probe_clusters)


def checked_values(values: Any) -> dict[str, Any]:
    """What `compute_metrics` returned, with arrays of several numbers as lists: a checkpoint writes them as JSON.

    Raises:
        TypeError: it is no dictionary with texts as keys.
    """
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        what = f"{values!r:.80}" if isinstance(values, Mapping) else f"a {type(values).__name__}"
        raise TypeError(
            f"compute_metrics returned {what}; let it return a dictionary of numbers by name, such as "
            "{'f1': 0.5}."
        )
    return {name: _listed(value) for name, value in values.items()}


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _listed(each) for name, each in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.item() if math.prod(value.shape) == 1 else value.tolist()
    return value


def raise_no_reading() -> NoReturn:
    """Raises ValueError: an evaluation of the probe set in training could not be measured."""
    raise ValueError(
        "the evaluation of the probe set (the first evaluation set) returned no labels, or the logits alone, so that "
        f"nothing can be measured or decided. Give its rows 'labels'. {KEEP_OUTPUTS}"
    )


def warn_of_untrained_heads(run: Run) -> None:
    """Warn once that an evaluation was one of heads that nothing has trained, as far as run and model say."""
    config = run.model.config
    is_loaded = bool(getattr(config, "_name_or_path", ""))
    if run.state.global_step == 0 and config.readout is None and config.step is None and not is_loaded:
        logger.warning_once(
            "This model has not trained yet, so its heads answer at random: neither their accuracies"
            f"{' nor the decomposition, which reads them,' if reads_heads(run) else ''} say what its encoders know. "
            "Call train() first, or ecsfusion.fast_pid on embeddings."
        )


def counts_clusters(run: Run) -> bool:
    """Whether a decomposition counts clusters of the embeddings, and reads nothing of the heads."""
    return not reads_heads(run) or run.model.problem_type == REGRESSION


def reads_heads(run: Run) -> bool:
    """Whether the heads of the modalities are trained as the model is now, and the rule takes what they show.

    The model says how it trains, or was trained before it was loaded; the plan of this run may be another one.
    """
    if run.rule is not None and not run.rule.reads_heads:
        return False
    config = run.model.config
    return bool(config.stage == "unimodal" or config.auxiliary_weight > 0)


def untrained_heads(run: Run) -> set[str]:
    """The modalities whose heads nothing has trained in joint training: what random heads tell is chance."""
    if run.record.stage != "joint" or run.plan.trains_heads_jointly:
        return set()
    trained: set[str] = set()
    for probe in run.record.history:
        if probe.stage == "unimodal" and probe.step > 0:
            trained |= set(probe.training)
        if probe.restored is not None:
            kept = [each for each in run.record.history if 0 < each.step <= probe.restored]
            trained = {name for each in kept for name in each.training}
        trained -= set(probe.decision.reset)
    return set(run.model.modalities) - trained


def fuses_at_random(run: Run) -> bool:
    """Whether the fused head has weights of its own that nothing trains in this stage, and is not made of the heads."""
    model = run.model
    is_made = model.trains_fused_head or hasattr(model.fusion, "start_from")
    return not is_made and any(True for _ in model.fusion.parameters())


def asks_for_dependence(run: Run) -> bool:
    """Whether the rule decides by this reading and needs the dependence; of the untrained start it decides nothing."""
    if run.rule is None or run.state.global_step == 0:
        return False
    decides = run.record.stage == "unimodal" or run.rule.context.joint_pausing
    return decides and run.rule.asks_for_dependence


def probe_options(run: Run) -> dict[str, Any]:
    """The options of `decompose` in this run, without those of the intervals and of dependence."""
    return {
        "reads_heads": reads_heads(run),
        "problem_type": run.model.problem_type,
        "device": run.args.device,
        "num_classes": run.model.config.num_labels,
        "num_clusters": "auto" if run.args.probe_clusters is None else run.args.probe_clusters,
        "num_components": run.args.probe_components,
        "seed": run.args.seed,
    }
