"""Our default: two stages, steered by `args.rule`."""

from __future__ import annotations

from ecsfusion.strategies.strategy import Strategy


class TwoStage(Strategy):
    """Unimodal training under the controller's rule, its peak restored, then joint training (arXiv 2509.20840).

    Everything is decided by the other arguments: `stages`, `rule` and `rule_options`, `auxiliary_weight`.
    """

    name = "two-stage"


class Published(Strategy):
    """The paper's method to the letter (arXiv 2509.20840): its rule, and unimodal losses of weight 0.6 in stage 2.

    Its second rate, 5e-4 with SGD, is a matter of the arguments.
    """

    name = "published"
    settings = {"stages": "two-stage", "rule": "published", "auxiliary_weight": 0.6}  # noqa: RUF012
    only_two = "its rule compares two uniquenesses"
