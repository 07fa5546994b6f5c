"""`FusionTrainer`: a `transformers.Trainer` that trains in two stages."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_model
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import EvalPrediction, Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import TrainOutput
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from ecsfusion.callbacks import ControllerCallback, FusionProgressCallback, StageRecord
from ecsfusion.controller import Rule, make_rule
from ecsfusion.modeling import FusionConfig, FusionForClassification
from ecsfusion.parameter_groups import parameter_groups
from ecsfusion.pid import PID
from ecsfusion.probe import head_answers, metric_names, probe_metrics, score, score_name
from ecsfusion.processing import FusionCollator, FusionProcessor, TensorCollator
from ecsfusion.publishing import INITIAL_FOLDER, TRAJECTORY_FILE, UNIMODAL_FOLDER, PublishingTrainer
from ecsfusion.readout import FUSED, Readout
from ecsfusion.training_args import FusionTrainingArguments
from ecsfusion.trajectory import plot_trajectory

logger = logging.get_logger(__name__)


class FusionTrainer(PublishingTrainer):
    """Trains a [`FusionForClassification`] in two stages inside one `train()`.

    Stage 1 trains every modality on its own loss; after each evaluation the controller's rule reads the partial
    information decomposition of the embeddings and decides who trains on. At the end of stage 1 its peak is
    restored, the optimizer's state is cleared, the learning-rate schedule starts anew over the steps that are
    left, and all modalities are trained together (arXiv 2509.20840). Afterwards the calibrated combination of
    all heads is fitted on the evaluation set and saved in the model's configuration.

    Args:
        model: the model to train.
        args: [`FusionTrainingArguments`].
        train_dataset, eval_dataset, data_collator, compute_metrics, callbacks, ...: as in `transformers.Trainer`;
            rows hold one entry per modality and `labels`. A dictionary of evaluation sets is probed on its first.
        processing_class: a [`FusionProcessor`], saved and published with the model; it also collates the rows.
            Without one, rows must hold tensors of equal shapes.
        rule: one's own `ecsfusion.controller.Rule`, an instance or (made with `args.rule_options`) the class; by
            default `args.rule` names it.

    Raises:
        TypeError: a model or arguments of another kind.
        ValueError: learning rates for names that are no modality; a two-stage run without an evaluation set.
    """

    def __init__(
        self,
        model: FusionForClassification | None = None,
        args: FusionTrainingArguments | None = None,
        *,
        processing_class: FusionProcessor | None = None,
        data_collator: Callable | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        rule: Rule | type[Rule] | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            args = FusionTrainingArguments(output_dir="fusion_trainer")
        if not isinstance(args, FusionTrainingArguments):
            raise TypeError(f"args is a {type(args).__name__}; give FusionTrainingArguments.")
        if model is not None and not isinstance(model, FusionForClassification):
            raise TypeError(
                f"model is a {type(model).__name__}; give a FusionForClassification, for instance from "
                "FusionForClassification.from_modality_pretrained({...}, num_labels=...)."
            )
        if args.stages != "joint" and kwargs.get("eval_dataset") is None:
            raise ValueError(
                f"stages is {args.stages!r} but eval_dataset is missing: the controller probes it."
            )
        self.user_rule = rule
        self._user_metrics = compute_metrics
        self._evaluated: dict[str, Any] | None = None  # heads and labels of the latest evaluation
        self._validation: dict[str, Any] | None = None  # the same of the probe set
        self._kept_step: int | None = None
        self.pid: PID | None = None
        """The decomposition of the latest evaluation."""
        self.reports: dict[str, dict[str, Any]] = {}
        """Evaluations after training by split: their metrics, prefix, number of rows, and decomposition."""
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            data_collator=data_collator or _collator(processing_class, model),
            compute_metrics=self._compute_metrics,
            **kwargs,
        )
        # The model smooths every head's labels; the Trainer's smoother knows only one set of logits.
        self.label_smoother = None
        self._parameter_groups()  # fails now, not after the data is loaded, on a name that matches nothing
        self._make_rule()
        self._check_best_metric()
        self.pop_callback(PrinterCallback)  # it prints every evaluation as a dictionary of thirty numbers
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(FusionProgressCallback())
        self.add_callback(
            ControllerCallback()
        )  # after the bar, which closes before the probe's line is printed

    # ---- the controller's place ----

    @property
    def controller(self) -> ControllerCallback:
        """The callback that holds the rule and the record (a restored checkpoint replaces it)."""
        return next(cb for cb in self.callback_handler.callbacks if isinstance(cb, ControllerCallback))

    @property
    def record(self) -> StageRecord:
        """Stage, who trains, and the history of probes."""
        return self.controller.record

    def _make_rule(self) -> Rule:
        if isinstance(self.user_rule, Rule):
            # A copy: every train() starts from the rule as it was given.
            return make_rule(copy.deepcopy(self.user_rule), self.model.modalities)
        options = dict(self.args.rule_options or {})
        share = 1.0 if self.args.stages == "unimodal" else self.args.max_unimodal_share
        if share is not None:
            options["max_unimodal_share"] = share
        return make_rule(self.user_rule or self.args.rule, self.model.modalities, **options)

    def _check_best_metric(self) -> None:
        """A misspelt name would only be found after the first epoch; metrics of the user are not known here."""
        name = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        if self._user_metrics is not None or isinstance(self.eval_dataset, Mapping):
            return
        known = ("loss", *metric_names(self.model.modalities, self.model.problem_type))
        if name not in known:
            raise ValueError(
                f"metric_for_best_model is {name!r}, which no evaluation reports; give one of {', '.join(known)}."
            )

    def _probe_prefix(self) -> str:
        if isinstance(self.eval_dataset, Mapping):
            return f"eval_{next(iter(self.eval_dataset))}"
        return "eval"

    # ---- training ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Run both stages; afterwards fit the readout and draw the trajectory.

        Args and returns as in `transformers.Trainer.train`.
        """
        self.controller.record = StageRecord(
            stage="joint" if self.args.stages == "joint" else "unimodal", training=list(self.model.modalities)
        )
        self._kept_step = None
        self.reports.clear()
        result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self.model.set_active(self.model.modalities)
        if self.eval_dataset is not None:
            self.fit_readout()
        if self.is_world_process_zero() and self.record.history:
            path = os.path.join(self.args.output_dir, TRAJECTORY_FILE)
            plot_trajectory(self.record.history, self.model.modalities, path)
        return result

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One pair of parameter groups per modality and for the fusion head."""
        # Here, and not in __init__, because `model_init` makes a new model for every run. All modalities are
        # active until the first step: DistributedDataParallel, which wraps the model after this, never averages
        # the gradients of parameters that were paused at that moment.
        self.model.label_smoothing = self.args.label_smoothing_factor
        self.model.config.auxiliary_weight = self.args.auxiliary_weight
        self.model.config.readout = None
        self.model.set_active(self.model.modalities)
        optimizer = super().create_optimizer(model)
        # A resumed run has its record back by now (the Trainer restores callbacks before the optimizer).
        record = self.record
        rule = self._make_rule()
        self.controller.bind(rule, self.model.modalities, self._probe_prefix())
        self.model.set_stage(record.stage)
        if record.stage == "unimodal" and rule.resets and self.state.global_step == 0:
            self._save_folder(INITIAL_FOLDER)
        return optimizer

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """The optimizer of `args.optim` over the parameter groups of the modalities."""
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if "params" not in kwargs:
            kwargs["params"] = self._parameter_groups()
        return optimizer_class, kwargs

    def _parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model, self.args, self.get_decay_parameter_names(self.model))

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """The schedule of `args.lr_scheduler_type`: over the whole budget in stage 1, anew in stage 2."""
        return super().create_scheduler(num_training_steps - self.record.stage_start, optimizer)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Carry out what the controller decided after the last evaluation, then train one batch."""
        if self.record.pending is not None:
            self._carry_out(self.record.pending)
        if set(self.model.active) != set(self.record.training):
            self.model.set_active(self.record.training)
        return super().training_step(model, inputs, num_items_in_batch)

    def _carry_out(self, decision: dict[str, Any]) -> None:
        record = self.record
        for name in decision["reset"]:
            self._reset_modality(name)
        if decision["stage_over"]:
            if decision["restore"] is not None:
                self._restore_peak(decision["restore"])
            self._begin_joint_stage()
        else:
            record.training = list(decision["training"])
        record.pending = None

    def _reset_modality(self, name: str) -> None:
        """Put one modality back to its weights before training; its optimizer state goes with them."""
        initial = self._load_folder(INITIAL_FOLDER).modality_parameters(name)
        with torch.no_grad():
            for key, parameter in self.model.modality_parameters(name).items():
                parameter.copy_(initial[key])
                self.optimizer.state.pop(parameter, None)

    def _restore_peak(self, step: int) -> None:
        folder = os.path.join(self.args.output_dir, UNIMODAL_FOLDER)
        kept = FusionConfig.from_pretrained(folder).step
        if kept != step:
            raise ValueError(
                f"stage 1's peak is at step {step}, but {folder} holds step {kept}: another run wrote there. "
                "Train again in an empty output_dir."
            )
        load_model(self.model, os.path.join(folder, SAFE_WEIGHTS_NAME), device=str(self.args.device))

    def _begin_joint_stage(self) -> None:
        record, model = self.record, self.model
        record.stage, record.stage_start = "joint", self.state.global_step
        record.training = list(model.modalities)
        model.set_stage("joint")
        self.optimizer.state.clear()
        # The best model of this run is a joint one; stage 1's peak has its own folder.
        self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
        if self._created_lr_scheduler:  # a scheduler that the user gave is the user's
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"]
            self.lr_scheduler = None
            self.create_scheduler(self.state.max_steps)
            self.callback_handler.lr_scheduler = self.lr_scheduler

    # ---- evaluation ----

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate all heads and probe the embeddings in the same pass; during stage 1, keep the peak.

        Metrics: `accuracy` (fused head), `accuracy_MODALITY`, `accuracy_calibrated` (fractions), and in bits
        `redundancy`, `unique_MODALITY`, `synergy`, `information_MODALITY`, their noise floors `*_floor*` and the
        uncorrected `plugin_*`. Args and returns otherwise as in `transformers.Trainer.evaluate`.
        """
        if self.is_in_train and self.record.stage == "unimodal":
            self.model.start_fusion_from_heads()
        metrics = super().evaluate(
            eval_dataset, [] if ignore_keys is None else ignore_keys, metric_key_prefix
        )
        if not self.is_in_train and f"{metric_key_prefix}_synergy" in metrics:
            split = "validation" if metric_key_prefix == self._probe_prefix() else metric_key_prefix
            rows = len(self._evaluated["labels"]) if self._evaluated else 0
            report = {"metrics": metrics, "prefix": metric_key_prefix, "rows": rows, "pid": self.pid}
            self.reports[split] = report
        if metric_key_prefix == self._probe_prefix():
            self._validation = self._evaluated
            if self.is_in_train and self.record.stage == "unimodal":
                self._keep_peak()
        return metrics

    def _keep_peak(self) -> None:
        record, step = self.record, self.state.global_step
        if record.peak_step == step != self._kept_step:
            self._kept_step = step
            config, fitted = self.model.config, self._fit_last_validation()
            config.step, config.readout = step, None if fitted is None else fitted.to_dict()
            self._save_folder(UNIMODAL_FOLDER)
            config.step = config.readout = None
        pending = record.pending
        if self.args.stages == "unimodal" and pending is not None and pending["stage_over"]:
            if pending["restore"] is not None:
                self._restore_peak(pending["restore"])
            record.pending = None
            self.control.should_training_stop = True

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        outputs, labels = prediction.predictions, prediction.label_ids
        extra: dict[str, float] = {}
        if self._user_metrics is not None:
            logits = outputs[0] if isinstance(outputs, tuple) else outputs
            extra = self._user_metrics(EvalPrediction(predictions=logits, label_ids=labels))
        if not isinstance(outputs, tuple):  # predict() keeps the fused logits only
            kind = self.model.problem_type
            answers = head_answers(torch.from_numpy(outputs), kind)
            return {score_name(kind): score(answers, torch.from_numpy(labels), kind), **extra}
        logits, unimodal_logits, embeddings, present = outputs[:4]
        missing = [name for name in self.model.modalities if name not in unimodal_logits]
        if missing:
            raise ValueError(
                f"the evaluation set has no {missing[0]!r}; a probe needs every modality of every row."
            )
        # The first process probes for all, so that decisions agree whatever the other machines compute.
        probed: list[Any] = [None]
        if self.is_world_process_zero():
            probed = [self._probe(logits, unimodal_logits, embeddings, labels, present)]
        metrics, self.pid = broadcast_object_list(probed)[0]
        heads = {
            FUSED: torch.from_numpy(logits),
            **{m: torch.from_numpy(z) for m, z in unimodal_logits.items()},
        }
        self._evaluated = {"heads": heads, "labels": torch.from_numpy(labels), "present": present}
        return {**metrics, **extra}

    def _probe(
        self, logits: Any, unimodal_logits: Any, embeddings: Any, labels: Any, present: Any
    ) -> tuple[dict, PID]:
        fitted = self.model.config.readout
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            probed = probe_metrics(
                logits,
                unimodal_logits,
                embeddings,
                labels,
                readout=None if fitted is None else Readout.from_dict(fitted),
                present=present,
                problem_type=self.model.problem_type,
                num_classes=self.model.config.num_labels,
                num_clusters=self.args.probe_clusters,
                num_components=self.args.probe_components,
                # Intervals are for people; the rule reads values and floors.
                bootstrap=0 if self.is_in_train else 100,
                seed=self.args.seed,
            )
        for warning in caught:  # once a run, not at every probe
            logger.warning_once(f"Probe: {warning.message}")
        complete = int(probed[0]["complete_rows"])
        if complete < len(labels):
            logger.warning_once(f"Probe: {complete} of {len(labels)} rows have every modality; it takes these.")
        return probed

    # ---- readout ----

    def fit_readout(self) -> Readout | None:
        """Evaluate the model as it is and fit the calibrated combination of its heads on the evaluation set.

        The result is kept in `model.config.readout`, so that the saved model returns calibrated probabilities.
        """
        self.model.config.readout = None
        self.evaluate()
        readout = self._fit_last_validation()
        self.model.config.readout = None if readout is None else readout.to_dict()
        return readout

    def _fit_last_validation(self) -> Readout | None:
        if self._validation is None:
            return None
        return Readout.fit(**_fit_arguments(self._validation), problem_type=self.model.problem_type)


def _fit_arguments(evaluated: Mapping[str, Any]) -> dict[str, Any]:
    return {"logits": evaluated["heads"], "labels": evaluated["labels"], "present": evaluated["present"]}


def _collator(processor: FusionProcessor | None, model: FusionForClassification | None) -> Callable:
    if processor is not None:
        return FusionCollator(processor)
    return TensorCollator(None if model is None else model.modalities)
