"""Ways to train a fusion model: this library's own and those that it is compared with, one file for each idea.

`make_strategy` makes one from its name; `ecsfusion.strategies.strategy.Strategy` explains how to write one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from ecsfusion.controller.options import check_options
from ecsfusion.controller.registry import RULES
from ecsfusion.controller.rule import Rule
from ecsfusion.strategies.agm import AGM
from ecsfusion.strategies.aug import AUG
from ecsfusion.strategies.distillation import UnimodalDistillation
from ecsfusion.strategies.g_blending import GBlending
from ecsfusion.strategies.joint import Joint, JointAuxiliary, ModalityDropout, RatePerModality
from ecsfusion.strategies.lfm import LFM
from ecsfusion.strategies.mcr import MCR
from ecsfusion.strategies.mla import MLA
from ecsfusion.strategies.mmpareto import MMPareto
from ecsfusion.strategies.ogm import OGM, OGMGE
from ecsfusion.strategies.pdmp import PDMP
from ecsfusion.strategies.pmr import PMR
from ecsfusion.strategies.reconboost import ReconBoost
from ecsfusion.strategies.relearning import DiagnosingRelearning
from ecsfusion.strategies.strategy import Strategy
from ecsfusion.strategies.two_stage import TwoStage
from ecsfusion.strategies.unimodal import Sequential, Unimodal, UniPreFinetuned, UniPreFrozen, WarmUp

__all__ = ["STRATEGIES", "Strategy", "check_strategy_name", "make_strategy", "stages_of"]

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        TwoStage,
        Joint,
        JointAuxiliary,
        ModalityDropout,
        RatePerModality,
        Unimodal,
        UniPreFrozen,
        UniPreFinetuned,
        WarmUp,
        Sequential,
        OGM,
        OGMGE,
        AGM,
        MMPareto,
        PDMP,
        GBlending,
        PMR,
        MLA,
        DiagnosingRelearning,
        UnimodalDistillation,
        MCR,
        LFM,
        ReconBoost,
        AUG,
    )
}


def check_strategy_name(name: str) -> None:
    """Check that a strategy, or a rule that steers two stages, has this name.

    Raises:
        ValueError: no strategy and no rule has this name; the message lists those that exist.
    """
    if name not in STRATEGIES and name not in RULES:
        raise ValueError(
            f"strategy is {name!r}; it must be one of {', '.join(STRATEGIES)}, or a rule that steers two stages: "
            f"{', '.join(RULES)}."
        )


def stages_of(strategy: str | type[Strategy] | Strategy | type[Rule] | Rule) -> str:
    """What a strategy trains: "two-stage", "joint" or "unimodal". The strategy need not be made yet."""
    kind = STRATEGIES.get(strategy) if isinstance(strategy, str) else strategy
    return getattr(kind, "stages", TwoStage.stages)


def make_strategy(
    strategy: str | type[Strategy] | Strategy | type[Rule] | Rule, modalities: Sequence[str], **options: Any
) -> Strategy:
    """Make a strategy from its name, its class or an instance.

    The name, the class or an instance of a rule gives the strategy `TwoStage` with this rule.

    Args:
        strategy: the name, the class or the instance.
        modalities: the modalities of the model.
        **options: options of the strategy or of the rule, for a name or a class.

    Returns:
        A new strategy. From an instance, it is a copy.

    Raises:
        ValueError: an unknown name, an unknown or missing option, a number of modalities that the strategy is not
            defined for, an instance that was made for other modalities, or options beside an instance.
        TypeError: `strategy` is neither a name nor a strategy nor a rule.
    """
    if isinstance(strategy, Strategy):
        if options:
            raise ValueError(
                f"strategy_options are {sorted(options)}, but the strategy {strategy.label!r} is an instance, which "
                "has its options; leave them out."
            )
        if strategy.modalities != tuple(modalities):
            raise ValueError(
                f"the strategy is for the modalities {list(strategy.modalities)}, the model has {list(modalities)}."
            )
        return copy.deepcopy(strategy)
    if isinstance(strategy, Rule) or (isinstance(strategy, type) and issubclass(strategy, Rule)):
        return TwoStage(modalities, rule=strategy, **options)
    if isinstance(strategy, str):
        check_strategy_name(strategy)
        if strategy not in STRATEGIES:
            return TwoStage(modalities, rule=strategy, **options)
        kind = STRATEGIES[strategy]
    elif isinstance(strategy, type) and issubclass(strategy, Strategy):
        kind = strategy
    else:
        raise TypeError(
            "strategy must be the name, the class or an instance of a strategy or of a rule, got "
            f"{type(strategy).__name__}."
        )
    check_options(kind, options, f"the strategy {kind.name or kind.__name__!r}", "strategy_options")
    return kind(modalities, **options)
