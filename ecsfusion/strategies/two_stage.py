"""Training in two stages under a rule of the controller: the default, and the method as it was published."""

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
        # Make a rule now, so that wrong options are reported when the strategy is made.
        self.make_rule(RunContext())

    def make_rule(self, context: RunContext) -> Rule:
        """Make the rule for this run."""
        return make_rule(self._rule, self.modalities, context=context, **self._rule_options)


class Published(TwoStage):
    """Train by the paper's rule, then jointly with unimodal losses of weight 0.6, exactly as in arXiv 2509.20840.

    The learning rate of the paper's second stage, 5e-4 with SGD, has to be set in the training arguments.

    Args:
        modalities: names of the two modalities of the model.
        **rule_options: options of `ecsfusion.controller.published.Published`.
    """

    name = "published"
    auxiliary_weight = 0.6
    only_two = "its rule compares two uniquenesses"

    def __init__(self, modalities: Sequence[str], **rule_options: Any) -> None:
        super().__init__(modalities, rule="published", **rule_options)
