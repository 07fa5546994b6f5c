"""The arguments of a two-stage run."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SchedulerType
from transformers.utils import is_in_notebook

from ecsfusion.strategies import check_strategy_name


@dataclass
class FusionTrainingArguments(TrainingArguments):
    """Arguments of [`FusionTrainer`]: all of `transformers.TrainingArguments`, and those of the stages.

    `num_train_epochs` (or `max_steps`) is the budget of both stages together. Every evaluation is a probe.

    A run never changes its arguments. What follows from them is computed when training starts
    (`ecsfusion.training.plan`).

    Args:
        strategy: how the model is trained, by name: "two-stage" (the default, steered by the rule "adaptive"), the name
            of another rule that steers two stages ("peak-synergy", "weak-first", "published", "fixed"), "joint",
            "joint-auxiliary", "unimodal", or another strategy in `ecsfusion.strategies.STRATEGIES`. A class or an
            instance can be given to the trainer instead.
        strategy_options: options of the strategy, or of the rule, by name.
        max_unimodal_share: stage 1 ends at the latest when this share of the budget is used; None for the default
            of the rule (half, or two thirds for "published").
        unimodal_epochs: exact length of stage 1 in epochs, out of `num_train_epochs`; the rule then only decides who
            trains. Not with `max_steps`: use `max_unimodal_share`.
        unimodal_lr_scheduler_type: schedule of stage 1 if it is another one than `lr_scheduler_type`. Each stage has a
            complete schedule with warm-up. That of stage 1 is over `unimodal_epochs`, or else over the whole budget,
            because it is not known when the rule will end stage 1; that of stage 2 is over the steps that are left.
            `lr_scheduler_kwargs` belong to `lr_scheduler_type`.
        keep_best_heads: keep each modality's best weights on validation, and let the model use them for that modality
            alone and in the readout (see `ecsfusion.training.best_heads`). It costs a second copy, and at inference a
            second forward pass, of the encoders that were best before the end. Heads that nothing trains, as in plain
            joint training, get none. It is switched off, with a warning, if an encoder cannot be copied, and under
            FSDP and DeepSpeed.
        joint_pausing: let the rule pause modalities in stage 2 as well. The rule must define `decide_joint`, as that of
            strategy="peak-synergy" does; the default rule does not.
        auxiliary_weight: weight of each unimodal loss in stage 2; None for that of the strategy, or 0.6 if the strategy
            sets none (arXiv 2509.20840).
        head_learning_rate: learning rate of all heads, the fused one included; None for that of their modality. The
            rate at which a pretrained encoder is fine-tuned (2e-5, say) is too small for a head that starts from
            nothing.
        modality_learning_rates: learning rate by modality, of a modality's head ("text.head") or of "fusion"; the
            others use `head_learning_rate` or `learning_rate`.
        modality_weight_decays: weight decay likewise; the others use `weight_decay`.
        group_column_name: the column that says what rows share, such as a subject, a recording or a picture; texts or
            whole numbers. It is no input of the model. Rows of one group stay together where the probe and the readout
            are fitted on some rows and judged on others, and count as one in noise floors, intervals and warnings. The
            probe set must have it; other sets may. None where rows stand alone.
        probe_clusters: clusters per modality in the probe, or None to choose from samples and classes.
        probe_components: principal directions per modality in the probe, or None to choose from samples and classes.
        probe_rows: the largest number of rows of the evaluation set that are decomposed, which are drawn once; None for
            all. Accuracies are always those of all rows.

    Raises:
        ValueError: a value that is not allowed, or arguments that contradict each other.
    """

    if TYPE_CHECKING:
        # transformers allows None, and puts this folder in its place.
        output_dir: str = "trainer_output"

    strategy: str | None = field(
        default=None, metadata={"help": "how the model is trained, by name (default: two-stage)"}
    )
    strategy_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "options of the strategy"}
    )
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
    auxiliary_weight: float | None = field(
        default=None, metadata={"help": "weight of unimodal losses in stage 2"}
    )
    head_learning_rate: float | None = field(default=None, metadata={"help": "learning rate of all heads"})
    modality_learning_rates: dict[str, float] | str | None = field(
        default=None, metadata={"help": "learning rate by modality, of 'NAME.head' or 'fusion'"}
    )
    modality_weight_decays: dict[str, float] | str | None = field(
        default=None, metadata={"help": "weight decay by modality"}
    )
    group_column_name: str | None = field(
        default=None, metadata={"help": "column of what rows share, such as a subject"}
    )
    probe_clusters: int | None = field(default=None, metadata={"help": "clusters per modality in the probe"})
    probe_components: int | None = field(default=None, metadata={"help": "principal directions in the probe"})
    probe_rows: int | None = field(default=None, metadata={"help": "rows that a probe decomposes at most"})

    # These defaults of TrainingArguments do not work for a two-stage run, so they are replaced.
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
        if self.disable_tqdm is None and not is_in_notebook() and not (sys.stderr and sys.stderr.isatty()):
            # A log file has no use for bars; `ecsfusion.training.callbacks.LinesOfProgress` takes their place.
            self.disable_tqdm = True
        if self.greater_is_better is None and "calibration_error" in (self.metric_for_best_model or ""):
            # transformers takes every metric but a loss for one of which more is better.
            self.greater_is_better = False
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, str) and type(each.default) in (int, float):
                raise ValueError(
                    f"{each.name} is {value!r}, which is text; give a number. (PyYAML reads 1e-3 as text, and 1.0e-3 "
                    "as a number.)"
                )
        super().__post_init__()
        if not torch.accelerator.is_available():
            # Without an accelerator, pinned memory has no effect and torch logs a warning.
            self.dataloader_pin_memory = False
        for name in ("strategy_options", "modality_learning_rates", "modality_weight_decays"):
            # On the command line, these arguments are given as JSON text.
            if isinstance(getattr(self, name), str):
                setattr(self, name, _parse_mapping(name, getattr(self, name)))
        for name in ("modality_learning_rates", "modality_weight_decays"):
            for modality, value in (getattr(self, name) or {}).items():
                if not _is_rate(value):
                    raise ValueError(
                        f"{name}[{modality!r}] is {value!r}; give a number that is not negative."
                    )
        if self.head_learning_rate is not None and not _is_rate(self.head_learning_rate):
            raise ValueError(
                f"head_learning_rate is {self.head_learning_rate!r}; give a number that is not negative."
            )
        if self.group_column_name is not None and (
            not isinstance(self.group_column_name, str) or not self.group_column_name.strip()
        ):
            raise ValueError(
                f"group_column_name is {self.group_column_name!r}; give the name of one column, or leave it out."
            )
        if self.strategy is not None:
            check_strategy_name(self.strategy)
        if self.max_unimodal_share is not None and not 0.0 < self.max_unimodal_share < 1.0:
            raise ValueError(
                f"max_unimodal_share is {self.max_unimodal_share}; it is a share of the budget, between 0 and 1."
            )
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise ValueError(f"num_train_epochs is {self.num_train_epochs}; the budget must be positive.")
        if self.label_names not in (None, ["labels"]):
            raise ValueError(f"label_names is {self.label_names}; the model's labels are called 'labels'.")
        if self.auxiliary_weight is not None and self.auxiliary_weight < 0.0:
            raise ValueError(f"auxiliary_weight is {self.auxiliary_weight}; it must not be negative.")
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
        if self.train_sampling_strategy == "batch_rebalance":
            raise ValueError(
                "train_sampling_strategy is 'batch_rebalance', which counts the tokens of one text per row; use "
                "'group_by_length', which measures every modality."
            )
        if str(self.include_num_input_tokens_seen) not in ("no", "False"):
            raise ValueError(
                f"include_num_input_tokens_seen is {self.include_num_input_tokens_seen!r}, but the inputs are those of "
                "several modalities, which have no common count of tokens; leave it 'no'."
            )
        if self.parallelism_config is not None:
            raise ValueError(
                "parallelism_config is given, but a fusion model has no plan by which its weights could be split; "
                "leave it out, or use FSDP version 2."
            )
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

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary, in which a class or an instance in the strategy's options is given by its name."""
        values = super().to_dict()
        options = cast("dict[str, Any]", self.strategy_options or {})
        values["strategy_options"] = {name: _json_value(value) for name, value in options.items()} or None
        return values


def _is_rate(value: Any) -> bool:
    """Whether a value is a finite number that is not negative."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def _json_value(value: Any) -> Any:
    try:
        json.dumps(value)
    except TypeError:
        return getattr(value, "__name__", type(value).__name__)
    return value


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
