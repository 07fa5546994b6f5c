"""Strategies in which each modality trains on its own loss, before joint training or instead of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ecsfusion.controller.fixed import FixedSchedule
from ecsfusion.controller.registry import make_rule
from ecsfusion.controller.rule import Rule, RunContext
from ecsfusion.strategies.strategy import Strategy, TrainerOfStrategy, check_share


class Unimodal(Strategy):
    """Train every modality alone for the whole budget; the model is then an ensemble of single modalities.

    One run gives the accuracy of each modality and of two ensembles. The logits of the fused head are the sum of the
    unimodal logits, which is the product of their softmax. The readout is the calibrated ensemble: p is proportional to
    prod_m softmax(z_m)^w_m, with w_m fitted on validation.

    Args:
        modalities: names of the modalities of the model.
        rule: the rule that decides which modalities train and when training ends: a name, a class or an instance as for
            `TwoStage`. By default all modalities train to the end.
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

    def make_rule(self, context: RunContext) -> Rule:
        """Make the rule for this run; by default one by which all modalities train to the end."""
        context = replace(context, unimodal_share=1.0)
        if self._rule is not None:
            return make_rule(self._rule, self.modalities, context=context, **self._rule_options)
        schedule = [(1.0, self.modalities)]
        return FixedSchedule(self.modalities, schedule=schedule, max_unimodal_share=1.0)


class ThenFused(Strategy):
    """Train all modalities alone for a share of the budget; derived classes say what follows.

    Args:
        modalities: names of the modalities of the model.
        share: the share of the budget in which each modality trains alone.
    """

    stages = "two-stage"

    def __init__(self, modalities: Sequence[str], *, share: float) -> None:
        super().__init__(modalities)
        check_share(share)
        self.share = share

    def make_rule(self, context: RunContext) -> Rule:
        """A rule by which all modalities train for the share."""
        schedule = [(self.share, self.modalities)]
        return FixedSchedule(self.modalities, schedule=schedule, max_unimodal_share=self.share)


class UniPreFrozen(ThenFused):
    """Train every modality alone, then only the fused head on the frozen encoders (Uni-Pre Frozen).

    Args:
        modalities: names of the modalities of the model.
        share: the share of the budget in which each modality trains alone.
    """

    name = "uni-pre-frozen"
    auxiliary_weight = 0.0

    def __init__(self, modalities: Sequence[str], *, share: float = 0.8) -> None:
        super().__init__(modalities, share=share)

    def begin_stage(self, trainer: TrainerOfStrategy) -> None:
        """Freeze the encoders and heads of all modalities in stage 2."""
        if trainer.model.stage == "joint":
            trainer.model.set_frozen(self.modalities)


class UniPreFinetuned(ThenFused):
    """Train every modality alone, then the whole model on the loss of the fused head (Uni-Pre Finetuned).

    Args:
        modalities: names of the modalities of the model.
        share: the share of the budget in which each modality trains alone.
    """

    name = "uni-pre-finetuned"
    auxiliary_weight = 0.0

    def __init__(self, modalities: Sequence[str], *, share: float = 2 / 3) -> None:
        super().__init__(modalities, share=share)


class WarmUp(ThenFused):
    """Train every modality alone for a fixed share of the budget, then jointly with unimodal losses (warm-up).

    Args:
        modalities: names of the modalities of the model.
        share: the share of the budget in which each modality trains alone.
    """

    name = "warm-up"

    def __init__(self, modalities: Sequence[str], *, share: float = 0.5) -> None:
        super().__init__(modalities, share=share)


class Sequential(Strategy):
    """Train the modalities alone one after the other, the weakest first, then all jointly (G2D, 2025).

    The paper calls it sequential prioritization.

    Args:
        modalities: names of the modalities of the model.
        order: the modalities, weakest first.
        share: the share of the budget in which each modality trains alone.

    Raises:
        ValueError: `order` does not hold each modality once, or the shares leave nothing for joint training.
    """

    name = "sequential"
    stages = "two-stage"
    auxiliary_weight = 0.0

    def __init__(self, modalities: Sequence[str], *, order: Sequence[str], share: float = 0.25) -> None:
        super().__init__(modalities)
        if sorted(order) != sorted(self.modalities):
            raise ValueError(f"order is {list(order)}; it must hold each of {list(self.modalities)} once.")
        if not 0.0 < share * len(order) < 1.0:
            raise ValueError(
                f"share is {share}; {len(order)} times this share must be above 0 and below 1, the whole budget."
            )
        self.order, self.share = tuple(order), share

    def make_rule(self, context: RunContext) -> Rule:
        """A rule with one phase for each modality, in the given order."""
        phases = [(self.share, (name,)) for name in self.order]
        share = self.share * len(phases)
        return FixedSchedule(self.modalities, schedule=phases, max_unimodal_share=share)
