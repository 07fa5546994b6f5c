"""The controller of stage 1: one reading of the model in, one decision out. No tensors.

`registry` finds a rule by its name; `rule` tells how to write your own.
"""

from ecsfusion.controller.decision import Decision
from ecsfusion.controller.reading import Reading
from ecsfusion.controller.registry import RULES, make_rule
from ecsfusion.controller.rule import Rule

__all__ = ["RULES", "Decision", "Reading", "Rule", "make_rule"]
