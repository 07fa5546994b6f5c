"""Modalities trained one by one or side by side, each on its own loss, before they are fused or in place of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ecsfusion.controller.fixed import FixedSchedule
from ecsfusion.controller.registry import make_rule
from ecsfusion.controller.rule import Rule, RunContext
from ecsfusion.strategies.strategy import Strategy, TrainerOfStrategy, check_share


class Unimodal(Strategy):
    """Every modality alone, to the end of the budget: the best single modality and both ensembles in one run.

    The fused head becomes the sum of the unimodal ones (the product of their softmax), and the readout is the
    calibrated ensemble, p proportional to prod_m softmax(z_m)^w_m with w_m fitted on validation.

    Args:
        modalities: of the model.
        rule: what decides who trains, and when training ends: a name, a class or an instance as for `TwoStage`; by
            default all train to the end.
        **rule_options: options of the rule by name.
    """

    name = "unimodal"
    stages = "unimodal"

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        rule: str | type[Rule] | Rule | None = None,
        **rule_options: Any,
    ) -> None:
        super().__init__(modalities)
        self._rule, self._rule_options = rule, rule_options
        # Wrong options are found when the strategy is made.
        self.make_rule(RunContext())

    def make_rule(self, context: RunContext) -> Rule:
        """The given rule, or all train to the end."""
        context = replace(context, unimodal_share=1.0)
        if self._rule is not None:
            return make_rule(self._rule, self.modalities, context=context, **self._rule_options)
        schedule = [(1.0, self.modalities)]
        return FixedSchedule(self.modalities, schedule=schedule, max_unimodal_share=1.0).in_context(context)


class _ThenFused(Strategy):
    """All modalities alone for a share of the budget, then something joint.

    Args:
        modalities: as everywhere.
        share: of the budget that unimodal training takes.
    """

    stages = "two-stage"

    def __init__(self, modalities: Sequence[str], *, share: float) -> None:
        super().__init__(modalities)
        check_share(share)
        self.share = share

    def make_rule(self, context: RunContext) -> Rule:
        """All train for that share."""
        schedule = [(self.share, self.modalities)]
        return FixedSchedule(self.modalities, schedule=schedule, max_unimodal_share=self.share).in_context(
            context
        )


class UniPreFrozen(_ThenFused):
    """Uni-Pre Frozen: every modality alone, then only the fused head, on frozen encoders.

    Args:
        modalities: as everywhere.
        share: of the budget that unimodal training takes.
    """

    name = "uni-pre-frozen"
    auxiliary_weight = 0.0

    def __init__(self, modalities: Sequence[str], *, share: float = 0.8) -> None:
        super().__init__(modalities, share=share)

    def begin_stage(self, trainer: TrainerOfStrategy) -> None:
        """Freeze the modalities in stage 2."""
        if trainer.model.stage == "joint":
            trainer.model.set_frozen(self.modalities)


class UniPreFinetuned(_ThenFused):
    """Uni-Pre Finetuned: every modality alone, then everything on the loss of the fused head, CE(z).

    Args:
        modalities: as everywhere.
        share: of the budget that unimodal training takes.
    """

    name = "uni-pre-finetuned"
    auxiliary_weight = 0.0

    def __init__(self, modalities: Sequence[str], *, share: float = 2 / 3) -> None:
        super().__init__(modalities, share=share)


class WarmUp(_ThenFused):
    """A fixed warm-up: every modality alone for half of the budget, then joint training with unimodal losses.

    Args:
        modalities: as everywhere.
        share: of the budget that unimodal training takes.
    """

    name = "warm-up"

    def __init__(self, modalities: Sequence[str], *, share: float = 0.5) -> None:
        super().__init__(modalities, share=share)


class Sequential(Strategy):
    """Sequential prioritization (G2D, 2025): the weakest modality trains first, alone, then the next, then all jointly.

    Args:
        modalities: as everywhere.
        order: the modalities, weakest first.
        share: of the budget that each of them takes before joint training; the strongest waits for that.
    """

    name = "sequential"
    stages = "two-stage"
    auxiliary_weight = 0.0

    def __init__(self, modalities: Sequence[str], *, order: Sequence[str], share: float = 0.25) -> None:
        super().__init__(modalities)
        if sorted(order) != sorted(self.modalities):
            raise ValueError(f"order is {list(order)}; it must hold each of {list(self.modalities)} once.")
        if not 0.0 < share * len(order) < 1.0:
            raise ValueError(f"share is {share}; {len(order)} of them must leave some of the budget.")
        self.order, self.share = tuple(order), share

    def make_rule(self, context: RunContext) -> Rule:
        """One phase for each modality, in order."""
        phases = [(self.share, (name,)) for name in self.order]
        share = self.share * len(phases)
        return FixedSchedule(self.modalities, schedule=phases, max_unimodal_share=share).in_context(context)
