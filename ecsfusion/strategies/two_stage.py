"""Two stages, steered by a rule of the controller: our default, and the method as it was published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ecsfusion.controller.registry import make_rule
from ecsfusion.controller.rule import Rule, RunContext
from ecsfusion.strategies.strategy import Strategy


class TwoStage(Strategy):
    """Unimodal training under a rule, its peak restored, then joint training (arXiv 2509.20840). The default.

    Args:
        modalities: of the model.
        rule: what decides who trains in stage 1 and when it ends: a name in `ecsfusion.controller.RULES`, a `Rule`
            class, or an instance.
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
        # Wrong options are found when the strategy is made.
        self.make_rule(RunContext())

    def make_rule(self, context: RunContext) -> Rule:
        """The given rule, for this run."""
        return make_rule(self._rule, self.modalities, context=context, **self._rule_options)


class Published(TwoStage):
    """The paper's method to the letter (arXiv 2509.20840): its rule, and unimodal losses of weight 0.6 in stage 2.

    Its second rate, 5e-4 with SGD, is a matter of the arguments.

    Args:
        modalities: two.
        **rule_options: options of `ecsfusion.controller.published.Published`.
    """

    name = "published"
    auxiliary_weight = 0.6
    only_two = "its rule compares two uniquenesses"

    def __init__(self, modalities: Sequence[str], **rule_options: Any) -> None:
        super().__init__(modalities, rule="published", **rule_options)
