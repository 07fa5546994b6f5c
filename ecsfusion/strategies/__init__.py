"""Ways to train a fusion model, by name: our own and those that it is compared with, one file for each idea.

`make_strategy` finds one; `ecsfusion.strategies.strategy.Strategy` tells how to write your own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from ecsfusion.controller.options import check_options
from ecsfusion.controller.registry import RULES
from ecsfusion.controller.rule import Rule
from ecsfusion.strategies.agm import AGM
from ecsfusion.strategies.distillation import UnimodalDistillation
from ecsfusion.strategies.g_blending import GBlending
from ecsfusion.strategies.joint import Joint, JointAuxiliary, ModalityDropout, RatePerModality
from ecsfusion.strategies.mla import MLA
from ecsfusion.strategies.mmpareto import MMPareto
from ecsfusion.strategies.ogm import OGM, OGMGE
from ecsfusion.strategies.pdmp import PDMP
from ecsfusion.strategies.pmr import PMR
from ecsfusion.strategies.relearning import DiagnosingRelearning
from ecsfusion.strategies.strategy import Strategy
from ecsfusion.strategies.two_stage import Published, TwoStage
from ecsfusion.strategies.unimodal import Sequential, Unimodal, UniPreFinetuned, UniPreFrozen, WarmUp

__all__ = ["STRATEGIES", "Strategy", "check_strategy_name", "make_strategy", "stages_of"]

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        TwoStage,
        Published,
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
    )
}


def check_strategy_name(name: str) -> None:
    """Check that a strategy, or a rule that steers two stages, has this name.

    Raises:
        ValueError: there is none.
    """
    if name not in STRATEGIES and name not in RULES:
        raise ValueError(
            f"strategy is {name!r}; it must be one of {', '.join(STRATEGIES)}, or a rule that steers two stages: "
            f"{', '.join(RULES)}."
        )


def stages_of(strategy: str | type[Strategy] | Strategy | type[Rule] | Rule) -> str:
    """What a strategy trains, before it is made: "two-stage", "joint" or "unimodal"."""
    kind = STRATEGIES.get(strategy) if isinstance(strategy, str) else strategy
    return getattr(kind, "stages", TwoStage.stages)


def make_strategy(
    strategy: str | type[Strategy] | Strategy | type[Rule] | Rule, modalities: Sequence[str], **options: Any
) -> Strategy:
    """A strategy from its name, its class or an instance, made with these options.

    A rule, again by its name, class or instance, stands for `TwoStage` steered by it.

    Args:
        strategy: the choice.
        modalities: of the model.
        **options: of the strategy, or of the rule.

    Returns:
        A new strategy; of an instance a copy.

    Raises:
        ValueError: an unknown name, an unknown or missing option, a number of modalities that it is not for, or an
            instance that was made for other modalities or is given options.
        TypeError: none of the above.
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
