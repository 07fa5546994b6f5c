"""The controller of stage 1: who trains now, and when does unimodal training end?

A rule reads every probe and decides. `make_rule` finds one by name; `~ecsfusion.controller.rule.Rule`
tells how to write your own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ecsfusion.controller.adaptive import Adaptive
from ecsfusion.controller.decision import Decision
from ecsfusion.controller.fixed import FixedSchedule
from ecsfusion.controller.options import check_options
from ecsfusion.controller.peak_synergy import PeakSynergy
from ecsfusion.controller.published import Published
from ecsfusion.controller.reading import Reading
from ecsfusion.controller.rule import Rule
from ecsfusion.controller.weak_first import WeakFirst

__all__ = ["RULES", "Decision", "Reading", "Rule", "make_rule"]

RULES: dict[str, type[Rule]] = {
    rule.name: rule for rule in (Adaptive, Published, PeakSynergy, WeakFirst, FixedSchedule)
}


def make_rule(rule: str | type[Rule] | Rule, modalities: Sequence[str], **options: Any) -> Rule:
    """The rule of this name or class, made with these options; or the given instance itself.

    Raises:
        ValueError: an unknown name or option (the message lists the allowed ones), or an instance that was
            made for other modalities.
        TypeError: neither a name nor a rule.
    """
    if isinstance(rule, Rule):
        if options:
            raise ValueError(f"options {sorted(options)} do not apply to a rule that is made already.")
        if rule.modalities != tuple(modalities):
            raise ValueError(
                f"rule is for modalities {list(rule.modalities)}, the model has {list(modalities)}."
            )
        return rule
    if isinstance(rule, str):
        if rule not in RULES:
            raise ValueError(f"unknown rule {rule!r}; allowed are {sorted(RULES)}, or a Rule of your own.")
        kind = RULES[rule]
    elif isinstance(rule, type) and issubclass(rule, Rule):
        kind = rule
    else:
        raise TypeError(f"rule must be a name, a Rule class or a Rule, got {type(rule).__name__}.")
    check_options(kind, options, f"the rule {kind.name or kind.__name__!r}", "rule_options")
    try:
        return kind(modalities, **options)
    except TypeError as error:  # such as a word where a number is compared
        raise TypeError(
            f"the rule {kind.name or kind.__name__!r} cannot be made for the modalities {modalities} with rule_options "
            f"{options}: {error}"
        ) from error
