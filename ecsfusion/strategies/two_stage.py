"""Training in two stages under a rule of the controller: the default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ecsfusion.controller.registry import make_rule
from ecsfusion.controller.rule import Rule, RunContext
from ecsfusion.strategies.strategy import Strategy


class TwoStage(Strategy):
    """Train each modality alone under a rule, restore the best weights, then train jointly (arXiv 2509.20840).

    It is the default strategy.

    Args:
        modalities: names of the modalities of the model.
        rule: the rule that decides which modalities train in stage 1 and when stage 1 ends: a name in
            `ecsfusion.controller.RULES`, a class derived from `Rule`, or an instance.
        **rule_options: options of the rule by name.

    Raises:
        ValueError, TypeError: see `ecsfusion.make_rule`.
    """

    name = "two-stage"
    stages = "two-stage"
    takes_unimodal_share = True

    def __init__(
        self, modalities: Sequence[str], *, rule: str | type[Rule] | Rule = "adaptive", **rule_options: Any
    ) -> None:
        super().__init__(modalities)
        self._rule, self._rule_options = rule, rule_options

    @property
    def label(self) -> str:
        """The name of the strategy or, where another rule than the default one was chosen, the name of this rule."""
        if self.name != TwoStage.name or self._rule == "adaptive":
            return super().label
        if isinstance(self._rule, str):
            return self._rule
        return self._rule.name or getattr(self._rule, "__name__", type(self._rule).__name__)

    def make_rule(self, context: RunContext) -> Rule:
        """Make the rule for this run."""
        return make_rule(self._rule, self.modalities, context=context, **self._rule_options)
