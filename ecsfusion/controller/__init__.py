"""The controller of stage 1: one reading of the model in, one decision out. No tensors.

`registry` finds a rule by its name; `rule` tells how to write your own.
"""

from ecsfusion.controller.registry import RULES, make_rule
from ecsfusion.controller.rule import Decision, Reading, Rule

__all__ = ["RULES", "Decision", "Reading", "Rule", "make_rule"]
