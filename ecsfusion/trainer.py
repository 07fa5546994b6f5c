"""`FusionTrainer`: a `transformers.Trainer` that trains in two stages."""

from __future__ import annotations

import copy
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list
from safetensors.torch import load_model
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import EvalPrediction, Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import BestRun, TrainOutput, get_last_checkpoint, has_length
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from ecsfusion.callbacks import ControllerCallback, FusionProgressCallback, StageRecord
from ecsfusion.clipping import clip_by_part, total_norm
from ecsfusion.columns import check_columns
from ecsfusion.controller import Rule, make_rule
from ecsfusion.divergence import DivergenceError, logits_by_head, what_broke
from ecsfusion.ending import ending
from ecsfusion.evaluation import Evaluation, check_probe_set
from ecsfusion.head_losses import LossOfAllHeads
from ecsfusion.lengths import SeededLengthGroupedSampler, row_lengths
from ecsfusion.modeling import FusionConfig, FusionForClassification
from ecsfusion.parameter_groups import parameter_groups, parameters_by_part
from ecsfusion.pid import PID
from ecsfusion.probe import head_answers, metric_names, probe_metrics, score, score_name
from ecsfusion.problem_types import SINGLE_LABEL
from ecsfusion.processing import FusionCollator, FusionProcessor, TensorCollator
from ecsfusion.publishing import INITIAL_FOLDER, TRAJECTORY_FILE, UNIMODAL_FOLDER, PublishingTrainer
from ecsfusion.readout import Readout
from ecsfusion.reliability import reliability_of
from ecsfusion.training_args import FusionTrainingArguments
from ecsfusion.trajectory import plot_trajectory

logger = logging.get_logger(__name__)

OWN_GROUPS = frozenset({"params", "model", "optimizer_dict"})  # of optimizers that take no parameter groups


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

    compute_loss_func: Any
    optimizer_cls_and_kwargs: Any

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
        self._evaluated: Evaluation | None = None
        self._kept: dict[tuple[str, int], Evaluation] = {}  # by prefix and step: latest, best, and peak
        self._kept_step: int | None = None  # of the weights in the folder of stage 1's peak
        self._restored: int | None = None  # step of the weights that training ended with, if restored
        self._probing = True
        self._probe_seconds = 0.0
        self._heads: dict[str, torch.Tensor] = {}  # logits of the latest training batch
        self._parts: dict[str, list[nn.Parameter]] = {}
        self._grad_norms: dict[str, torch.Tensor] = {}
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
        if self.compute_loss_func is not None:
            self.compute_loss_func = LossOfAllHeads(self.compute_loss_func, lambda: self.model)
        # The model smooths every head's labels; the Trainer's smoother knows only one set of logits.
        self.label_smoother = None
        self._check_optimizer()
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
            rule = make_rule(copy.deepcopy(self.user_rule), self.model.modalities)
            if self.args.unimodal_epochs is not None:
                rule.max_unimodal_share = self.args.unimodal_share
        else:
            options = dict(self.args.rule_options or {})
            if self.args.unimodal_share is not None:
                options["max_unimodal_share"] = self.args.unimodal_share
            rule = make_rule(self.user_rule or self.args.rule, self.model.modalities, **options)
        rule.ends_early = self.args.unimodal_epochs is None
        rule.joint_follows = self.args.stages != "unimodal"
        rule.joint_pausing = self.args.joint_pausing
        if rule.joint_pausing and not rule.can_pause_jointly:
            raise ValueError(
                f"joint_pausing is True, but the rule {rule.name or type(rule).__name__!r} has no decide_joint; use "
                "rule='peak-synergy' or a rule of your own that defines it."
            )
        return rule

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

    def _evaluation_sets(self) -> dict[str, Any]:
        if self.eval_dataset is None:
            return {}
        sets = self.eval_dataset
        return (
            {f"eval_dataset[{n!r}]": d for n, d in sets.items()}
            if isinstance(sets, Mapping)
            else {"eval_dataset": sets}
        )

    def _probe_prefix(self) -> str:
        if isinstance(self.eval_dataset, Mapping):
            return f"eval_{next(iter(self.eval_dataset))}"
        return "eval"

    folder_names = (UNIMODAL_FOLDER, INITIAL_FOLDER)

    def folders_in_use(self) -> list[str]:
        """What a checkpoint of this moment refers to: stage 1's peak, and what a modality may be reset to."""
        resets = self.record.stage == "unimodal" and self._make_rule().resets
        kept = {UNIMODAL_FOLDER: self.record.peak_step is not None, INITIAL_FOLDER: resets}
        return [name for name, needed in kept.items() if needed]

    # ---- training ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Run both stages; afterwards fit the readout and draw the trajectory.

        Args and returns as in `transformers.Trainer.train`.
        """
        self.controller.record = StageRecord(stage="joint" if self.args.stages == "joint" else "unimodal")
        self._kept_step = self._restored = None
        self._kept.clear()
        self._probe_seconds = 0.0
        self.reports.clear()
        result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self.model.set_active(self.model.modalities)
        if self.eval_dataset is not None:
            self._fit_readout_once_evaluated()
        if self.is_world_process_zero() and self.record.history:
            path = os.path.join(self.args.output_dir, TRAJECTORY_FILE)
            plot_trajectory(self.record.history, self.model.modalities, path)
            print(ending(self, result.metrics), flush=True)
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
        for name, dataset in {"train_dataset": self.train_dataset, **self._evaluation_sets()}.items():
            check_columns(dataset, self.model.modalities, name)
        if self.optimizer_cls_and_kwargs is not None:
            optimizer_class, kwargs = self.optimizer_cls_and_kwargs
            self.optimizer_cls_and_kwargs = optimizer_class, {**kwargs, "params": self._parameter_groups()}
        optimizer = super().create_optimizer(model)
        # What a fresh optimizer holds: nothing as a rule, but Adagrad starts with sums.
        self._fresh_state = {p: copy.deepcopy(state) for p, state in optimizer.state.items()}
        self._fresh_rates = [group["lr"] for group in optimizer.param_groups]
        self._parts = {name: list(p.values()) for name, p in parameters_by_part(self.model).items()}
        # A resumed run has its record back by now (the Trainer restores callbacks before the optimizer).
        record = self.record
        self._check_processes(record)
        record.training = record.training or list(self.model.modalities)
        rule = self._make_rule()
        self.controller.bind(rule, self.model.modalities, self._probe_prefix())
        self.model.set_stage(record.stage)
        if record.stage == "unimodal" and rule.resets and self.state.global_step == 0:
            self.save_folder(INITIAL_FOLDER)
        return optimizer

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """The optimizer of `args.optim` over the parameter groups of the modalities."""
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if not OWN_GROUPS & set(kwargs):
            kwargs["params"] = self._parameter_groups()
        elif self.args.modality_learning_rates or self.args.modality_weight_decays:
            raise ValueError(
                f"optim is {str(getattr(args.optim, 'value', args.optim))!r}, which makes parameter groups of its own; "
                "leave out modality_learning_rates and modality_weight_decays, or choose another optimizer."
            )
        return optimizer_class, kwargs

    def _check_optimizer(self) -> None:
        by_name = self.args.modality_learning_rates or self.args.modality_weight_decays
        if by_name and self.optimizer is not None:
            raise ValueError(
                "optimizers holds an optimizer, so modality_learning_rates and modality_weight_decays would have no "
                "effect; give its parameter groups their rates, or leave `optimizers` out."
            )

    def _check_processes(self, record: StageRecord) -> None:
        processes = self.args.world_size
        if record.processes not in (0, processes):
            raise ValueError(
                f"the checkpoint was written by {record.processes} processes and this run has {processes}: batches and "
                f"random numbers would be others. Resume with {record.processes}, or start anew."
            )
        record.processes = processes

    def _parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model, self.args, self.get_decay_parameter_names(self.model))

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """Each stage's own schedule, see `FusionTrainingArguments.unimodal_lr_scheduler_type`."""
        args = self.args
        if self.record.stage == "joint":
            return super().create_scheduler(num_training_steps - self.record.stage_start, optimizer)
        if args.unimodal_epochs is not None:
            num_training_steps = math.ceil(args.unimodal_share * num_training_steps - 1e-9)
        if args.unimodal_lr_scheduler_type is None:
            return super().create_scheduler(num_training_steps, optimizer)
        joint_schedule = args.lr_scheduler_type, args.lr_scheduler_kwargs
        args.lr_scheduler_type, args.lr_scheduler_kwargs = args.unimodal_lr_scheduler_type, {}
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        finally:
            args.lr_scheduler_type, args.lr_scheduler_kwargs = joint_schedule

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not has_length(dataset):
            return super()._get_train_sampler(train_dataset)
        lengths = row_lengths(dataset, self.model.modalities, self.args.length_column_name)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SeededLengthGroupedSampler(batch_size, lengths, seed)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Carry out what the controller decided after the last evaluation, then train one batch."""
        if self.record.pending is not None:
            self._carry_out(self.record.pending)
        if set(self.model.active) != set(self.record.training):
            self.model.set_active(self.record.training)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not bool(loss.isfinite()):  # the Trainer waits for this number in any case
            self._diverged(f"the loss is {float(loss)}", what_broke(self._heads, inputs))
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As `transformers.Trainer.compute_loss`."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.model.training:
            self._heads = logits_by_head(outputs)
        return (loss, outputs) if return_outputs else loss

    def _diverged(self, what: str, why: str) -> None:
        folder = self.args.output_dir
        last = get_last_checkpoint(folder) if os.path.isdir(folder) else None
        kept = (
            "no checkpoint had been saved" if last is None else f"the last checkpoint, {last}, is as it was"
        )
        raise DivergenceError(f"after {self.state.global_step} steps, {what}: {why}. Training stops; {kept}.")

    # These two are what the training loop calls; the Trainer has no public hook for clipping.

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if not self._clips_by_part():
            return super()._clip_grad_norm(model)
        return self._clip(self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None and self._clips_by_part():
            grad_norm = self._clip(math.inf)
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _clips_by_part(self) -> bool:
        """DeepSpeed and the first FSDP own the gradients, and clip them together."""
        kind, accelerator = self.accelerator.distributed_type, self.accelerator
        return kind != DistributedType.DEEPSPEED and (kind != DistributedType.FSDP or accelerator.is_fsdp2)

    def _clip(self, max_norm: float) -> torch.Tensor:
        self.accelerator.unscale_gradients()
        self._grad_norms = clip_by_part(self._parts, max_norm)
        norm = total_norm(self._grad_norms)
        if self.accelerator.scaler is None and not bool(norm.isfinite()):  # a scaler skips such a step
            broken = [name for name, value in self._grad_norms.items() if not bool(value.isfinite())]
            self._diverged(
                f"the gradient of {' and '.join(broken)} is not finite",
                "the loss was; lower its rate in modality_learning_rates, or look for a division by zero",
            )
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `transformers.Trainer.log`; training logs say the stage, and norms and rates by modality."""
        if "grad_norm" in logs:
            logs["stage"] = 1 if self.record.stage == "unimodal" else 2
            for name in self.model.modalities:
                logs[f"training_{name}"] = int(name in self.record.training)
            logs |= {f"grad_norm_{name}": float(norm) for name, norm in self._grad_norms.items()}
            if self.args.modality_learning_rates:
                groups = self.optimizer.param_groups
                logs |= {f"learning_rate_{group['name']}": group["lr"] for group in groups}
        if "train_runtime" in logs:
            logs["probe_seconds"] = round(self._probe_seconds, 3)
            logs["probe_share"] = round(self._probe_seconds / max(logs["train_runtime"], 1e-9), 4)
        super().log(logs, start_time)

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
                if parameter in self._fresh_state:
                    self.optimizer.state[parameter] = copy.deepcopy(self._fresh_state[parameter])

    def _restore_peak(self, step: int) -> None:
        folder = os.path.join(self.args.output_dir, UNIMODAL_FOLDER)
        kept = FusionConfig.from_pretrained(folder).step
        if kept != step:
            raise ValueError(
                f"stage 1's peak is at step {step}, but {folder} holds step {kept}: another run wrote there. "
                "Train again in an empty output_dir."
            )
        load_model(self.model, os.path.join(folder, SAFE_WEIGHTS_NAME))  # read on the CPU: no device is called "cpu:0"

    def _begin_joint_stage(self) -> None:
        record, model = self.record, self.model
        record.stage, record.stage_start = "joint", self.state.global_step
        record.training = list(model.modalities)
        model.set_stage("joint")
        self.optimizer.state.clear()
        self.optimizer.state.update({p: copy.deepcopy(state) for p, state in self._fresh_state.items()})
        # The best model of this run is a joint one; stage 1's peak has its own folder.
        self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
        if self._created_lr_scheduler:  # a scheduler that the user gave is the user's
            for group, rate in zip(self.optimizer.param_groups, self._fresh_rates, strict=True):
                group["lr"] = group["initial_lr"] = rate
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
        if is_probe and self.is_in_train and self.record.stage == "unimodal":
            self._keep_peak()
        return metrics

    def _keep(self, prefix: str, evaluation: Evaluation) -> None:
        """Remember what may be the last word: the latest evaluation, that of the best model, and of the peak."""
        wanted = {self.state.best_global_step, self.record.peak_step}
        for key in [key for key in self._kept if key[0] == prefix and key[1] not in wanted]:
            del self._kept[key]
        self._kept[prefix, self.state.global_step] = evaluation

    def _report(self, prefix: str, evaluation: Evaluation) -> None:
        split = "validation" if prefix == self._probe_prefix() else prefix
        report = {"metrics": evaluation.metrics, "prefix": prefix, "rows": len(evaluation.labels)}
        if self.is_world_process_zero():
            fitted = self.model.config.readout
            readout = None if fitted is None else Readout.from_dict(fitted)
            report["reliability"] = reliability_of(evaluation, readout, self.model.problem_type)
        self.reports[split] = {**report, "pid": self.pid}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # The best model of a two-stage run is a joint one, and stage 1 ends when the rule says so: without a best
        # metric nothing is patient, and EarlyStoppingCallback starts to count in stage 2.
        if self.args.stages == "two-stage" and self.record.stage == "unimodal":
            return False
        return super()._determine_best_metric(metrics=metrics, trial=trial)

    def _keep_peak(self) -> None:
        record, step = self.record, self.state.global_step
        if record.peak_step == step != self._kept_step:
            self._kept_step = step
            config, evaluation = self.model.config, self._kept[self._probe_prefix(), step]
            config.step, config.readout = step, evaluation.fit_readout(self.model.problem_type).to_dict()
            self.save_folder(UNIMODAL_FOLDER)
            config.step = config.readout = None
        pending = record.pending
        if self.args.stages == "unimodal" and pending is not None and pending["stage_over"]:
            if pending["restore"] is not None:
                self._restore_peak(pending["restore"])
                self._restored = pending["restore"]
            record.pending = None
            self.control.should_training_stop = True

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
            measured = probe_metrics(
                evaluation,
                rows,
                problem_type=self.model.problem_type,
                readout=None if fitted is None else Readout.from_dict(fitted),
                num_classes=self.model.config.num_labels,
                num_clusters=self.args.probe_clusters,
                num_components=self.args.probe_components,
                # Intervals are for people; the rule reads values and floors.
                bootstrap=0 if self.is_in_train else 100,
                seed=self.args.seed,
            )
        for warning in caught:  # once a run, not at every probe
            logger.warning_once(f"Probe: {warning.message}")
        complete, number = int(measured[0]["complete_rows"]), len(evaluation.labels)
        if complete < number:
            logger.warning_once(f"Probe: {complete} of {number} rows have every modality; it takes these.")
        return measured

    # ---- readout ----

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

    def _fit_readout_once_evaluated(self) -> None:
        """The same without another pass where the final weights were evaluated in training."""
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            step = self.state.best_global_step
        else:
            step = self.state.global_step if self._restored is None else self._restored
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

    # ---- search ----

    def hyperparameter_search(
        self,
        hp_space: Callable | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """As `transformers.Trainer.hyperparameter_search`; the objective is `metric_for_best_model` by default.

        Its direction is that of `greater_is_better`. (The Trainer would add up all metrics.) Losses of the two stages
        are not comparable, so a backend that prunes should look at an accuracy.
        """
        name = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        if direction is None:
            is_greater = self.args.greater_is_better
            direction = (
                "maximize"
                if (not name.endswith("loss") if is_greater is None else is_greater)
                else "minimize"
            )
        objective = compute_objective or (lambda metrics: metrics[f"eval_{name}"])
        return super().hyperparameter_search(hp_space, objective, n_trials, direction, **kwargs)


def _collator(processor: FusionProcessor | None, model: FusionForClassification | None) -> Callable:
    if processor is not None:
        return FusionCollator(processor)
    return TensorCollator(None if model is None else model.modalities)
