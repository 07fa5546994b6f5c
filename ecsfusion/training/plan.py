"""The plan of a run, made from its arguments when training starts. The arguments are never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from transformers.trainer_utils import IntervalStrategy

from ecsfusion.controller.rule import Rule, RunContext
from ecsfusion.model.problem_types import SINGLE_LABEL
from ecsfusion.strategies import Strategy, make_strategy
from ecsfusion.training.parameter_groups import head_of
from ecsfusion.training.sharding import FSDP2
from ecsfusion.training_args import FusionTrainingArguments

if TYPE_CHECKING:
    from ecsfusion.modeling import FusionForClassification

DEFAULT_STRATEGY = "two-stage"

AUXILIARY_WEIGHT = 0.6
"""The default weight of each unimodal loss in stage 2 (arXiv 2509.20840)."""

StrategyChoice = str | type[Strategy] | Strategy | type[Rule] | Rule


@dataclass(frozen=True)
class Plan:
    """What a run does, by its arguments and its strategy.

    Attributes:
        strategy: a new strategy, whose state belongs to this run.
        rule: a new rule, whose state belongs to this run; None if there is no stage 1.
        auxiliary_weight: the weight of each unimodal loss in stage 2.
        learning_rates: learning rates by modality, for a modality's "NAME.head", or for "fusion", that are given apart
            from the common one.
        unimodal_share: the exact length of stage 1, as a share of the budget; None if the rule decides.
    """

    strategy: Strategy
    rule: Rule | None
    auxiliary_weight: float
    learning_rates: Mapping[str, float]
    unimodal_share: float | None

    @property
    def stages(self) -> str:
        """What is trained: "two-stage", "joint" or "unimodal"."""
        return self.strategy.stages

    @property
    def first_stage(self) -> str:
        """The stage that the run starts with: "unimodal" or "joint"."""
        return "joint" if self.stages == "joint" else "unimodal"

    @property
    def excluded_from_readout(self) -> tuple[str, ...]:
        """Modalities whose own heads get no weight in the readout, see `Rule.excluded_from_readout`."""
        return () if self.rule is None else self.rule.excluded_from_readout

    @property
    def trains_heads_jointly(self) -> bool:
        """Whether the loss of stage 2 trains the head of each modality, beside the fused head."""
        return self.auxiliary_weight > 0 or (self.strategy.has_own_loss and self.strategy.loss_trains_heads)

    def keeps_initial_weights(self, stage: str) -> bool:
        """Whether a modality may still go back to its initial weights in this stage or a later one."""
        return self.strategy.resets or (stage == "unimodal" and self.rule is not None and self.rule.resets)


def chosen_strategy(choice: StrategyChoice | None, args: FusionTrainingArguments) -> StrategyChoice:
    """The strategy that the trainer or its arguments choose, or the default one.

    Raises:
        ValueError: both choose one.
    """
    if choice is not None and args.strategy is not None:
        raise ValueError(
            f"the trainer was given the strategy {choice!r}, and args.strategy is {args.strategy!r}; give one of them."
        )
    if choice is not None:
        return choice
    return DEFAULT_STRATEGY if args.strategy is None else args.strategy


def make_plan(
    choice: StrategyChoice | None, args: FusionTrainingArguments, model: FusionForClassification
) -> Plan:
    """Make the plan of a run.

    Args:
        choice: the strategy, or a rule that steers two stages, that was given to the trainer; None for `args.strategy`.
        args: the arguments of the run.
        model: the model that is trained.

    Raises:
        ValueError: arguments that contradict each other or the strategy.
        TypeError: a choice that is neither a strategy nor a rule.
    """
    options = cast("dict", args.strategy_options or {})
    strategy = make_strategy(chosen_strategy(choice, args), model.modalities, **options)
    share = _unimodal_share(strategy, args)
    if args.joint_pausing and not strategy.takes_unimodal_share:
        raise ValueError(
            f"joint_pausing is True, but the strategy {strategy.label!r} has no rule that pauses modalities; use "
            "strategy='peak-synergy', or leave joint_pausing out."
        )
    context = RunContext(
        unimodal_share=share,
        ends_early=args.unimodal_epochs is None,
        joint_follows=strategy.stages != "unimodal",
        joint_pausing=args.joint_pausing,
    )
    rule = strategy.make_rule(context)
    if rule is None and strategy.stages != "joint":
        raise ValueError(
            f"the strategy {strategy.label!r} has a stage 1 and no rule that ends it; write its make_rule, or derive "
            "it from ecsfusion.strategies.two_stage.TwoStage."
        )
    user_rates = cast("dict[str, float]", args.modality_learning_rates or {})
    return Plan(
        strategy=strategy,
        rule=None if rule is None else rule.in_context(context),
        auxiliary_weight=_auxiliary_weight(strategy, args),
        learning_rates={
            **strategy.learning_rates(args.learning_rate),
            **_head_rates(model, args),
            **user_rates,
        },
        unimodal_share=share if args.unimodal_epochs is not None else None,
    )


def _head_rates(model: FusionForClassification, args: FusionTrainingArguments) -> dict[str, float]:
    """The rate of all heads by parameter group, if the arguments set one."""
    if args.head_learning_rate is None:
        return {}
    return dict.fromkeys([*map(head_of, model.modalities), "fusion"], args.head_learning_rate)


def head_rates(model: FusionForClassification, plan: Plan, learning_rate: float) -> dict[str, float]:
    """The learning rate of each modality's head and of "fusion".

    Args:
        model: the model.
        plan: the plan of the run.
        learning_rate: the common learning rate.
    """
    rates = plan.learning_rates
    of_heads = {name: rates.get(head_of(name), rates.get(name, learning_rate)) for name in model.modalities}
    return {**of_heads, "fusion": rates.get("fusion", learning_rate)}


def _auxiliary_weight(strategy: Strategy, args: FusionTrainingArguments) -> float:
    if strategy.auxiliary_weight is None:
        return AUXILIARY_WEIGHT if args.auxiliary_weight is None else args.auxiliary_weight
    if args.auxiliary_weight not in (None, strategy.auxiliary_weight):
        raise ValueError(
            f"auxiliary_weight is {args.auxiliary_weight}, but the strategy {strategy.label!r} sets it to "
            f"{strategy.auxiliary_weight}; leave it out, or choose another strategy."
        )
    return strategy.auxiliary_weight


def _unimodal_share(strategy: Strategy, args: FusionTrainingArguments) -> float | None:
    """The share of the budget that stage 1 may use, if the arguments set it."""
    for name in ("unimodal_epochs", "max_unimodal_share"):
        value = getattr(args, name)
        if value is not None and not strategy.takes_unimodal_share:
            raise ValueError(
                f"{name} is {value}, but the strategy {strategy.label!r} has no stage 1 whose length could be chosen; "
                f"leave {name} out, or choose another strategy."
            )
    epochs = args.unimodal_epochs
    if epochs is None:
        return args.max_unimodal_share
    if args.max_steps > 0 or args.max_unimodal_share is not None:
        other = "max_steps" if args.max_steps > 0 else "max_unimodal_share"
        raise ValueError(
            f"unimodal_epochs and {other} are both given; with max_steps, use max_unimodal_share for the longest "
            "stage 1, else only one of them."
        )
    if not 0.0 < epochs < args.num_train_epochs:
        raise ValueError(
            f"unimodal_epochs is {epochs}; it is a part of num_train_epochs, {args.num_train_epochs}, and must leave "
            "epochs for stage 2."
        )
    return epochs / args.num_train_epochs


def check_plan(
    plan: Plan,
    args: FusionTrainingArguments,
    model: FusionForClassification,
    *,
    has_evaluation_set: bool,
    has_loss_function: bool,
) -> None:
    """Check that a run can be carried out as planned.

    Args:
        plan: the plan of the run.
        args: its arguments.
        model: the model that is trained.
        has_evaluation_set: whether the user gave the trainer an evaluation set.
        has_loss_function: whether the user gave the trainer a loss function.

    Raises:
        ValueError: says what prevents the run, and what to do.
    """
    strategy = plan.strategy
    evaluates = args.eval_strategy != IntervalStrategy.NO
    if plan.stages != "joint" and not evaluates:
        raise ValueError(
            f"eval_strategy is 'no', but the controller needs evaluations in stage 1 of the strategy "
            f"{strategy.label!r}; use 'epoch' or 'steps', or strategy='joint-auxiliary'."
        )
    for problem, applies, remedy in (
        (strategy.only_one_process, args.world_size > 1, "start one process"),
        (strategy.not_fp16, args.fp16, "use bf16"),
        (strategy.only_two, args.joint_pausing, "leave joint_pausing out"),
        (strategy.only_single_label, model.problem_type != SINGLE_LABEL, "choose another strategy"),
        (
            strategy.needs_evaluations,
            not (has_evaluation_set and evaluates),
            "give an eval_dataset and an eval_strategy",
        ),
    ):
        if problem and applies:
            raise ValueError(
                f"the strategy {strategy.label!r} cannot be trained like this: {problem}; {remedy}."
            )
    skips_parameters = plan.stages != "joint" or args.joint_pausing or plan.auxiliary_weight == 0
    for name, wrong in (("ddp_find_unused_parameters", False), ("ddp_static_graph", True)):
        if skips_parameters and getattr(args, name) is wrong:
            raise ValueError(
                f"{name} is {wrong}, but with the strategy {strategy.label!r} parts of the model take no part in some "
                f"steps; leave {name} out."
            )
    if strategy.only_fusion and strategy.only_fusion != model.config.fusion:
        raise ValueError(
            f"the strategy {strategy.label!r} needs the fused head {strategy.only_fusion!r}, and the model has "
            f"{model.config.fusion!r}; build it with fusion={strategy.only_fusion!r}."
        )
    if strategy.has_own_loss and has_loss_function:
        raise ValueError(
            f"compute_loss_func is given, but the strategy {strategy.label!r} has a loss of its own; leave it out, or "
            "set model.head_loss, of which every loss is made."
        )


def check_sharding(plan: Plan, args: FusionTrainingArguments, kind: str | None) -> None:
    """Check that the plan works where weights are sharded.

    To pause a modality or to restore the peak of stage 1, the trainer must change weights and the optimizer's state by
    parameter, and a strategy may change gradients likewise. FSDP version 2 shards each parameter by itself, so that all
    of it works there, unless a strategy needs whole weights or gradients. DeepSpeed (also ZeRO-2) and FSDP version 1
    train flat copies that such changes do not reach: a paused modality would move on with its momentum, and the next
    step would undo the restored peak.

    Args:
        plan: the plan of the run.
        args: its arguments.
        kind: what shards the weights, one of the names of `ecsfusion.training.sharding`; None if nothing does.

    Raises:
        ValueError: what cannot be done there.
    """
    strategy = plan.strategy
    if kind is None:
        return
    if kind == FSDP2:
        if strategy.not_sharded:
            raise ValueError(
                f"the strategy {strategy.label!r} cannot be trained under {kind}: {strategy.not_sharded}; use another "
                "strategy, or DistributedDataParallel (torchrun or accelerate launch --multi_gpu)."
            )
        for name, why in (
            ("auto_find_batch_size", "no process could put whole weights back before it tries again"),
            ("fp16_full_eval", "sharded weights cannot be put back after the cast"),
            ("bf16_full_eval", "sharded weights cannot be put back after the cast"),
        ):
            if getattr(args, name):
                raise ValueError(f"{name} is True, but training runs under {kind}: {why}; leave it out.")
        return
    if type(strategy).adjust_gradients is not Strategy.adjust_gradients:
        raise ValueError(
            f"the strategy {strategy.label!r} changes gradients, which {kind} does not show; use another strategy, "
            f"{FSDP2} (fsdp_config={{'version': 2}}, or accelerate launch --use_fsdp --fsdp_version 2), or "
            "DistributedDataParallel (torchrun or accelerate launch --multi_gpu)."
        )
    if plan.stages == "joint" and not args.joint_pausing:
        return
    what = (
        "joint_pausing is True"
        if plan.stages == "joint"
        else f"the strategy {strategy.label!r} has a stage 1"
    )
    raise ValueError(
        f"{what}, but training runs under {kind}, whose weights can be neither paused by modality nor put back to "
        f"stage 1's peak; use {FSDP2} (fsdp_config={{'version': 2}}, or accelerate launch --use_fsdp --fsdp_version "
        "2), DistributedDataParallel (torchrun or accelerate launch --multi_gpu), which needs the whole model on every "
        "device, or strategy='joint' or 'joint-auxiliary' without joint_pausing."
    )
