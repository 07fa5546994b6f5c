"""`FusionTrainer`: a `transformers.Trainer` that trains in two stages."""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import SequentialSampler, Subset
from transformers import EvalPrediction, Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import BestRun, TrainOutput, has_length
from transformers.utils import logging

from ecsfusion.controller.rule import Rule
from ecsfusion.data.columns import check_columns, check_has_rows
from ecsfusion.data.lengths import SeededLengthGroupedSampler, row_lengths
from ecsfusion.diagnostics.run import RunDiagnostics
from ecsfusion.evaluation.logged_values import logged_names
from ecsfusion.evaluation.measurement import Measurement
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.evaluation.scores import score_name
from ecsfusion.model.readout import Readout
from ecsfusion.modeling import FusionForClassification
from ecsfusion.pid.decomposition import PID
from ecsfusion.processing import FusionProcessor
from ecsfusion.reporting.results import run_summary
from ecsfusion.strategies import Strategy
from ecsfusion.training.best_heads import BestHeads, bring_back_older_folders, folder_of
from ecsfusion.training.callbacks import ControllerCallback, FusionProgressCallback
from ecsfusion.training.clipping import clip_by_part, total_norm
from ecsfusion.training.divergence import logits_by_head, raise_divergence, what_broke
from ecsfusion.training.evaluator import Evaluator, probe_options
from ecsfusion.training.head_losses import LossOfAllHeads
from ecsfusion.training.parameter_groups import parameter_groups, parameters_by_part
from ecsfusion.training.plan import Plan, StrategyChoice, check_plan, check_sharding, make_plan
from ecsfusion.training.processes import end_processes
from ecsfusion.training.publishing import Publishing
from ecsfusion.training.record import StageRecord, check_saved_record
from ecsfusion.training.resuming import ResumableTrainer
from ecsfusion.training.setup import check_arguments, collator_for, warn_of_older_checkpoint
from ecsfusion.training.stages import INITIAL_FOLDER, UNIMODAL_FOLDER, Stages
from ecsfusion.training_args import FusionTrainingArguments

logger = logging.get_logger(__name__)

GROUPS_OF_ITS_OWN = frozenset({"params", "model", "optimizer_dict"})
"""Keyword arguments of the optimizers that take no parameter groups."""


class FusionTrainer(ResumableTrainer):
    """Trains a [`FusionForClassification`] in two stages inside one `train()`.

    Stage 1 trains every modality on its own loss (and at first the fused head too, where the rule scouts); after each
    evaluation the controller's rule reads the partial information decomposition of the embeddings and decides who
    trains on. At the end of stage 1 the weights that the rule names are restored, the optimizer's state is cleared,
    the learning-rate schedule starts anew over the steps that are left, and all modalities are trained together
    (arXiv 2509.20840). Afterwards each modality gets its own best weights back to answer for it alone
    (`keep_best_heads`), and the calibrated combination of all heads is fitted on the evaluation set and saved in the
    model's configuration. What the readings say against a run, such as a stage 1 that was too short or a modality that
    has memorized its rows, is said once in a sentence with the remedy, kept in `record.warnings`, and listed at the end
    and in the model card (`ecsfusion.diagnostics`).

    Args:
        model: the model to train.
        args: [`FusionTrainingArguments`]; never written to.
        strategy: how to train, in place of `args.strategy`: the name, the class or an instance of a
            `ecsfusion.Strategy`, or of a `ecsfusion.Rule` that steers two stages. A name or a class is made with
            `args.strategy_options`.
        processing_class: a [`FusionProcessor`], saved and published with the model; it also collates the rows.
            Without one, rows must hold tensors of equal shapes.
        data_collator: as in `transformers.Trainer`; by default that of `processing_class`.
        compute_metrics: as in `transformers.Trainer`, from the logits of the fused head. Its values are logged beside
            the measurement's; no rule reads them.
        **kwargs: as in `transformers.Trainer`: `train_dataset`, `eval_dataset`, `callbacks`, ... Rows hold one entry
            per modality and `labels`. A dictionary of evaluation sets is probed on its first.

    Attributes:
        plan: what the present (or the next) run does, resolved from the arguments.
        measurements: of the evaluations after training, by split; "validation" is the probe set.
        record: stage, who trains, and the history of probes.

    Raises:
        TypeError: a model or arguments of another kind.
        ValueError: learning rates for names that are no modality; a two-stage run without an evaluation set.
    """

    args: FusionTrainingArguments
    model: FusionForClassification
    # What `transformers.Trainer`, of which mypy sees nothing, sets as well.
    compute_loss_func: Any
    compute_metrics: Any
    control: Any
    optimizer_cls_and_kwargs: Any

    def __init__(
        self,
        model: FusionForClassification | None = None,
        args: FusionTrainingArguments | None = None,
        *,
        strategy: StrategyChoice | None = None,
        processing_class: FusionProcessor | None = None,
        data_collator: Callable | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            args = FusionTrainingArguments(output_dir="fusion_trainer")
        check_arguments(model, args, strategy, kwargs.get("eval_dataset") is not None)
        self._choice = strategy
        self.evaluator = Evaluator(compute_metrics)
        self.stages = Stages(self)
        self.best_heads = BestHeads(self)
        self.diagnostics = RunDiagnostics(self)
        self.publishing = Publishing(self)
        self.measurements: dict[str, Measurement] = {}
        self._heads: dict[str, torch.Tensor] = {}
        """Logits of the latest training batch."""
        self._parts: dict[str, list[nn.Parameter]] = {}
        self._grad_norms: dict[str, torch.Tensor] = {}
        self._step_followed = 0
        """The latest optimizer step that the strategy has been told of."""
        self._awaits_reading = False
        """Whether the Trainer itself has asked for the evaluation that comes next."""
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            data_collator=data_collator or collator_for(processing_class, model),
            compute_metrics=self._compute_metrics,
            **kwargs,
        )
        self.plan: Plan = self._make_plan()
        if self.compute_loss_func is not None:
            self.compute_loss_func = LossOfAllHeads(self.compute_loss_func, lambda: self.model)
        # The model smooths every head's labels; the Trainer's smoother knows only one set of logits.
        self.label_smoother = None
        self.folder_names = [UNIMODAL_FOLDER, INITIAL_FOLDER, *map(folder_of, self.model.modalities)]
        self._check_before_training()
        if self.optimizer is not None and (self.plan.learning_rates or args.modality_weight_decays):
            raise ValueError(
                "optimizers holds an optimizer, so modality_learning_rates and modality_weight_decays (given here, or "
                "set by the strategy) would have no effect; give its parameter groups their rates, or leave "
                "`optimizers` out."
            )
        # It prints every evaluation as a dictionary of thirty numbers.
        self.pop_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(FusionProgressCallback())
        self.add_callback(ControllerCallback())

    @property
    def controller(self) -> ControllerCallback:
        """The callback that holds the record (a restored checkpoint replaces it)."""
        return next(cb for cb in self.callback_handler.callbacks if isinstance(cb, ControllerCallback))

    @property
    def record(self) -> StageRecord:
        """Stage, who trains, and the history of probes."""
        return self.controller.record

    @property
    def strategy(self) -> Strategy:
        """The strategy of the present run, or of the next one."""
        return self.plan.strategy

    @property
    def rule(self) -> Rule | None:
        """The rule of the present run, or of the next one; None where there is no stage 1."""
        return self.plan.rule

    @property
    def pid(self) -> PID | None:
        """The decomposition of the latest evaluation, with its tensors."""
        return self.evaluator.pid

    # ---- before training ----

    def _make_plan(self) -> Plan:
        return make_plan(self._choice, self.args, self.model)

    def _check_before_training(self) -> None:
        check_plan(
            self.plan,
            self.args,
            self.model,
            has_evaluation_set=self.eval_dataset is not None,
            has_loss_function=self.compute_loss_func is not None,
        )
        check_sharding(self.plan, self.args, self._sharded_by())
        # It fails on a name that matches nothing.
        self._parameter_groups()
        # A misspelt name would be found after the first epoch only; metrics of the user are not known here.
        name = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        if self.evaluator.user_metrics is None and not isinstance(self.eval_dataset, Mapping):
            known = ("loss", *logged_names(self.model.modalities, score_name(self.model.problem_type)))
            if name not in known:
                raise ValueError(
                    f"metric_for_best_model is {name!r}, which no evaluation reports; give one of {', '.join(known)}."
                )

    def _sharded_by(self) -> str | None:
        return "DeepSpeed" if self.is_deepspeed_enabled else "FSDP" if self.is_fsdp_enabled else None

    def evaluation_sets(self) -> dict[str, Any]:
        """The evaluation sets by the words that name them in an error; the first is the probe set."""
        sets = self.eval_dataset
        if sets is None:
            return {}
        if isinstance(sets, Mapping):
            return {f"eval_dataset[{name!r}]": rows for name, rows in sets.items()}
        return {"eval_dataset": sets}

    # ---- a run ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Run both stages; afterwards fit the readout and draw the trajectory.

        Args:
            resume_from_checkpoint: as in `transformers.Trainer.train`; True for the latest whole checkpoint.
            **kwargs: as there.

        Returns:
            As `transformers.Trainer.train`.
        """
        for name, dataset in {"train_dataset": self.train_dataset, **self.evaluation_sets()}.items():
            check_has_rows(dataset, name)
        result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self.model.set_active(self.model.modalities)
        self.model.set_frozen(())
        if self.eval_dataset is not None:
            # Other weights than those that were evaluated answer now, where there are best heads of other steps.
            if self.best_heads.give_to_model(self._final_step()):
                self.fit_readout()
            else:
                self._fit_readout_once_evaluated()
        self.diagnostics.after_training()
        if self.is_world_process_zero() and self.record.history:
            self.publishing.draw_trajectory()
            print(run_summary(self, result.metrics), flush=True)
        self._remove_folders()
        return result

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        # Whatever belongs to a run starts here: a search has set its arguments, `model_init` has made its model, and a
        # smaller batch size begins anew. A checkpoint brings its record back afterwards.
        self.plan = self._make_plan()
        self._check_before_training()
        self.controller.record = StageRecord(stage=self.plan.first_stage)
        self.evaluator.begin()
        self.measurements.clear()
        return super()._inner_training_loop(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        absent = check_saved_record(resume_from_checkpoint)
        if absent and self.is_world_process_zero():
            warn_of_older_checkpoint(resume_from_checkpoint, absent)
        if self.args.should_save:
            bring_back_older_folders(resume_from_checkpoint, self.args.output_dir, self.model.modalities)
        # Those of a model that was trained before; a checkpoint has none.
        self.model.set_best_heads({})
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer, with a pair of parameter groups per modality and for the fused head.

        By now a checkpoint has brought the record back. All modalities are active until the first step:
        DistributedDataParallel, which wraps the model after this, never averages the gradients of parameters that were
        paused at that moment.
        """
        if not self.is_in_train:
            # Made by hand: the arguments may have changed since.
            self.plan = self._make_plan()
        self.model.label_smoothing = self.args.label_smoothing_factor
        self.model.config.auxiliary_weight = self.plan.auxiliary_weight
        self.model.config.readout = None
        self.best_heads.begin(self._sharded_by())
        self.model.set_active(self.model.modalities)
        self.model.set_frozen(())
        for name, dataset in {"train_dataset": self.train_dataset, **self.evaluation_sets()}.items():
            check_columns(dataset, self.model.modalities, name)
        if self.optimizer_cls_and_kwargs is not None:
            optimizer_class, kwargs = self.optimizer_cls_and_kwargs
            self.optimizer_cls_and_kwargs = optimizer_class, {**kwargs, "params": self._parameter_groups()}
        optimizer = super().create_optimizer(model)
        self._parts = {name: list(p.values()) for name, p in parameters_by_part(self.model).items()}
        self._step_followed = self.state.global_step
        self.stages.begin(optimizer)
        self.begin_stage()
        return optimizer

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """The optimizer of `args.optim` over the parameter groups of the modalities."""
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if not GROUPS_OF_ITS_OWN & set(kwargs):
            kwargs["params"] = self._parameter_groups()
        elif self.plan.learning_rates or self.args.modality_weight_decays:
            raise ValueError(
                f"optim is {str(getattr(args.optim, 'value', args.optim))!r}, which makes parameter groups of its own; "
                "leave out modality_learning_rates and modality_weight_decays, or choose another optimizer."
            )
        return optimizer_class, kwargs

    def _parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(
            self.model,
            self.get_decay_parameter_names(self.model),
            weight_decay=self.args.weight_decay,
            learning_rates=self.plan.learning_rates,
            weight_decays=cast("dict[str, float]", self.args.modality_weight_decays or {}),
        )

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """Each stage's own schedule, see `FusionTrainingArguments.unimodal_lr_scheduler_type`."""
        if self.record.stage == "joint":
            return super().create_scheduler(num_training_steps - self.record.stage_start, optimizer)
        if self.plan.unimodal_share is not None:
            num_training_steps = math.ceil(self.plan.unimodal_share * num_training_steps - 1e-9)
        given = self.args
        if given.unimodal_lr_scheduler_type is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.args = copy.copy(given)
        self.args.lr_scheduler_type, self.args.lr_scheduler_kwargs = given.unimodal_lr_scheduler_type, {}
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        finally:
            self.args = given

    def restart_schedule(self, learning_rates: list[float]) -> None:
        """Give the parameter groups these rates and start the schedule of the present stage.

        A schedule that the user gave is left alone.
        """
        if not self._created_lr_scheduler:
            return
        for group, rate in zip(self.optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = group["initial_lr"] = rate
        self.lr_scheduler = None
        self.create_scheduler(self.state.max_steps)
        self.callback_handler.lr_scheduler = self.lr_scheduler

    def begin_stage(self) -> None:
        """Let the strategy prepare the stage that the model has been set to."""
        self.plan.strategy.begin_stage(self)

    # ---- a step ----

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
        """Carry out what was decided after the last evaluation, then train one batch.

        Raises:
            DivergenceError: the loss is no finite number; it names the modality and the step.
        """
        self.stages.prepare_step()
        loss = super().training_step(model, inputs, num_items_in_batch)
        # The Trainer waits for this number in any case.
        if not bool(loss.isfinite()):
            raise_divergence(self, f"the loss is {float(loss)}", what_broke(self._heads, inputs))
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As `transformers.Trainer.compute_loss`, of a batch and with a loss that the strategy may change."""
        training = self.model.training
        if training and not any(name in inputs for name in self.label_names):
            raise ValueError(
                f"a batch of train_dataset has {sorted(inputs)} but no labels; add 'labels' or 'label' to its rows."
            )
        if training:
            inputs = self.plan.strategy.prepare_inputs(self.model, inputs)
        # A copy: the Trainer takes the labels out for a loss function of the user's.
        loss, outputs = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
        if training:
            self._heads = logits_by_head(outputs)
            if self.model.stage == "joint":
                own = self.plan.strategy.loss(self.model, outputs, inputs["labels"])
                loss = loss if own is None else own
        return (loss, outputs) if return_outputs else loss

    # The Trainer has no public hook for clipping; its loop calls the next two methods.

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if not self._clips_by_part():
            return super()._clip_grad_norm(model)
        return self._clip(self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None and self._clips_by_part():
            grad_norm = self._clip(math.inf)
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _clips_by_part(self) -> bool:
        """Whether gradients can be clipped by modality: DeepSpeed and the first FSDP clip them together."""
        kind, accelerator = self.accelerator.distributed_type, self.accelerator
        return kind != DistributedType.DEEPSPEED and (kind != DistributedType.FSDP or accelerator.is_fsdp2)

    def _clip(self, max_norm: float) -> torch.Tensor:
        self.accelerator.unscale_gradients()
        self.plan.strategy.adjust_gradients(self.model)
        self._grad_norms = clip_by_part(self._parts, max_norm)
        norm = total_norm(self._grad_norms)
        # A scaler skips a step whose gradients are not finite.
        if self.accelerator.scaler is None and not bool(norm.isfinite()):
            broken = [name for name, value in self._grad_norms.items() if not bool(value.isfinite())]
            raise_divergence(
                self,
                f"the gradient of {' and '.join(broken)} is not finite",
                "the loss was; lower its rate in modality_learning_rates, or look for a division by zero",
            )
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # The loop calls this after each optimizer step, and once more at the end of an epoch.
        if self.state.global_step > self._step_followed:
            self._step_followed = self.state.global_step
            self.plan.strategy.after_step(self.model)
            if self.stages.must_probe():
                self.control.should_evaluate = True
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `transformers.Trainer.log`; training logs say the stage, and norms and rates by modality."""
        if "grad_norm" in logs:
            logs["stage"] = 1 if self.record.stage == "unimodal" else 2
            for name in self.model.modalities:
                logs[f"training_{name}"] = int(name in self.record.training)
            logs |= {f"grad_norm_{name}": float(norm) for name, norm in self._grad_norms.items()}
            if self.plan.learning_rates:
                groups = self.optimizer.param_groups
                logs |= {f"learning_rate_{group['name']}": group["lr"] for group in groups}
        if "train_runtime" in logs:
            seconds = self.evaluator.seconds
            logs["probe_seconds"] = round(seconds, 3)
            logs["probe_share"] = round(seconds / max(logs["train_runtime"], 1e-9), 4)
        super().log(logs, start_time)

    # ---- an evaluation ----

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_eval_sampler(eval_dataset)
        # A probe reads its rows in their order.
        in_order = has_length(eval_dataset) and self.args.world_size <= 1
        return SequentialSampler(eval_dataset) if in_order else None

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        # What the user evaluates in a callback does not come this way, and decides nothing.
        self._awaits_reading = True
        return super()._evaluate(*args, **kwargs)

    def _probe_prefix(self) -> str:
        if isinstance(self.eval_dataset, Mapping):
            return f"eval_{next(iter(self.eval_dataset))}"
        return "eval"

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate all heads and decompose the embeddings' information in the same pass.

        While training, the Trainer's own evaluation of the probe set is a reading for the rule.

        Args:
            eval_dataset: as in `transformers.Trainer.evaluate`.
            ignore_keys: as there.
            metric_key_prefix: as there.

        Returns:
            As there, with the values of `ecsfusion.evaluation.logged_values` under the prefix.
        """
        prefix = metric_key_prefix
        is_probe_set = prefix == self._probe_prefix()
        is_reading = self._awaits_reading and self.is_in_train and is_probe_set
        if is_reading:
            self._awaits_reading = False
        # Of several evaluation sets, the first is probed while training.
        self.evaluator.probes = is_probe_set or not self.is_in_train
        if self.is_in_train:
            self.stages.prepare_probe()
        with self.evaluator.measuring() as measured:
            metrics = super().evaluate(eval_dataset, [] if ignore_keys is None else ignore_keys, prefix)
        evaluated = measured(metrics)
        if evaluated is None:
            return metrics
        if is_reading:
            self.evaluator.keep(self, prefix, evaluated)
            self.stages.read(evaluated.measurement)
            self.diagnostics.after_probe(evaluated.outputs, evaluated.measurement)
            self.best_heads.keep(evaluated.outputs)
            self.stages.keep_peak(evaluated.outputs)
            self.plan.strategy.after_evaluation(self, evaluated.outputs)
        elif self.is_in_train:
            if not is_probe_set:
                self.evaluator.keep(self, prefix, evaluated)
        else:
            self._report(prefix, self.evaluator.with_reliability(self, evaluated))
            if is_probe_set:
                self.evaluator.keep_only(self, prefix, evaluated)
            self.diagnostics.after_evaluation()
        return metrics

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        return self.evaluator.compute_metrics(self, prediction)

    def _report(self, prefix: str, measurement: Measurement) -> None:
        self.measurements["validation" if prefix == self._probe_prefix() else prefix] = measurement

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # The best model of a two-stage run is a joint one, and stage 1 ends when the rule says so: without a best
        # metric nothing is patient, and EarlyStoppingCallback starts to count in stage 2.
        if self.plan.stages == "two-stage" and self.record.stage == "unimodal":
            return False
        return super()._determine_best_metric(metrics=metrics, trial=trial)

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
        rows, evaluated = self.train_dataset, next(iter(self.evaluation_sets().values()))
        if not (has_length(rows) and has_length(evaluated)):
            raise ValueError(
                "train_dataset or eval_dataset is a stream, of which no rows can be drawn; give data sets of a length."
            )
        size = min(len(rows), len(evaluated))
        drawn = np.random.default_rng(self.args.seed).choice(len(rows), size, replace=False)
        return self.evaluate_rows(Subset(rows, np.sort(drawn).tolist()))

    def probe_options(self) -> dict[str, Any]:
        """What `decompose_embeddings` is told in this run, but for the intervals."""
        return probe_options(self)

    # ---- checkpoints and folders ----

    def folders_in_use(self) -> list[str]:
        """What a checkpoint of this moment refers to: stage 1's peak, and what a modality may be reset to."""
        return [*self.stages.folders_in_use(), *self.best_heads.folders_in_use()]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.record.strategy = self.plan.strategy.state_dict()
        super()._save_checkpoint(model, trial)

    def load_folder(self, name: str) -> FusionForClassification:
        """The model that a folder of the output directory holds, on the device."""
        folder = os.path.join(self.args.output_dir, name)
        model = FusionForClassification.from_pretrained(folder, **self.model.own_modules())
        return cast("FusionForClassification", model.to(self.args.device))

    def _remove_folders(self) -> None:
        """Remove what only a run that goes on needs; its checkpoints hold their own."""
        unneeded = self.best_heads.folders_in_use()
        if self.plan.keeps_initial_weights(self.plan.first_stage):
            unneeded.append(INITIAL_FOLDER)
        # Every process has read them by then.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for name in unneeded:
                shutil.rmtree(os.path.join(self.args.output_dir, name), ignore_errors=True)

    # ---- the readout ----

    def fit_readout(self) -> Readout | None:
        """Evaluate the model as it is and fit the calibrated combination of its heads on the evaluation set.

        The result is kept in `model.config.readout`, so that the saved model returns calibrated probabilities.
        """
        self.model.config.readout = None
        self.evaluator.forget()
        self.evaluate()
        evaluated = self.evaluator.latest(self._probe_prefix())
        return None if evaluated is None else self._set_readout(evaluated.outputs)

    def _fit_readout_once_evaluated(self) -> None:
        """The same without another pass where the final weights were evaluated in training."""
        step, sets = self._final_step(), self.eval_dataset
        prefixes = [f"eval_{name}" for name in sets] if isinstance(sets, Mapping) else ["eval"]
        kept = {prefix: self.evaluator.at(prefix, step) for prefix in prefixes}
        full_precision = not (self.args.bf16_full_eval or self.args.fp16_full_eval)
        if not full_precision or None in kept.values():
            self.fit_readout()
            return
        self.model.config.readout = None
        for prefix, evaluated in kept.items():
            again = self.evaluator.measure_again(self, prefix, cast("Any", evaluated))
            self.log(dict(again.metrics))
            self._report(prefix, self.evaluator.with_reliability(self, again))
        self._set_readout(cast("Any", kept[prefixes[0]]).outputs)

    def _final_step(self) -> int:
        """The step of the weights that training ended with."""
        best = self.state.best_global_step
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint and best is not None:
            return best
        if self.plan.stages == "unimodal":
            # It may have ended at an earlier peak, also before a restart.
            kept = [probe.restored for probe in self.record.history if probe.restored is not None]
            return kept[-1] if kept else self.state.global_step
        return self.state.global_step

    def _set_readout(self, evaluation: Evaluation) -> Readout:
        readout = evaluation.fit_readout(self.model.problem_type)
        self.model.config.readout = readout.to_dict()
        self.evaluator.forget()
        return readout

    # ---- after training ----

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        comparison: Mapping[str, float] | None = None,
    ) -> None:
        """Write the model card to `README.md` in the output folder, and stage 1's into its folder.

        Args:
            language: not used; the card finds such facts itself.
            license: identifier of the license of the weights.
            tags: more tags of the model, beside those that the card finds.
            model_name: title of the card; by default the name of the repository or of the output folder.
            finetuned_from: not used.
            tasks: not used.
            dataset_tags: name of the data on the Hub, when it is there.
            dataset: plain name of the data.
            dataset_args: not used.
            comparison: accuracy of other schedules on the last split, by name.

        Raises:
            ValueError: nothing has been evaluated, or the card would name a local path or a token.
        """
        if self.is_world_process_zero():
            self.publishing.write_card(
                title=model_name,
                license=license,
                tags=[tags] if isinstance(tags, str) else list(tags or ()),
                dataset=dataset if isinstance(dataset, str) else "the training data",
                dataset_hub_name=dataset_tags if isinstance(dataset_tags, str) else None,
                comparison=comparison,
            )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Publish the final model on `main` (or `revision`) and stage 1's peak on the branch `unimodal`.

        Everything is written to the output folder first. Uploaded are weights (safetensors), configurations,
        processors, card and picture, and nothing else.

        Args:
            commit_message: of the commit of the final model.
            blocking: not used; the upload always blocks.
            token: with permission to write; by default that of the arguments, or the one that `hf auth login` keeps.
            revision: branch of the final model.
            private: whether a new repository is private.
            **kwargs: arguments of `create_model_card`.

        Raises:
            ValueError: something to be published names a local path or a token; nothing is uploaded.
            NotPublishedError: the Hub cannot be reached, or refuses; the sentence has the command that repeats the
                push of the folder.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = commit_message or "End of training"
        return self.publishing.push(message, token=token, revision=revision, private=private, card=kwargs)

    def end_training(self) -> None:
        """Finish the trackers and let go of the other processes; the last line of a script for several.

        It is `accelerator.end_training()`, after which every process ends with status 0: each waits here until all
        have come (`args.ddp_timeout` seconds at most). The model stays; training or evaluating again needs a new run.
        Let go of other trainers first (`del other`): they keep the threads of the processes alive.
        """
        end_processes(self)

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

        Args:
            hp_space: as there; it may name every argument, `strategy` among them.
            compute_objective: as there.
            n_trials: as there.
            direction: as there.
            **kwargs: as there.
        """
        name = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        if direction is None:
            is_greater = self.args.greater_is_better
            is_score = not name.endswith("loss") if is_greater is None else is_greater
            direction = "maximize" if is_score else "minimize"
        objective = compute_objective or (lambda metrics: metrics[f"eval_{name}"])
        return super().hyperparameter_search(hp_space, objective, n_trials, direction, **kwargs)
