"""`TrainingArguments` of a two-stage run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SchedulerType

from ecsfusion.strategies import Strategy, find_strategy

STAGE_CHOICES = ("two-stage", "joint", "unimodal")


@dataclass
class FusionTrainingArguments(TrainingArguments):
    """Arguments of [`FusionTrainer`]: all of `transformers.TrainingArguments`, and the stages.

    `num_train_epochs` (or `max_steps`) is the budget of both stages together. Every evaluation is a probe.

    Args:
        strategy: how the model is trained: "two-stage" (ours, by the arguments below), "joint", or one of the methods
            that it is compared with (`ecsfusion.strategies.STRATEGIES`). One's own is given to the trainer instead.
        strategy_options: options of the strategy by name.
        stages: "two-stage" (stage 1 unimodal, stage 2 joint), "joint", or "unimodal" (stage 1 only).
        rule: what decides who trains in stage 1 and when it ends: "adaptive", "peak-synergy", "weak-first", "published"
            or "fixed" (`ecsfusion.controller`). An instance of one's own rule is given to the trainer instead.
        rule_options: options of the rule by name.
        max_unimodal_share: stage 1 ends at the latest when this share of the budget is used; None for the rule's
            own (half, and two thirds for "published").
        unimodal_epochs: exact length of stage 1 in epochs, out of `num_train_epochs`; the rule then only decides who
            trains. Not with `max_steps`: use `max_unimodal_share`.
        unimodal_lr_scheduler_type: schedule of stage 1 where it is not `lr_scheduler_type`. Each stage starts its
            schedule, warm-up included, anew: stage 1 over `unimodal_epochs` or else over the whole budget, for nobody
            knows when the rule will end it; stage 2 over the steps that are left. `lr_scheduler_kwargs` belong to
            `lr_scheduler_type`.
        keep_best_heads: keep each modality's own best weights on validation and let the model answer with them for that
            modality alone, and so in the readout (see `ecsfusion.training.best_heads`). It costs a second copy, and at
            inference a second forward, of the encoders that were best before the end; False does without. It is off,
            with a warning, where an encoder cannot be copied and under FSDP and DeepSpeed.
        joint_pausing: let the rule pause modalities in stage 2 as well (with rule="peak-synergy", or one of one's own
            that has `decide_joint`; the default rule has none).
        auxiliary_weight: weight of each unimodal cross-entropy in stage 2.
        modality_learning_rates: learning rate by modality (or "fusion"); the others use `learning_rate`.
        modality_weight_decays: weight decay by modality (or "fusion"); the others use `weight_decay`.
        probe_clusters: clusters per modality in the probe, or None to choose from samples and classes.
        probe_components: principal directions kept per modality in the probe, or None likewise.
        probe_rows: at most so many rows of the evaluation set, drawn once, are decomposed; accuracies are always
            those of all rows. None for all.

    Raises:
        ValueError: a value outside of what is listed here, or options that contradict each other.
    """

    strategy: str = field(default="two-stage", metadata={"help": "how the model is trained, by name"})
    strategy_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "options of the strategy"}
    )
    stages: str = field(default="two-stage", metadata={"help": "two-stage, joint, or unimodal"})
    rule: str = field(default="adaptive", metadata={"help": "the controller's rule by name"})
    rule_options: dict[str, Any] | str | None = field(default=None, metadata={"help": "options of the rule"})
    max_unimodal_share: float | None = field(
        default=None, metadata={"help": "stage 1's largest share of the budget"}
    )
    unimodal_epochs: float | None = field(default=None, metadata={"help": "exact length of stage 1"})
    unimodal_lr_scheduler_type: SchedulerType | str | None = field(
        default=None, metadata={"help": "schedule of stage 1, if it is another one"}
    )
    keep_best_heads: bool = field(
        default=True, metadata={"help": "every modality's own best weights answer for it alone"}
    )
    joint_pausing: bool = field(default=False, metadata={"help": "the rule may pause in stage 2 too"})
    auxiliary_weight: float = field(default=0.6, metadata={"help": "weight of unimodal losses in stage 2"})
    modality_learning_rates: dict[str, float] | str | None = field(
        default=None, metadata={"help": "learning rate by modality"}
    )
    modality_weight_decays: dict[str, float] | str | None = field(
        default=None, metadata={"help": "weight decay by modality"}
    )
    probe_clusters: int | None = field(default=None, metadata={"help": "clusters per modality in the probe"})
    probe_components: int | None = field(default=None, metadata={"help": "principal directions in the probe"})
    probe_rows: int | None = field(default=None, metadata={"help": "rows that a probe decomposes at most"})

    # The defaults of TrainingArguments that a two-stage run cannot live with.
    eval_strategy: IntervalStrategy | str = field(default="epoch", metadata={"help": "when to probe"})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "must stay False: inputs are nested"}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "must stay True: a checkpoint holds the controller's state"}
    )
    hub_strategy: HubStrategy | str = field(default="end", metadata={"help": "must stay 'end'"})
    ddp_find_unused_parameters: bool | None = field(
        default=True, metadata={"help": "a paused modality takes no part in a step"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # it would only warn
        for name in ("strategy_options", "rule_options", "modality_learning_rates", "modality_weight_decays"):
            if isinstance(getattr(self, name), str):  # from a command line
                setattr(self, name, _parse_mapping(name, getattr(self, name)))
        for name in ("modality_learning_rates", "modality_weight_decays"):
            for modality, value in (getattr(self, name) or {}).items():
                if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
                    raise ValueError(
                        f"{name}[{modality!r}] is {value!r}; give a number that is not negative."
                    )
        self.take_settings_of(find_strategy(self.strategy))
        if self.stages not in STAGE_CHOICES:
            raise ValueError(f"stages is {self.stages!r}; it must be one of {', '.join(STAGE_CHOICES)}.")
        if self.max_unimodal_share is not None and not 0.0 < self.max_unimodal_share < 1.0:
            raise ValueError(
                f"max_unimodal_share is {self.max_unimodal_share}; it is a share of the budget, between 0 and 1."
            )
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise ValueError(f"num_train_epochs is {self.num_train_epochs}; the budget must be positive.")
        if self.label_names not in (None, ["labels"]):
            raise ValueError(f"label_names is {self.label_names}; the model's labels are called 'labels'.")
        if self.auxiliary_weight < 0.0:
            raise ValueError(f"auxiliary_weight is {self.auxiliary_weight}; it must not be negative.")
        if self.stages != "joint" and self.eval_strategy == IntervalStrategy.NO:
            raise ValueError(
                "eval_strategy is 'no', but the controller of stage 1 lives on evaluations; use 'epoch' or "
                "'steps', or stages='joint'."
            )
        for name, needed in (
            ("prediction_loss_only", False),
            ("batch_eval_metrics", False),
            ("eval_do_concat_batches", True),
        ):
            if getattr(self, name) is not needed:
                raise ValueError(
                    f"{name} is {not needed}, but a probe reads the embeddings of the whole evaluation set at "
                    f"once; leave it {needed}."
                )
        self._check_unimodal_epochs()
        if self.unimodal_lr_scheduler_type is not None:
            self.unimodal_lr_scheduler_type = SchedulerType(self.unimodal_lr_scheduler_type)
        for name in ("probe_clusters", "probe_components", "probe_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give a positive number, or None to have it chosen.")
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns is True, but the model takes its inputs by modality and every column would "
                "be removed; leave it False."
            )
        if not self.restore_callback_states_from_checkpoint:
            raise ValueError(
                "restore_callback_states_from_checkpoint is False, which would lose the controller's state on "
                "resume; leave it True."
            )
        if self.hub_strategy != HubStrategy.END:
            raise ValueError(
                f"hub_strategy is {HubStrategy(self.hub_strategy).value!r}; both stages are published together at the "
                "end: use 'end'."
            )

    def take_settings_of(self, strategy: type[Strategy]) -> None:
        """Set the fields that the strategy sets.

        Raises:
            ValueError: one of them is set otherwise; or the strategy has a rule of its own, and one is given here.
        """
        defaults = {f.name: f.default for f in fields(self)}
        settings = dict(strategy.settings)
        if strategy.rule is not Strategy.rule:  # what steers stage 1 otherwise has nothing to steer
            steering = ("rule", "rule_options", "max_unimodal_share", "unimodal_epochs")
            settings |= {name: defaults[name] for name in steering}
        for name, value in settings.items():
            found = getattr(self, name)
            if found not in (value, defaults[name]):
                raise ValueError(
                    f"{name} is {found!r}, but the strategy {strategy.name or strategy.__name__!r} sets it to "
                    f"{value!r}; leave it out, or choose another strategy."
                )
            setattr(self, name, value)

    def _check_unimodal_epochs(self) -> None:
        if self.unimodal_epochs is None:
            return
        if self.stages != "two-stage":
            raise ValueError(
                f"unimodal_epochs is {self.unimodal_epochs} but stages is {self.stages!r}; leave it out, "
                "num_train_epochs is the length of the only stage."
            )
        if self.max_steps > 0 or self.max_unimodal_share is not None:
            other = "max_steps" if self.max_steps > 0 else "max_unimodal_share"
            raise ValueError(
                f"unimodal_epochs and {other} are both given; with max_steps, use max_unimodal_share for the "
                "longest stage 1, else only one of them."
            )
        if not 0.0 < self.unimodal_epochs < self.num_train_epochs:
            raise ValueError(
                f"unimodal_epochs is {self.unimodal_epochs}; it is a part of num_train_epochs, "
                f"{self.num_train_epochs}, and must leave some for stage 2."
            )

    @property
    def unimodal_share(self) -> float | None:
        """The share of the budget that stage 1 may use, as far as the arguments say."""
        if self.stages == "unimodal":
            return 1.0
        if self.unimodal_epochs is not None:
            return self.unimodal_epochs / self.num_train_epochs
        return self.max_unimodal_share


def _parse_mapping(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name} is {text!r}, which is not JSON ({error}); write it like '{{\"a\": 1}}'."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {text!r}; it must be a JSON object like '{{\"a\": 1}}'.")
    return value
