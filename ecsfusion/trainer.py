"""`FusionTrainer`: a `transformers.Trainer` that trains in two stages."""

from __future__ import annotations

import copy
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import IterableDataset, SequentialSampler, Subset
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import BestRun, HPSearchBackend, TrainOutput, has_length
from transformers.utils import logging

from ecsfusion.controller.rule import Rule
from ecsfusion.data.class_names import check_class_names
from ecsfusion.data.columns import check_collated, check_columns, check_has_rows
from ecsfusion.data.groups import GROUPS
from ecsfusion.data.lengths import SeededLengthGroupedSampler, row_lengths
from ecsfusion.data.numbered_rows import NumberedRows
from ecsfusion.diagnostics.finding import Finding
from ecsfusion.diagnostics.long_warm_up import long_warm_up
from ecsfusion.diagnostics.probed_training_rows import probed_training_rows
from ecsfusion.diagnostics.run import RunDiagnostics
from ecsfusion.diagnostics.starved_heads import starved_heads
from ecsfusion.diagnostics.target_scale import target_scale
from ecsfusion.diagnostics.unfrozen_late import unfrozen_late
from ecsfusion.diagnostics.untrained_classes import untrained_classes
from ecsfusion.diagnostics.untrained_modality import absent_from, untrained_modality
from ecsfusion.evaluation.measurement import Measurement
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.evaluation.scores import score_name
from ecsfusion.model.problem_types import REGRESSION, SINGLE_LABEL
from ecsfusion.model.readout import Readout
from ecsfusion.modeling import FusionForClassification
from ecsfusion.pid.decomposition import PID
from ecsfusion.processing import FusionCollator, FusionProcessor, SameKeysCollator, TensorCollator
from ecsfusion.reporting.hub import reachable_at_start
from ecsfusion.reporting.results import run_summary
from ecsfusion.strategies import Strategy
from ecsfusion.training.best_heads import BestHeads, bring_back_older_folders, folder_of
from ecsfusion.training.best_metric import check_best_metric, check_reported
from ecsfusion.training.callbacks import ControllerCallback, show_progress_of_stages, without_bars
from ecsfusion.training.clipping import clip_by_part, total_norm
from ecsfusion.training.divergence import logits_by_head, raise_divergence, what_broke
from ecsfusion.training.evaluator import (
    Evaluator,
    check_rows_to_decide_on,
    probe_options,
    raise_no_reading,
    warn_of_untrained_heads,
)
from ecsfusion.training.even_batches import (
    EvenBatches,
    check_not_split,
    reads_own_shards,
    warn_of_uneven_shards,
)
from ecsfusion.training.groups import RunGroups, split_inputs, without_groups
from ecsfusion.training.head_losses import LossOfAllHeads
from ecsfusion.training.labels import LabelCheckingCollator, check_label_columns, class_column, target_column
from ecsfusion.training.overrides import check_overrides
from ecsfusion.training.parameter_groups import parameter_groups, parameters_by_part
from ecsfusion.training.plan import Plan, StrategyChoice, check_plan, check_sharding, head_rates, make_plan
from ecsfusion.training.processes import end_processes
from ecsfusion.training.publishing import Publishing, as_list
from ecsfusion.training.record import StageRecord, check_saved_record
from ecsfusion.training.resuming import ResumableTrainer
from ecsfusion.training.setup import (
    check_arguments,
    check_checkpointing,
    check_ignored_outputs,
    check_model,
    check_not_all_dropped,
    check_set_names,
    collator_for,
    warn_of_older_checkpoint,
    warn_of_other_columns,
)
from ecsfusion.training.sharding import (
    DEEPSPEED,
    FSDP1,
    FSDP2,
    check_no_early_state,
    check_not_trained,
    check_plugin,
    check_same_modalities,
    copy_from_first_process,
    is_sharded,
    layers_to_shard,
    reshard,
    saved_buffers,
)
from ecsfusion.training.stages import (
    INITIAL_FOLDER,
    UNIMODAL_FOLDER,
    Stages,
    check_trainable,
    weights_of,
)
from ecsfusion.training.trackio_alerts import alert_on_trackio
from ecsfusion.training.untouched import (
    StartOfRun,
    kept_active_loader,
    kept_flags,
    kept_precision,
    kept_random_state,
)
from ecsfusion.training_args import FusionTrainingArguments

logger = logging.get_logger(__name__)

GROUPS_OF_ITS_OWN = frozenset({"params", "model", "optimizer_dict"})
"""Keyword arguments of optimizers that make their own parameter groups."""
PREDICTION = "Prediction"
"""How `transformers.Trainer.predict` describes its pass."""
EMBEDDING = "Embedding"
"""How `FusionTrainer.evaluate_rows` describes its pass, of which nothing is measured."""


class FusionTrainer(ResumableTrainer):
    """Trains a [`FusionForClassification`] in two stages inside one `train()`.

    Stage 1 trains every modality on its own loss, and at first the fused head too if the rule scouts. After each
    evaluation the rule of the controller reads the partial information decomposition of the embeddings and decides
    which modalities train. At the end of stage 1 the weights that the rule names are restored, the optimizer's state is
    cleared, the learning-rate schedule starts again over the steps that are left, and all modalities train together
    (arXiv 2509.20840).

    After training, the model gets the best weights of each modality, which answer for the modality alone
    (`keep_best_heads`). The calibrated combination of all heads is fitted on the evaluation set and saved in the
    model's configuration. Problems of a run, such as a stage 1 that was too short or a modality that has memorized its
    rows, are logged once with a remedy, kept in `record.warnings`, and listed at the end and in the model card
    (`ecsfusion.diagnostics`).

    Args:
        model: the model to train.
        args: [`FusionTrainingArguments`]. A run never changes them.
        strategy: how to train, instead of `args.strategy`: the name, the class or an instance of an
            `ecsfusion.Strategy`, or of an `ecsfusion.Rule` that steers two stages. A name or a class is made with the
            options `args.strategy_options`.
        processing_class: a [`FusionProcessor`], which is saved and published with the model and collates the rows.
            Without one, rows must hold tensors of equal shapes.
        data_collator: as in `transformers.Trainer`; by default that of `processing_class`.
        compute_metrics: as in `transformers.Trainer`, from the logits of the fused head. Its values are logged with
            those of the measurement; no rule reads them.
        **kwargs: as in `transformers.Trainer`: `train_dataset`, `eval_dataset`, `callbacks`, ... Rows hold one entry
            per modality and `labels`. A dictionary of evaluation sets is probed on its first.

    Attributes:
        plan: what the present or the next run does, made from the arguments.
        measurements: the evaluations after training, by split; "validation" is the probe set.
        record: the stage, the modalities that train, and the history of probes.

    Raises:
        TypeError: a model or arguments of a wrong type.
        ValueError: learning rates for names that are not modalities; a two-stage run without an evaluation set.
    """

    model: FusionForClassification
    # transformers declares only the processors of its own, and only LambdaLR.
    processing_class: FusionProcessor | None  # type: ignore[assignment]
    lr_scheduler: LRScheduler | None  # type: ignore[assignment]
    # None until `create_optimizer` has run.
    optimizer: torch.optim.Optimizer
    # A data set of torch or of `datasets`, or a list.
    train_dataset: Any

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
        self.groups = RunGroups(self)
        self.publishing = Publishing(self)
        self.measurements: dict[str, Measurement] = {}
        self._heads: dict[str, torch.Tensor] = {}
        """The logits of the latest training batch, by head."""
        self._parts: dict[str, list[nn.Parameter]] = {}
        self._even_batches: EvenBatches | None = None
        """The batches of a training stream of which each process reads its own shards."""
        self._buffers: list[torch.Tensor] = []
        """Under FSDP version 2, the buffers that are saved with the model, see `saved_buffers`."""
        self._modalities_check: Any = None
        """Under FSDP version 2, the handle of `check_same_modalities`."""
        self._grad_norms: dict[str, torch.Tensor] = {}
        self._step_followed = 0
        """The latest optimizer step for which `Strategy.after_step` was called."""
        self._unseen: list[str] = []
        """The modalities that no row of the present run has had in training."""
        self._start_step = 0
        """The optimizer step at which the present run began, or was resumed."""
        self._awaited: set[str] = set()
        """The prefixes of the evaluations that the Trainer itself has started and that have not begun yet."""
        self._optimizer_of_run: torch.optim.Optimizer | None = None
        """The optimizer that the trainer made for the latest run."""
        self._given_states: list[dict[str, Any]] = []
        """The states of the user's own optimizer and schedule before the first run."""
        self._start: StartOfRun | None = None
        """Weights and random state that a run with `auto_find_batch_size` began with."""
        self._loaded_best = False
        """Whether the model got the best weights of the run at its end."""
        with warnings.catch_warnings():
            # The model smooths several labels, too.
            warnings.filterwarnings("ignore", "Label smoothing is not compatible with multi-label")
            super().__init__(
                model=model,
                args=args,
                processing_class=processing_class,  # type: ignore[arg-type]
                data_collator=data_collator or collator_for(processing_class, model),
                compute_metrics=self._compute_metrics,
                **kwargs,
            )
        check_model(self.model)
        if isinstance(self.eval_dataset, Mapping):
            check_set_names(self.eval_dataset)
        check_overrides(self, FusionTrainer)
        self.plan: Plan = self._make_plan()
        self._user_optimizer, self._user_scheduler = self.optimizer, self.lr_scheduler
        self.evaluator.user_preprocessing = self.preprocess_logits_for_metrics
        # transformers declares tensors, and a fusion model returns more.
        self.preprocess_logits_for_metrics = cast("Any", self._preprocess_outputs)
        if self.compute_loss_func is not None:
            self.compute_loss_func = LossOfAllHeads(self.compute_loss_func, lambda: self.model)
        # The model smooths every head's labels; the Trainer's smoother knows only one set of logits.
        self.label_smoother = None
        self.folder_names = [UNIMODAL_FOLDER, INITIAL_FOLDER, *map(folder_of, self.model.modalities)]
        self._check_before_training()
        if self.optimizer is not None and (self.plan.learning_rates or args.modality_weight_decays):
            raise ValueError(
                "optimizers holds an optimizer, so head_learning_rate, modality_learning_rates and "
                "modality_weight_decays (given here, or set by the strategy) would have no effect; give its parameter "
                "groups their rates, or leave `optimizers` out."
            )
        show_progress_of_stages(self)
        alert_on_trackio(self)
        self.add_callback(ControllerCallback())

    @property
    def controller(self) -> ControllerCallback:
        """The callback that holds the record. A restored checkpoint replaces it."""
        return next(cb for cb in self.callback_handler.callbacks if isinstance(cb, ControllerCallback))

    @property
    def record(self) -> StageRecord:
        """The stage, the modalities that train, and the history of probes."""
        return self.controller.record

    @property
    def strategy(self) -> Strategy:
        """The strategy of the present run, or of the next one."""
        return self.plan.strategy

    @property
    def rule(self) -> Rule | None:
        """The rule of the present run, or of the next one; None if there is no stage 1."""
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
        if (
            self.args.fsdp
            and self._sharded_by() is None
            and self.is_in_train
            and self.is_world_process_zero()
        ):
            logger.warning(
                f"fsdp is {self.args.fsdp!r}, but accelerate shards no weights on the device "
                f"{self.args.device.type!r}: every process trains the whole model."
            )
        # This raises an error for a name that is no modality.
        self._parameter_groups()
        frozen = check_trainable(self.model, self.plan.first_stage, self._user_optimizer)
        if frozen is not None and self.is_in_train and self.is_world_process_zero():
            logger.warning(frozen)
        texts = self.model.text_embeddings() if self.args.neftune_noise_alpha is not None else {}
        if self.args.neftune_noise_alpha is not None and len(texts) != 1:
            raise ValueError(
                f"neftune_noise_alpha is {self.args.neftune_noise_alpha}, and adds noise to the tokens of one text "
                f"encoder, but the model has {len(texts)} {[*texts]}; leave it out."
            )
        check_checkpointing(self.model, self.args)
        if self.args.metric_for_best_model is not None and self.eval_dataset is not None:
            self._check_best_metric(self.args.metric_for_best_model)

    def _check_best_metric(self, metric: str) -> None:
        sets = self.eval_dataset
        check_best_metric(
            metric,
            self.model.modalities,
            score_name(self.model.problem_type),
            [*sets] if isinstance(sets, Mapping) else [],
            self.evaluator.user_metrics is not None,
        )

    def _sharded_by(self) -> str | None:
        if self.is_fsdp_enabled:
            return FSDP2 if self.accelerator.is_fsdp2 else FSDP1
        return DEEPSPEED if self.is_deepspeed_enabled else None

    def _check_dropped_rows(self, dataset: Any, name: str) -> None:
        args = self.args
        if args.dataloader_drop_last:
            batch_size = args.train_batch_size if name == "train_dataset" else args.eval_batch_size
            check_not_all_dropped(name, dataset, batch_size * args.world_size)

    def _check_class_names(self, other_sets: Mapping[str, Any]) -> None:
        # A collator of the user's own may make other numbers of them.
        if isinstance(self.data_collator, FusionCollator | TensorCollator):
            sets = {"train_dataset": self.train_dataset, **self.evaluation_sets(), **other_sets}
            check_class_names(sets, self.model.config.id2label)

    def _check_other_set(self, name: str, dataset: Any) -> None:
        """Check a set that is no evaluation set of the run."""
        self._check_class_names({name: dataset})
        own = isinstance(self.data_collator, FusionCollator | TensorCollator)
        if own and not any(dataset is each for each in self.evaluation_sets().values()):
            warn_of_other_columns(dataset, self.model.modalities, self.groups.column, name)

    def evaluation_sets(self) -> dict[str, Any]:
        """The evaluation sets, by their names in error messages. The first one is the probe set."""
        sets = self.eval_dataset
        if sets is None:
            return {}
        if isinstance(sets, Mapping):
            return {f"eval_dataset[{name!r}]": rows for name, rows in sets.items()}
        return {"eval_dataset": sets}

    # ---- a run ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train in both stages, then fit the readout and draw the trajectory.

        Args:
            resume_from_checkpoint: as in `transformers.Trainer.train`; True for the latest complete checkpoint.
            trial: as in `transformers.Trainer.train`.
            ignore_keys_for_eval: as in `transformers.Trainer.train`.

        Returns:
            The result of `transformers.Trainer.train`.
        """
        with without_bars(bool(self.args.disable_tqdm)), kept_active_loader(self.accelerator):
            return self._train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _train(
        self, resume_from_checkpoint: str | bool | None, trial: Any, ignore_keys_for_eval: list[str] | None
    ) -> TrainOutput:
        check_ignored_outputs("ignore_keys_for_eval", ignore_keys_for_eval)
        for name, dataset in {"train_dataset": self.train_dataset, **self.evaluation_sets()}.items():
            check_has_rows(dataset, name)
            self._check_dropped_rows(dataset, name)
        if self.model_init is None:
            check_not_trained(self.model)
        try:
            result = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            # After an exception too, so that the next evaluation is none of a run.
            self.is_in_train = False
            self._start = None
            if (
                self.neftune_noise_alpha is not None
                and getattr(self, "neftune_hook_handle", None) is not None
            ):
                self.neftune_hook_handle.remove()
        reshard(self.model)
        self.model.set_active(self.model.modalities)
        self.model.set_frozen(())
        # A run may have been stopped in stage 1, some steps after its latest probe.
        self.stages.prepare_probe()
        if self.eval_dataset is not None:
            # If the model has got best heads of other steps, its present weights have not been evaluated yet.
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
        # Everything that belongs to one run is set here. By now a hyperparameter search has set the arguments and
        # `model_init` has made the model, and a retry with a smaller batch size starts here too. If the run resumes,
        # its record is restored afterwards.
        self.plan = self._make_plan()
        self._check_before_training()
        self.controller.record = StageRecord(stage=self.plan.first_stage)
        self.evaluator.begin()
        self.measurements.clear()
        self._loaded_best = False
        self._awaited = set()
        self._step_followed = self._start_step = 0
        self._unseen = [*self.model.modalities]
        if self.args.auto_find_batch_size and self._sharded_by() is None:
            self._start_over(kwargs.get("resume_from_checkpoint"))
        self.__dict__.pop("_eval_dataloaders", None)
        self._renew_optimizer()
        return super()._inner_training_loop(*args, **kwargs)

    def _start_over(self, checkpoint: str | None) -> None:
        """Give a retry with a smaller batch the weights, random state and folders that the first try began with.

        Stage 2 may need more memory than stage 1, so that much may have been trained by then.
        """
        if self._start is None:
            self.model.set_best_heads({})
            self._start = StartOfRun(self.model, self.args.device)
        else:
            self._start.restore(self.model)
            if checkpoint is not None:
                self._bring_back_folders(checkpoint)
            self.accelerator.wait_for_everyone()

    def _renew_optimizer(self) -> None:
        """Leave no state and no decayed rates of an earlier run in the optimizer.

        An optimizer that was made by hand and has not trained yet is kept as it is.
        """
        if self._user_optimizer is not None:
            # `Trainer` may have wrapped them; the states are those of the objects inside.
            given = [each for each in (self._user_optimizer, self._user_scheduler) if each is not None]
            if not self._given_states:
                self._given_states = [copy.deepcopy(each.state_dict()) for each in given]
            else:
                for each, state in zip(given, self._given_states, strict=True):
                    each.load_state_dict(copy.deepcopy(state))
        elif self.optimizer is not None:
            inside = getattr(self.optimizer, "optimizer", self.optimizer)
            if inside is self._optimizer_of_run:
                self.optimizer = None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        absent = check_saved_record(resume_from_checkpoint)
        if absent and self.is_world_process_zero():
            warn_of_older_checkpoint(resume_from_checkpoint, absent)
        if self.args.should_save:
            bring_back_older_folders(resume_from_checkpoint, self.args.output_dir, self.model.modalities)
        # Remove best heads from an earlier run of this model, because a checkpoint holds none.
        self.model.set_best_heads({})
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer, with a pair of parameter groups per modality and for the fused head.

        If the run resumes, the record is restored by now. All modalities are active until the first step, because
        DistributedDataParallel wraps the model after this, and it would never average the gradients of parameters that
        are paused at that moment.
        """
        if not self.is_in_train:
            # Made by hand: the arguments may have changed since.
            self.plan = self._make_plan()
        starved: list[Finding] = []
        if self._user_optimizer is None:
            starved += starved_heads(self.model, head_rates(self.model, self.plan, self.args.learning_rate))
        self.model.label_smoothing = self.args.label_smoothing_factor
        self.model.config.auxiliary_weight = self.plan.auxiliary_weight
        self.model.config.readout = None
        self.best_heads.begin(self._sharded_by())
        self.model.set_active(self.model.modalities)
        self.model.set_frozen(())
        for name, dataset in {"train_dataset": self.train_dataset, **self.evaluation_sets()}.items():
            # What reaches the model counts: the rows themselves, or what a collator of the user's own makes of them.
            if isinstance(self.data_collator, FusionCollator | TensorCollator):
                check_columns(dataset, self.model.modalities, name)
            else:
                collate = self.groups.without_column(self.data_collator)
                check_collated(dataset, collate, self.model.modalities, name)
        self._check_class_names({})
        if isinstance(self.data_collator, FusionCollator | TensorCollator):
            sets = {"train_dataset": self.train_dataset, **self.evaluation_sets()}
            check_label_columns(sets, self.model.config.num_labels, self.model.problem_type)
            for dataset in list(self.evaluation_sets().values())[: self.is_in_train]:
                check_rows_to_decide_on(self, dataset)
        findings = [
            *self.groups.begin(),
            *probed_training_rows(self.train_dataset, self.evaluation_sets()),
            *self._untrained_classes(),
            *self._target_scale(),
        ]
        if self.is_in_train:
            self.diagnostics.before_rows([*findings, *starved])
        if self.optimizer_cls_and_kwargs is not None:
            optimizer_class, kwargs = self.optimizer_cls_and_kwargs
            self.optimizer_cls_and_kwargs = optimizer_class, {**kwargs, "params": self._parameter_groups()}
        if self._sharded_by() == FSDP2 and self.is_in_train and not is_sharded(self.model):
            self._prepare_sharding()
        optimizer = super().create_optimizer(model)
        self._step_followed = self._start_step = self.state.global_step
        if self.is_in_train:
            self._optimizer_of_run = optimizer
        self.stages.begin(optimizer)
        if self._sharded_by() != FSDP2:
            self._begin_with_weights()
        return optimizer

    def _untrained_classes(self) -> Iterator[Finding]:
        known = isinstance(self.data_collator, FusionCollator | TensorCollator)
        if known and self.model.problem_type == SINGLE_LABEL:
            sets = {name: class_column(dataset) for name, dataset in self.evaluation_sets().items()}
            names = {int(index): name for index, name in self.model.config.id2label.items()}
            yield from untrained_classes(class_column(self.train_dataset), sets, names)

    def _target_scale(self) -> Iterator[Finding]:
        known = isinstance(self.data_collator, FusionCollator | TensorCollator)
        if known and self.model.problem_type == REGRESSION:
            yield from target_scale(target_column(self.train_dataset))

    def _unfrozen_late(self) -> Iterator[Finding]:
        # Sharding puts other parameters in the place of these.
        if self._user_optimizer is None and self._sharded_by() is None:
            yield from unfrozen_late(self._parts, weights_of(self.optimizer) or ())

    def _prepare_sharding(self) -> None:
        """Let all processes start from the same weights, and say which layers are sharded one by one."""
        plugin = self.accelerator.state.fsdp_plugin
        check_plugin(plugin, self.model)
        if not plugin.cpu_ram_efficient_loading:
            # With it, accelerate copies the weights of the first process itself.
            copy_from_first_process(self.model, self.args.device)
        self.model._no_split_modules = layers_to_shard(self.model)

    # The Trainer has no public hook after the model is sharded and the checkpoint to resume from is loaded.
    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._prepare_for_training(*args, **kwargs)
        if self._sharded_by() == FSDP2:
            check_no_early_state(self.optimizer)
            if self._modalities_check is not None:
                self._modalities_check.remove()
            self._modalities_check = self.model.register_forward_pre_hook(
                check_same_modalities, prepend=True, with_kwargs=True
            )
            self._buffers = saved_buffers(self.model)
            self._begin_with_weights()
        return result

    def _begin_with_weights(self) -> None:
        """Begin what looks at the weights of the run, or at the parameters themselves."""
        self._parts = {name: list(p.values()) for name, p in parameters_by_part(self.model).items()}
        self.stages.keep_initial_weights()
        self.begin_stage()

    # A static method in transformers, but the groups depend on the plan. The Trainer calls it as `self.get_...`.
    def get_optimizer_cls_and_kwargs(  # type: ignore[override]
        self, args: TrainingArguments, model: PreTrainedModel | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """The optimizer of `args.optim` over the parameter groups of the modalities."""
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if not GROUPS_OF_ITS_OWN & set(kwargs):
            kwargs["params"] = self._parameter_groups()
        elif self.plan.learning_rates or self.args.modality_weight_decays:
            raise ValueError(
                f"optim is {str(getattr(args.optim, 'value', args.optim))!r}, which makes parameter groups of its own; "
                "leave out head_learning_rate, modality_learning_rates and modality_weight_decays, or choose another "
                "optimizer."
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
        """Make the schedule of the present stage, see `FusionTrainingArguments.unimodal_lr_scheduler_type`."""
        original_args, is_joint = self.args, self.record.stage == "joint"
        if is_joint:
            num_training_steps -= self.record.stage_start
        elif self.plan.unimodal_share is not None:
            num_training_steps = math.ceil(self.plan.unimodal_share * num_training_steps - 1e-9)
        if not is_joint and original_args.unimodal_lr_scheduler_type is not None:
            self.args = copy.copy(original_args)
            self.args.lr_scheduler_type = original_args.unimodal_lr_scheduler_type
            self.args.lr_scheduler_kwargs = {}
        try:
            scheduler = super().create_scheduler(num_training_steps, optimizer)
            if self.is_in_train and self._created_lr_scheduler:
                stage = "the run" if self.plan.stages != "two-stage" else f"stage {2 if is_joint else 1}"
                rises = (self.args.warmup_steps, self.args.lr_scheduler_type)
                self.diagnostics.before_rows(long_warm_up(stage, num_training_steps, *rises))
            return scheduler
        finally:
            self.args = original_args

    def restart_schedule(self, learning_rates: list[float]) -> None:
        """Set the rates of the parameter groups and start the schedule of the present stage.

        A schedule that the user gave is not changed.
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

    # The Trainer has no public hook that all of its data loaders pass.
    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        # Rows that know their number, so that an error names it; only the collators of this library look for it.
        given = dataset
        is_stream = isinstance(dataset, IterableDataset) or not has_length(dataset)
        if not is_stream and isinstance(self.data_collator, (FusionCollator, TensorCollator)):
            dataset = NumberedRows(dataset)
        config, collate = self.accelerator.dataloader_config, self.data_collator
        dispatch, is_training = config.dispatch_batches, kwargs.get("is_training", False)
        self.data_collator = LabelCheckingCollator(
            self.groups.collator(collate, given, is_training),
            self.model.config.num_labels,
            self.model.problem_type,
        )
        if self.args.world_size > 1 and isinstance(dataset, IterableDataset):
            if dispatch is None and is_training:
                # Each process reads the stream and takes its share, so that batches may differ in keys and lengths.
                config.dispatch_batches = False
            elif dispatch is not False:
                # By default one process reads an evaluation stream for all, so that no row is measured twice.
                self.data_collator = SameKeysCollator(self.data_collator, self.model.modalities)
            check_not_split(dataset, "train_dataset" if is_training else "eval_dataset")
            if is_training and config.dispatch_batches is False and self.is_world_process_zero():
                warn_of_uneven_shards(dataset, self.args.world_size)
        try:
            loader = super()._get_dataloader(dataset, *args, **kwargs)
        finally:
            config.dispatch_batches, self.data_collator = dispatch, collate
        if is_training:
            is_even = self.args.world_size == 1 or not reads_own_shards(loader)
            self._even_batches = None if is_even else EvenBatches(loader, self.accelerator)
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not has_length(dataset):
            return super()._get_train_sampler(train_dataset)
        measure = None if self.processing_class is None else self.processing_class.length
        lengths = row_lengths(dataset, self.model.modalities, self.args.length_column_name, measure)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SeededLengthGroupedSampler(batch_size, lengths, seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The batches of an optimizer step, as many in each process, also of streams in shards of different lengths."""
        if self._even_batches is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = self._even_batches.take(epoch_iterator, num_batches)
        return super().get_batch_samples(iter(batches), num_batches, device)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Carry out the decision that followed the last evaluation, then train one batch.

        Raises:
            DivergenceError: the loss is not a finite number; the message names the modality and the step.
        """
        self.stages.prepare_step()
        for buffer in self._buffers:
            # As DistributedDataParallel does it.
            torch.distributed.broadcast(buffer, src=0)
        loss = super().training_step(model, inputs, num_items_in_batch)
        # This costs nothing more, because the Trainer reads this number in any case.
        if not bool(loss.isfinite()):
            raise_divergence(
                self, f"the loss is {float(loss)}", what_broke(self._heads, inputs, self.train_dataset)
            )
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the loss as `transformers.Trainer` does, with the batch and the loss that the strategy returns."""
        training = self.model.training
        if training and not any(name in inputs for name in self.label_names):
            raise ValueError(
                f"a batch of train_dataset has {sorted(inputs)} but no labels; add 'labels' or 'label' to its rows."
            )
        if training:
            self._unseen = absent_from(inputs, self._unseen)
            inputs = self.plan.strategy.prepare_inputs(self.model, inputs)
        # Pass a copy, because the Trainer removes the labels if the user gave a loss function.
        loss, outputs = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
        if training:
            self._heads = logits_by_head(outputs)
            if self.model.stage == "joint":
                strategy_loss = self.plan.strategy.loss(self.model, outputs, inputs["labels"])
                loss = loss if strategy_loss is None else strategy_loss
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
        """Whether gradients can be clipped by modality. DeepSpeed and FSDP version 1 clip all of them together."""
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
            other = (
                ""
                if self.args.world_size == 1
                else " in this process; where it was not in another, that one says why"
            )
            raise_divergence(
                self,
                f"the gradient of {' and '.join(broken)} is not finite",
                f"the loss was finite{other}; lower its rate in modality_learning_rates, or look for a division by "
                "zero",
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
        """Log as `transformers.Trainer` does; in training also the stage, and norms and rates by modality."""
        if "grad_norm" in logs:
            logs["stage"] = 1 if self.record.stage == "unimodal" else 2
            for name in self.model.modalities:
                logs[f"training_{name}"] = int(name in self.record.training)
            logs |= {f"grad_norm_{name}": float(norm) for name, norm in self._grad_norms.items()}
            if self.plan.learning_rates:
                groups = self.optimizer.param_groups
                logs |= {f"learning_rate_{group['name']}": group["lr"] for group in groups}
        if "train_runtime" in logs:
            took = {"probe": self.evaluator.seconds, "measuring": self.evaluator.seconds_measuring}
            for what, seconds in took.items():
                logs[f"{what}_seconds"] = round(seconds, 3)
                logs[f"{what}_share"] = round(seconds / max(logs["train_runtime"], 1e-9), 4)
        super().log(logs, start_time)

    # ---- an evaluation ----

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_eval_sampler(eval_dataset)
        # A probe needs the rows in their order, not grouped by length.
        in_order = has_length(eval_dataset) and self.args.world_size <= 1
        return SequentialSampler(eval_dataset) if in_order else None

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        # An evaluation by a callback of the user does not pass here, so it is no reading for the rule. Before the first
        # step of a run (`eval_on_start`) there is nothing to decide on, or the record has this reading already.
        if self.state.global_step > self._start_step:
            self._awaited = set(self._prefixes())
        try:
            metrics = super()._evaluate(*args, **kwargs)
            if self._probe_prefix() in self._awaited and self.record.stage == "unimodal":
                raise ValueError(
                    f"{type(self).__name__}.evaluate did not evaluate the probe set (the first evaluation set), so "
                    "that no rule gets a reading; give eval_dataset and metric_key_prefix on to super().evaluate as "
                    "they are, and evaluate other rows beside."
                )
        finally:
            self._awaited = set()
        check_reported(self.args.metric_for_best_model, metrics)
        return metrics

    def _prefixes(self) -> list[str]:
        """The prefixes of the metrics of all evaluation sets, that of the probe set first."""
        if isinstance(self.eval_dataset, Mapping):
            return [f"eval_{name}" for name in self.eval_dataset]
        return ["eval"]

    def _probe_prefix(self) -> str:
        return self._prefixes()[0]

    def _is_probe_set(self, eval_dataset: Any, prefix: str) -> bool:
        """Whether these are the rows of the probe set, under the prefix that is usual for them."""
        sets = self.eval_dataset
        probe_set = next(iter(sets.values())) if isinstance(sets, Mapping) else sets
        if isinstance(eval_dataset, str) and isinstance(sets, Mapping):
            eval_dataset = sets.get(eval_dataset)
        return (eval_dataset is None or eval_dataset is probe_set) and prefix in (
            "eval",
            self._probe_prefix(),
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate all heads and decompose the embeddings' information in the same pass.

        While training, the Trainer's own evaluation of the probe set is a reading for the rule. No other evaluation,
        before, during or after training, changes what a run does: weights, their precision, the state of the random
        numbers and the decisions of the rule stay as they are.

        Args:
            eval_dataset: as in `transformers.Trainer.evaluate`.
            ignore_keys: as in `transformers.Trainer.evaluate`; outputs that the probe reads cannot be left out.
            metric_key_prefix: as in `transformers.Trainer.evaluate`.

        Returns:
            The metrics, with the values of `ecsfusion.evaluation.logged_values` under the prefix.

        Raises:
            ValueError: `ignore_keys` names an output that the probe reads, no row of the set would be evaluated, or
                the rule gets no reading.
        """
        prefix = metric_key_prefix
        check_ignored_outputs("ignore_keys", ignore_keys)
        is_probe_set = self._is_probe_set(eval_dataset, prefix)
        # The Trainer itself evaluates its own sets, each of them once.
        own_sets = [None, *self.evaluation_sets().values()]
        is_named = isinstance(eval_dataset, str) or any(eval_dataset is each for each in own_sets)
        is_own = prefix in self._awaited and is_named
        if is_own:
            self._awaited.discard(prefix)
        # A second evaluation of the same weights, such as at the end of a stream, is no further reading.
        history = self.record.history
        is_read = bool(history) and history[-1].reading.step == self.state.global_step
        is_reading = is_own and is_probe_set and not is_read
        # In training, only the first of several evaluation sets is probed.
        probes = prefix == self._probe_prefix() or not self.is_in_train
        decides = self.is_in_train and is_probe_set
        if self.is_in_train:
            self.stages.prepare_probe()
        with self.evaluator.measuring(probes, decides) as measured, ExitStack() as stack:
            if not (is_own or self._awaited):
                # Its callbacks would take what is due at this step for done.
                stack.enter_context(kept_flags(self.control))
            metrics = super().evaluate(eval_dataset, [] if ignore_keys is None else ignore_keys, prefix)
        evaluated = measured(metrics)
        if evaluated is None:
            if is_reading:
                raise_no_reading()
            return metrics
        if is_own:
            self.evaluator.keep(self, prefix, evaluated)
        if is_reading:
            self.stages.read(evaluated.measurement)
            self.diagnostics.before_rows([*untrained_modality(self._unseen), *self._unfrozen_late()])
            self.diagnostics.after_probe(
                evaluated.outputs, evaluated.measurement, evaluated.asks_for_dependence
            )
            self.best_heads.keep(evaluated.outputs)
            self.stages.keep_peak(evaluated.outputs)
            self.plan.strategy.after_evaluation(self, evaluated.outputs)
        elif not self.is_in_train:
            warn_of_untrained_heads(self)
            split = "validation" if is_probe_set else prefix
            self.measurements[split] = self.evaluator.for_reports(self, evaluated)
            if is_probe_set:
                self.evaluator.keep_only(self, self._probe_prefix(), evaluated)
            self.diagnostics.after_evaluation(evaluated.outputs, split)
        return metrics

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Run the model on a batch as `transformers.Trainer` does; the groups of the rows pass it by.

        Returns:
            Loss, outputs of the model and labels. Where the rows have groups, they are a further output.
        """
        inputs, groups = split_inputs(inputs)
        loss, outputs, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if groups is not None and isinstance(outputs, tuple):
            outputs = (*outputs, {GROUPS: groups.to(self.args.device)})
        return loss, outputs, labels

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        """Run the model on a data set as `transformers.Trainer` does, and leave weights and random state as they were.

        The time of the pass counts as that of probes, see `Evaluator.seconds`. But for `predict`, whose arrays are for
        the user, the embeddings stay on the device: their place in the predictions has `HeldEmbeddings`.
        """
        if self._sharded_by() == FSDP2 and not is_sharded(self.model):
            raise ValueError(
                f"training runs under {FSDP2}, which shards the weights when train() begins, so that nothing can be "
                "evaluated or predicted before; do it after train(), or without FSDP."
            )
        start = time.perf_counter()
        casts = not self.is_in_train and (self.args.fp16_full_eval or self.args.bf16_full_eval)
        present_pass = self.evaluator.passing(
            self, holds_embeddings=description != PREDICTION, measures=description != EMBEDDING
        )
        kept = kept_active_loader(self.accelerator)
        with present_pass, kept, kept_random_state(self.args.device), ExitStack() as stack:
            if casts and self._sharded_by() is None:
                # The Trainer would move the model to the device together with the cast.
                self._move_model_to_device(self.model, self.args.device)
                stack.enter_context(kept_precision(self.model))
            output = super().evaluation_loop(dataloader, description, *args, **kwargs)
            output = output._replace(predictions=self.evaluator.with_embeddings(output.predictions))
        if self.is_in_train:
            self.evaluator.seconds += time.perf_counter() - start
        return output

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> Any:
        """Predict as `transformers.Trainer` does: the logits of the fused head, or what is made of them.

        Args:
            test_dataset: as in `transformers.Trainer.predict`.
            ignore_keys: as in `transformers.Trainer.predict`.
            metric_key_prefix: as in `transformers.Trainer.predict`.

        Returns:
            `predictions`, `label_ids` and `metrics`. The predictions are those that `preprocess_logits_for_metrics`
            returns, where it is given.
        """
        with self.evaluator.measuring(probes=True, decides=False):
            output = super().predict(test_dataset, ignore_keys, metric_key_prefix)
        output = output._replace(predictions=without_groups(output.predictions))
        if self.evaluator.user_preprocessing is None or output.predictions is None:
            return output
        return output._replace(predictions=self.evaluator.split_preprocessed(output.predictions)[1])

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The loader of an evaluation set, as `transformers.Trainer` makes it.

        Raises:
            ValueError: there is no set of this name, it has no rows, `dataloader_drop_last` would drop all of them, or
                its classes have other numbers than those that were trained on.
        """
        named = eval_dataset is None or isinstance(eval_dataset, str)
        if isinstance(eval_dataset, str):
            check_set_names(self.eval_dataset if isinstance(self.eval_dataset, Mapping) else {}, eval_dataset)
        sets = self.evaluation_sets() if named else {"eval_dataset": eval_dataset}
        for name, dataset in sets.items():
            check_has_rows(dataset, name)
            self._check_dropped_rows(dataset, name)
        if not named:
            self._check_other_set("eval_dataset", eval_dataset)
            # With persistent workers, the Trainer keeps loaders under a name that all sets without a name share.
            kept = self.__dict__.pop("_eval_dataloaders", None)
        loader = super().get_eval_dataloader(eval_dataset)
        if not named:
            self.__dict__.pop("_eval_dataloaders", None)
            if kept is not None:
                self._eval_dataloaders = kept
        return loader

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """The loader of a test set, as `transformers.Trainer` makes it.

        Raises:
            ValueError: its classes have other numbers than those that were trained on.
        """
        self._check_other_set("test_dataset", test_dataset)
        return super().get_test_dataloader(test_dataset)

    def _preprocess_outputs(self, outputs: Any, labels: Any) -> Any:
        return self.evaluator.preprocess(self, outputs, labels)

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        return self.evaluator.compute_metrics(self, prediction)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # The best model of a two-stage run is one of stage 2, and only the rule ends stage 1. Without a best metric,
        # EarlyStoppingCallback starts to count in stage 2.
        if self.plan.stages == "two-stage" and self.record.stage == "unimodal":
            return False
        return super()._determine_best_metric(metrics=metrics, trial=trial)

    def evaluate_rows(self, dataset: Any) -> Evaluation:
        """Run the model on the rows of any labelled data set. Nothing is logged, and no rule decides.

        Raises:
            ValueError: it has no rows, or they have no labels.
        """
        check_has_rows(dataset, "dataset")
        output = self.evaluation_loop(
            self.get_test_dataloader(dataset), EMBEDDING, prediction_loss_only=False, ignore_keys=[]
        )
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, output.metrics)
        if output.label_ids is None:
            what = "has no rows" if output.num_samples == 0 else "has rows without 'labels' or 'label'"
            raise ValueError(f"dataset {what}; give labelled rows, or call predict(dataset, ignore_keys=[]).")
        return Evaluation.from_outputs(output.predictions, output.label_ids, self.model.embedding_dims)

    def evaluate_training_rows(self) -> Evaluation:
        """Run the model on training rows: at most as many as the evaluation set has, drawn by `args.seed`.

        Raises:
            ValueError: the training set or the evaluation set is a stream.
        """
        rows, evaluated = self.train_dataset, next(iter(self.evaluation_sets().values()))
        if not all(has_length(each) for each in (rows, evaluated)):
            raise ValueError(
                "train_dataset or eval_dataset is a stream, so no rows can be drawn; give data sets of a length."
            )
        size = min(len(rows), len(evaluated))
        drawn = np.random.default_rng(self.args.seed).choice(len(rows), size, replace=False)
        return self.evaluate_rows(Subset(rows, np.sort(drawn).tolist()))

    def probe_options(self) -> dict[str, Any]:
        """The options of `decompose` in this run, without those of the intervals and of dependence."""
        return probe_options(self)

    # ---- checkpoints and folders ----

    @property
    def loaded_best_step(self) -> int | None:
        """The step of the best weights that the model got at the end of the run; None if it has not got them."""
        return self.state.best_global_step if self._loaded_best else None

    def _load_best_model(self) -> None:
        # The Trainer only logs a warning if the weights are not where they should be.
        folder = self.state.best_model_checkpoint
        self._loaded_best = folder is not None and (
            self._sharded_by() is not None or any(Path(folder).glob("*.safetensors"))
        )
        super()._load_best_model()

    def folders_in_use(self) -> list[str]:
        """The folders of weights that a checkpoint saved now refers to."""
        return [*self.stages.folders_in_use(), *self.best_heads.folders_in_use()]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.record.strategy = self.plan.strategy.state_dict()
        super()._save_checkpoint(model, trial)

    def load_folder(self, name: str) -> FusionForClassification:
        """Load the model in a folder of the output directory to the device."""
        folder = os.path.join(self.args.output_dir, name)
        model = FusionForClassification.from_pretrained(folder, **self.model.own_modules())
        return cast("FusionForClassification", model.to(self.args.device))

    def _remove_folders(self) -> None:
        """Remove the folders that only training needs. The checkpoints hold copies of them."""
        unneeded = self.best_heads.folders_in_use()
        if self.plan.keeps_initial_weights(self.plan.first_stage):
            unneeded.append(INITIAL_FOLDER)
        # Wait until every process has read the folders.
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
        """Fit the readout without another pass, if the final weights were evaluated in training."""
        step, prefixes = self._final_step(), self._prefixes()
        evaluations = {prefix: self.evaluator.at(self, prefix, step) for prefix in prefixes}
        if None in evaluations.values():
            self.fit_readout()
            return
        self.model.config.readout = None
        for prefix, evaluated in evaluations.items():
            again = self.evaluator.measure_again(self, prefix, cast("Any", evaluated))
            self.log(dict(again.metrics))
            split = "validation" if prefix == self._probe_prefix() else prefix
            self.measurements[split] = self.evaluator.for_reports(self, again)
        self._set_readout(cast("Any", evaluations[prefixes[0]]).outputs)

    def _final_step(self) -> int:
        """The step of the weights that training ended with."""
        if self.loaded_best_step is not None:
            return self.loaded_best_step
        if self.plan.stages == "unimodal":
            # Training may have ended with the weights of an earlier peak, also before a restart.
            restored = [probe.restored for probe in self.record.history if probe.restored is not None]
            return restored[-1] if restored else self.state.global_step
        return self.state.global_step

    def _set_readout(self, evaluation: Evaluation) -> Readout:
        readout = evaluation.fit_readout(self.model.problem_type)
        self.model.config.readout = readout.to_dict()
        self.evaluator.forget()
        return readout

    # ---- after training ----

    def create_model_card(
        self,
        language: str | list[str] | None = None,
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
        """Write the model card to `README.md` in the output folder, and to the folder of the peak of stage 1.

        Args:
            language: code or codes of the languages of the data, such as "en".
            license: identifier of the license of the weights.
            tags: further tags of the model, beside those of `model.add_model_tags`.
            model_name: title of the card; by default the name of the repository or of the output folder.
            finetuned_from: name on the Hub of the model that this one started from; the card finds those of the
                encoders itself.
            tasks: task or tasks of the Hub, such as "image-classification"; by default the results in the header are
                those of "multimodal-classification".
            dataset_tags: name or names of the data on the Hub, if it is there.
            dataset: plain name or names of the data.
            dataset_args: configuration or configurations of the data on the Hub.
            comparison: accuracy of other schedules on the last split, by name.

        Names of models and data that are paths on this machine are left out, with a warning.

        Raises:
            ValueError: nothing has been evaluated, or the card would contain a local path or a token.
        """
        if self.is_world_process_zero():
            self.publishing.write_card(
                title=model_name,
                license=license,
                tags=as_list(tags),
                dataset=as_list(dataset),
                dataset_hub_names=as_list(dataset_tags),
                dataset_args=as_list(dataset_args),
                tasks=as_list(tasks),
                languages=as_list(language),
                finetuned_from=as_list(finetuned_from),
                comparison=comparison,
            )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        space: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Publish the final model on `main` (or `revision`) and stage 1's peak on the branch `unimodal`.

        Everything is written to the output folder first. Uploaded are weights (safetensors), configurations,
        processors, card and picture, and nothing else.

        Args:
            commit_message: the message of the commit of the final model.
            blocking: not used; the upload always blocks.
            token: a token with permission to write; by default that of the arguments or of `hf auth login`.
            revision: the branch of the final model.
            private: whether a new repository is private.
            space: also publish the page of `ecsfusion demo` for the model, as a Space of the same name.
            **kwargs: arguments of `create_model_card`.

        Raises:
            ValueError: a file to be published contains a local path or a token; nothing is uploaded.
            NotPublishedError: the Hub cannot be reached or refuses; the message holds the command that repeats the
                push.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = commit_message or "End of training"
        return self.publishing.push(
            message, token=token, revision=revision, private=private, space=space, card=kwargs
        )

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Create the repository as `transformers.Trainer` does.

        Raises:
            NotPublishedError: at the start of a run the Hub cannot be reached or refuses; nothing has been trained.
        """
        # `Trainer.__init__` calls it, before there is a plan; after that `push_to_hub` answers for the Hub.
        if getattr(self, "plan", None) is not None:
            super().init_hf_repo(*args, **kwargs)
            return
        with reachable_at_start(self.args.hub_model_id or Path(self.args.output_dir).absolute().name):
            super().init_hf_repo(*args, **kwargs)

    def end_training(self) -> None:
        """Finish the trackers and end the process group; call it as the last line of a script for several processes.

        It calls `accelerator.end_training()`, after which every process ends with status 0. Each process waits here for
        all others, at most `args.ddp_timeout` seconds. The model stays usable, but to train or evaluate again a new run
        of the script is needed. Delete other trainers first (`del other`), because they keep the threads of the process
        group alive.
        """
        end_processes(self)

    def hyperparameter_search(
        self,
        hp_space: Callable | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        backend: str | HPSearchBackend | None = None,
        hp_name: Callable | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """Search as `transformers.Trainer` does; by default the objective is `metric_for_best_model`.

        The direction is that of `greater_is_better`. (The default objective of the Trainer is the sum of all metrics.)
        Losses of the two stages cannot be compared, so a backend that prunes trials should use an accuracy.

        Args:
            hp_space: as in `transformers.Trainer`; it may set every argument, also `strategy`.
            compute_objective: as in `transformers.Trainer`.
            n_trials: as in `transformers.Trainer`.
            direction: as in `transformers.Trainer`.
            backend: as in `transformers.Trainer`.
            hp_name: as in `transformers.Trainer`.
            **kwargs: as in `transformers.Trainer`.

        Returns:
            The best run, or the best runs if there are several objectives.
        """
        name = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        if direction is None:
            is_greater = self.args.greater_is_better
            is_score = not name.endswith("loss") if is_greater is None else is_greater
            direction = "maximize" if is_score else "minimize"
        objective = compute_objective or (lambda metrics: metrics[f"eval_{name}"])
        return super().hyperparameter_search(
            hp_space, objective, n_trials, direction, backend, hp_name, **kwargs
        )
