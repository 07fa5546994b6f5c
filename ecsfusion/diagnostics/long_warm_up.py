"""Diagnostic: the learning rate warms up for as many steps as a stage has, or more."""

from __future__ import annotations

from collections.abc import Iterator

from transformers.trainer_utils import SchedulerType

from ecsfusion.diagnostics.finding import Finding

WITHOUT_WARM_UP = (SchedulerType.CONSTANT, SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
"""Schedules that ignore `warmup_steps`."""


def long_warm_up(stage: str, steps: int, warmup_steps: float, schedule: str) -> Iterator[Finding]:
    """Find that the rate only rises in a stage, as in a short trial of a configuration that was made for a long run.

    Nothing is reported of a warm-up that is a share, below 1, of the schedule.

    Args:
        stage: what the stage is called.
        steps: of its schedule.
        warmup_steps: of the arguments; every stage warms up anew.
        schedule: a `SchedulerType`, or the value of one.

    Yields:
        At most one finding.
    """
    if warmup_steps < 1 or not 0 < steps <= warmup_steps or schedule in WITHOUT_WARM_UP:
        return
    yield Finding(
        "long warm-up",
        stage,
        f"the schedule of {stage} has {steps:,} steps, and warms up for {warmup_steps:,.0f}: its rate rises to the "
        "last step and never falls; give a smaller warmup_steps, or a share, such as warmup_steps=0.1.",
    )
