"""The registry of rules, and the function that makes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ecsfusion.controller.adaptive import Adaptive
from ecsfusion.controller.fixed import FixedSchedule
from ecsfusion.controller.options import check_options
from ecsfusion.controller.peak_synergy import PeakSynergy
from ecsfusion.controller.published import Published
from ecsfusion.controller.rule import Rule, RunContext
from ecsfusion.controller.weak_first import WeakFirst

RULES: dict[str, type[Rule]] = {
    rule.name: rule for rule in (Adaptive, Published, PeakSynergy, WeakFirst, FixedSchedule)
}


def make_rule(
    rule: str | type[Rule] | Rule,
    modalities: Sequence[str],
    *,
    context: RunContext | None = None,
    **options: Any,
) -> Rule:
    """Make a rule from its name, its class or an instance.

    Args:
        rule: the name, the class or the instance.
        modalities: the modalities of the model.
        context: the run that the rule decides for; by default a run of two stages.
        **options: options of the rule, for a name or a class.

    Returns:
        A new rule. From an instance, it is a copy.

    Raises:
        ValueError: an unknown name or option (the message lists those that are allowed), an instance that was made for
            other modalities, options beside an instance, or a context that the rule cannot serve.
        TypeError: `rule` is neither a name nor a rule, or an option has a wrong type.
    """
    context = RunContext() if context is None else context
    if isinstance(rule, Rule):
        if options:
            raise ValueError(f"options {sorted(options)} do not apply to a rule that is made already.")
        if rule.modalities != tuple(modalities):
            raise ValueError(
                f"rule is for modalities {list(rule.modalities)}, the model has {list(modalities)}."
            )
        return rule.in_context(context)
    if isinstance(rule, str):
        if rule not in RULES:
            raise ValueError(f"unknown rule {rule!r}; allowed are {sorted(RULES)}, or a Rule of your own.")
        kind = RULES[rule]
    elif isinstance(rule, type) and issubclass(rule, Rule):
        kind = rule
    else:
        raise TypeError(f"rule must be a name, a Rule class or a Rule, got {type(rule).__name__}.")
    label = f"the rule {kind.name or kind.__name__!r}"
    if context.unimodal_share is not None and "max_unimodal_share" in options:
        raise ValueError(
            f"the share of stage 1 is given twice, as {options['max_unimodal_share']} among the options of {label} and "
            f"as {context.unimodal_share:g} by the arguments; give one of them."
        )
    check_options(kind, options, label, "strategy_options")
    try:
        return kind(modalities, **options).in_context(context)
    except TypeError as error:
        # An option has a wrong type, for example a string where a number is compared.
        raise TypeError(
            f"{label} cannot be made for the modalities {modalities} with the options {options}: {error}"
        ) from error
