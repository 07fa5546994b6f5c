"""Ways to train a fusion model, by name: our own and those that it is compared with, one file for each idea.

`make_strategy` finds one; `ecsfusion.strategies.strategy.Strategy` tells how to write your own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ecsfusion.controller.options import check_options
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

__all__ = ["STRATEGIES", "Strategy", "find_strategy", "make_strategy"]

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


def find_strategy(name: str) -> type[Strategy]:
    """The strategy of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy is {name!r}; it must be one of {', '.join(STRATEGIES)}.")
    return STRATEGIES[name]


def make_strategy(strategy: str | type[Strategy], modalities: Sequence[str], **options: Any) -> Strategy:
    """The strategy of this name or class, made with these options.

    Raises:
        ValueError: an unknown name, an unknown or missing option, or a number of modalities that it is not for.
        TypeError: neither a name nor a class.
    """
    if isinstance(strategy, str):
        kind = find_strategy(strategy)
    elif isinstance(strategy, type) and issubclass(strategy, Strategy):
        kind = strategy
    else:
        raise TypeError(f"strategy must be a name or a subclass of Strategy, got {type(strategy).__name__}.")
    check_options(kind, options, f"the strategy {kind.name or kind.__name__!r}", "strategy_options")
    return kind(modalities, **options)
