"""The controller of stage 1: a rule takes a reading of the model and returns a decision. Nothing here uses tensors.

`registry` finds a rule by its name; `rule` explains how to write one.
"""

from ecsfusion.controller.decision import Decision
from ecsfusion.controller.reading import Reading
from ecsfusion.controller.registry import RULES, make_rule
from ecsfusion.controller.rule import Rule

__all__ = ["RULES", "Decision", "Reading", "Rule", "make_rule"]
