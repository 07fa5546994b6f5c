"""`FusionTrainer`: a `transformers.Trainer` that trains in two stages."""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_model
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import EvalPrediction
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import BestRun, IntervalStrategy, TrainOutput
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from ecsfusion.controller import Rule, make_rule
from ecsfusion.data.columns import check_columns, check_has_rows
from ecsfusion.evaluation.probe import metric_names
from ecsfusion.model.problem_types import SINGLE_LABEL
from ecsfusion.modeling import FusionConfig, FusionForClassification
from ecsfusion.processing import FusionCollator, FusionProcessor, TensorCollator
from ecsfusion.reporting.run_summary import ending
from ecsfusion.reporting.trajectory import plot_trajectory
from ecsfusion.strategies import Strategy, make_strategy
from ecsfusion.training.best_heads import folder_of, load_modality, quality, save_modality, why_not_kept
from ecsfusion.training.callbacks import ControllerCallback, FusionProgressCallback
from ecsfusion.training.checkpoints import replace_folder
from ecsfusion.training.parameter_groups import parameters_by_part
from ecsfusion.training.processes import end_processes
from ecsfusion.training.publishing import INITIAL_FOLDER, TRAJECTORY_FILE, UNIMODAL_FOLDER
from ecsfusion.training.record import StageRecord, check_saved_record
from ecsfusion.training.sharding import check_sharding
from ecsfusion.training.watching import WatchingTrainer
from ecsfusion.training_args import FusionTrainingArguments

logger = logging.get_logger(__name__)


class FusionTrainer(WatchingTrainer):
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
        args: [`FusionTrainingArguments`].
        train_dataset, eval_dataset, data_collator, compute_metrics, callbacks, ...: as in `transformers.Trainer`;
            rows hold one entry per modality and `labels`. A dictionary of evaluation sets is probed on its first.
        processing_class: a [`FusionProcessor`], saved and published with the model; it also collates the rows.
            Without one, rows must hold tensors of equal shapes.
        strategy: one's own `ecsfusion.strategies.Strategy`, a class (made with `args.strategy_options`); by default
            `args.strategy` names it.
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
        strategy: type[Strategy] | None = None,
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
        if strategy is not None:
            if not (isinstance(strategy, type) and issubclass(strategy, Strategy)):
                raise TypeError(
                    f"strategy is {strategy!r}; give a subclass of Strategy, or name one in args.strategy."
                )
            if args.strategy != "two-stage":
                raise ValueError(
                    f"strategy is {strategy.__name__}, but args.strategy is {args.strategy!r}; give one of them."
                )
            args.take_settings_of(strategy)
            args._check_unimodal_epochs()  # which may be out of place in the strategy's stages
        if args.stages != "joint" and kwargs.get("eval_dataset") is None:
            raise ValueError(
                f"stages is {args.stages!r} but eval_dataset is missing, which the controller probes; give one, "
                "or train with stages='joint'."
            )
        self.user_rule = rule
        self.user_strategy = strategy
        self._strategy_rates: dict[str, float] = {}  # among args.modality_learning_rates
        self._kept_step: int | None = None  # of the weights in the folder of stage 1's peak
        self._keeps_best_heads = args.keep_best_heads
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            data_collator=data_collator or _collator(processing_class, model),
            compute_metrics=compute_metrics,
            **kwargs,
        )
        self.strategy = self._make_strategy()
        self._make_rule()
        self.folder_names = [UNIMODAL_FOLDER, INITIAL_FOLDER, *map(folder_of, self.model.modalities)]
        check_sharding(self)
        self._check_best_metric()
        self.pop_callback(PrinterCallback)  # it prints every evaluation as a dictionary of thirty numbers
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(FusionProgressCallback())
        self.add_callback(
            ControllerCallback()
        )  # after the bar, which closes before the probe's line is printed

    # ---- the controller's place ----

    def _new_strategy(self) -> Strategy:
        options = dict(self.args.strategy_options or {})
        return make_strategy(self.user_strategy or self.args.strategy, self.model.modalities, **options)

    def _make_strategy(self) -> Strategy:
        args, strategy = self.args, self._new_strategy()
        name = strategy.name or type(strategy).__name__
        for problem, found, remedy in (
            (strategy.only_one_process, args.world_size > 1, "start one process"),
            (strategy.not_fp16, args.fp16, "use bf16"),
            (strategy.only_two, args.joint_pausing, "leave joint_pausing out"),
            (
                strategy.only_single_label,
                self.model.problem_type != SINGLE_LABEL,
                "choose another strategy",
            ),
            (
                strategy.needs_evaluations,
                self.eval_dataset is None or args.eval_strategy == IntervalStrategy.NO,
                "give an eval_dataset and an eval_strategy",
            ),
        ):
            if problem and found:
                raise ValueError(f"the strategy {name!r} cannot be trained like this: {problem}; {remedy}.")
        if strategy.only_fusion and strategy.only_fusion != self.model.config.fusion:
            raise ValueError(
                f"the strategy {name!r} needs the fused head {strategy.only_fusion!r}, and the model has "
                f"{self.model.config.fusion!r}; build it with fusion={strategy.only_fusion!r}."
            )
        if strategy.has_own_loss and self.compute_loss_func is not None:
            raise ValueError(
                f"compute_loss_func is given, but the strategy {name!r} has a loss of its own; leave it out, or set "
                "model.head_loss, of which every loss is made."
            )
        if self.user_rule is not None and ("rule" in strategy.settings or strategy.rule() is not None):
            raise ValueError(f"rule is given, but the strategy {name!r} has one of its own; leave it out.")
        return strategy

    def _make_rule(self) -> Rule:
        own = self.strategy.rule()
        if own is not None:
            rule = own
        elif isinstance(self.user_rule, Rule):
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

    def _needs_initial(self) -> bool:
        return self.strategy.resets or (self.record.stage == "unimodal" and self._make_rule().resets)

    def folders_in_use(self) -> list[str]:
        """What a checkpoint of this moment refers to: stage 1's peak, and what a modality may be reset to."""
        kept = {UNIMODAL_FOLDER: self.record.peak_step is not None, INITIAL_FOLDER: self._needs_initial()}
        kept |= {folder_of(name): name in self.record.best_heads for name in self.model.modalities}
        return [name for name, needed in kept.items() if needed]

    # ---- training ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Run both stages; afterwards fit the readout and draw the trajectory.

        Args and returns as in `transformers.Trainer.train`.
        """
        for name, dataset in {"train_dataset": self.train_dataset, **self._evaluation_sets()}.items():
            check_has_rows(dataset, name)
        self.controller.record = StageRecord(stage="joint" if self.args.stages == "joint" else "unimodal")
        self._kept_step = None
        self._kept.clear()
        self._probe_seconds = 0.0
        self.reports.clear()
        result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self.model.set_active(self.model.modalities)
        self.model.set_frozen(())
        if self.eval_dataset is not None and self._take_best_heads():
            self.fit_readout()
        elif self.eval_dataset is not None:
            self._fit_readout_once_evaluated()
        self._watch_end()
        if self.is_world_process_zero() and self.record.history:
            history, names = self.record.history, self.model.modalities
            self._draw(TRAJECTORY_FILE, lambda file: plot_trajectory(history, names, file))
            print(ending(self, result.metrics), flush=True)
        self._remove_folders()
        return result

    def _remove_folders(self) -> None:
        """Remove what only a run that goes on needs; its checkpoints hold their own."""
        done = [folder_of(name) for name in self.record.best_heads]
        if self.strategy.resets or (self.args.stages != "joint" and self._make_rule().resets):
            done.append(INITIAL_FOLDER)
        self.accelerator.wait_for_everyone()  # each has read them
        if self.args.should_save:
            for name in done:
                shutil.rmtree(os.path.join(self.args.output_dir, name), ignore_errors=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        absent = check_saved_record(resume_from_checkpoint)
        if absent and self.is_world_process_zero():
            logger.warning(
                f"{resume_from_checkpoint} was saved by an older version, which did not keep {', '.join(absent)}: "
                "training goes on, and may end otherwise than it would have without the interruption."
            )
        self.model.set_best_heads({})  # of a model that was trained before; a checkpoint has none
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One pair of parameter groups per modality and for the fusion head."""
        # Here, and not in __init__, because `model_init` makes a new model for every run. All modalities are
        # active until the first step: DistributedDataParallel, which wraps the model after this, never averages
        # the gradients of parameters that were paused at that moment.
        self.model.label_smoothing = self.args.label_smoothing_factor
        self.model.config.auxiliary_weight = self.args.auxiliary_weight
        self.model.config.readout = None
        self.model.set_best_heads({})
        self.model.set_active(self.model.modalities)
        self.model.set_frozen(())
        if self.args.keep_best_heads:
            sharded = "DeepSpeed" if self.is_deepspeed_enabled else "FSDP" if self.is_fsdp_enabled else None
            why = f"no process has whole heads under {sharded}" if sharded else why_not_kept(self.model)
            self._keeps_best_heads = why is None
            if why is not None:
                logger.warning(f"keep_best_heads is off in this run: {why}.")
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
        self.strategy = self._make_strategy()
        if record.strategy:
            self.strategy.load_state_dict(record.strategy)
        self.controller.bind(rule, self.strategy, self.model.modalities, self._probe_prefix())
        self.model.set_stage(record.stage)
        if self._needs_initial() and self.state.global_step == 0:
            self.save_folder(INITIAL_FOLDER)
        self.model.set_stage(self.record.stage, self._fuses_early())
        self.strategy.begin_stage(self)
        return optimizer

    def _check_processes(self, record: StageRecord) -> None:
        processes = self.args.world_size
        if record.processes not in (0, processes):
            raise ValueError(
                f"the checkpoint was written by {record.processes} processes and this run has {processes}: batches and "
                f"random numbers would be others. Resume with {record.processes}, or start anew."
            )
        record.processes = processes

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

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Carry out what the controller decided after the last evaluation, then train one batch."""
        if self.record.pending is not None:
            self._carry_out(self.record.pending)
        if set(self.model.active) != set(self.record.training):
            self.model.set_active(self.record.training)
        return super().training_step(model, inputs, num_items_in_batch)

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
        if set(decision["reset"]) == set(self.model.modalities):
            self._reset("")  # the fused head as well
        else:
            for name in decision["reset"]:
                self._reset_modality(name)
        if decision["ends_stage"]:
            if decision["restore"] is not None:
                self._restore_peak(decision["restore"])
            self._begin_joint_stage()
        else:
            record.training = list(decision["training"])
        self.model.set_stage(self.record.stage, self._fuses_early())
        record.pending = None

    def _fuses_early(self) -> bool:
        rule = self.controller.rule
        return self.record.stage == "unimodal" and rule is not None and rule.fuses

    def _reset_modality(self, name: str) -> None:
        """Put one modality back to what it was before training."""
        self._reset(f"encoders.{name}.", f"heads.{name}.")

    def _reset(self, *prefixes: str) -> None:
        """Put weights and batch statistics of these names back; the optimizer's state goes with them."""
        initial = self.load_folder(INITIAL_FOLDER).state_dict()
        with torch.no_grad():
            for key, value in self.model.state_dict(keep_vars=True).items():
                if not key.startswith(prefixes):
                    continue
                value.copy_(initial[key])
                self.optimizer.state.pop(value, None)
                if value in self._fresh_state:
                    self.optimizer.state[value] = copy.deepcopy(self._fresh_state[value])

    def _restore_peak(self, step: int) -> None:
        folder = os.path.join(self.args.output_dir, UNIMODAL_FOLDER)
        kept = FusionConfig.from_pretrained(folder).step
        if kept != step:
            raise ValueError(
                f"stage 1's peak is at step {step}, but {folder} holds step {kept}: another run wrote there. "
                "Train again in an empty output_dir."
            )
        load_model(
            self.model, os.path.join(folder, SAFE_WEIGHTS_NAME)
        )  # read on the CPU: no device is called "cpu:0"

    def _begin_joint_stage(self) -> None:
        record, model = self.record, self.model
        record.stage, record.stage_start = "joint", self.state.global_step
        record.training = list(model.modalities)
        model.set_stage("joint")
        self.strategy.begin_stage(self)
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
        """As `WatchingTrainer.evaluate`; during stage 1, keep the peak."""
        in_stage_one = self.is_in_train and self.record.stage == "unimodal"
        if in_stage_one and not self.model.trains_fused_head:
            self.model.start_fusion_from_heads()
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.is_in_train and metric_key_prefix == self._probe_prefix():
            if self._keeps_best_heads:
                self._keep_best_heads()
            if in_stage_one:
                self._keep_peak()
            self.strategy.after_evaluation(self, self._kept[self._probe_prefix(), self.state.global_step])
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.record.strategy = self.strategy.state_dict()
        super()._save_checkpoint(model, trial)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        # Anew for every optimizer: a search changes the common rate. What the user gave stays.
        given = self.args.modality_learning_rates or {}
        given = {name: rate for name, rate in given.items() if self._strategy_rates.get(name) != rate}
        rates = self._new_strategy().learning_rates(self.args.learning_rate)
        self._strategy_rates = {name: rate for name, rate in rates.items() if name not in given}
        self.args.modality_learning_rates = {**self._strategy_rates, **given} or None
        return super()._parameter_groups()

    def _keep_best_heads(self) -> None:
        step = self.state.global_step
        evaluation = self._kept[self._probe_prefix(), step]
        qualities = {m: quality(evaluation, m, self.model.problem_type) for m in self.model.modalities}
        # The first process judges for all, as it probes.
        for name, found in broadcast_object_list([qualities])[0].items():
            best = self.record.best_heads.get(name)
            if best is not None and found <= tuple(best[1:]):
                continue
            self.record.best_heads[name] = [step, *found]
            if self.args.should_save:
                folder = os.path.join(self.args.output_dir, folder_of(name))
                shutil.rmtree(f"{folder}.writing", ignore_errors=True)
                with self.saving(f"The best weights of {name!r}", f"{folder}.writing"):
                    save_modality(self.model, name, step, f"{folder}.writing")
                    replace_folder(f"{folder}.writing", folder)
        self.accelerator.wait_for_everyone()

    def _take_best_heads(self) -> bool:
        """Let every modality whose best step is not the model's answer with the weights of its own."""
        steps = {name: int(best[0]) for name, best in self.record.best_heads.items()}
        weights = {
            name: load_modality(os.path.join(self.args.output_dir, folder_of(name)), step)
            for name, step in steps.items()
            if step != self._final_step()
        }
        self.model.set_best_heads(weights)
        return bool(weights)

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
        if self.args.stages == "unimodal" and pending is not None and pending["ends_stage"]:
            if pending["restore"] is not None:
                self._restore_peak(pending["restore"])
            record.pending = None
            self.control.should_training_stop = True

    # ---- the end ----

    def end_training(self) -> None:
        """Finish the trackers and let go of the other processes; the last line of a script for several.

        It is `accelerator.end_training()`, after which every process ends with status 0: each waits here until all
        have come (`args.ddp_timeout` seconds at most). The model stays; training or evaluating again needs a new run.
        Let go of other trainers first (`del other`): they keep the threads of the processes alive.
        """
        end_processes(self)

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
        if not isinstance(processor, FusionProcessor):
            raise TypeError(
                f"processing_class is a {type(processor).__name__}; give a FusionProcessor of one processor per "
                "modality, or a data_collator of your own with it."
            )
        if model is not None and set(processor.modalities) != set(model.modalities):
            raise ValueError(
                f"processing_class has the modalities {list(processor.modalities)}, but the model has "
                f"{list(model.modalities)}; give both the same names."
            )
        return FusionCollator(processor)
    return TensorCollator(None if model is None else model.modalities)
