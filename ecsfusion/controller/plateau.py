"""A plateau is an accuracy that has not risen for some readings.

The functions here keep their state in a dictionary of JSON values: "best_accuracy", which is None before the first
reading, and "not_risen", the number of readings since the last rise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def is_behind(state: dict[str, Any], accuracy: float, tolerance: float) -> bool:
    """Whether an accuracy is below the best so far by more than the tolerance."""
    best = state["best_accuracy"]
    return best is not None and accuracy < best - tolerance


def readings_without_rise(state: dict[str, Any], accuracy: float, tolerance: float) -> int:
    """Add a reading to the state, and count the readings in a row without a rise by more than the tolerance."""
    best = state["best_accuracy"]
    state["not_risen"] += 1
    if best is None or accuracy > best + tolerance:
        state["best_accuracy"], state["not_risen"] = accuracy, 0
    return int(state["not_risen"])


def plateau(
    state: dict[str, Any], accuracy: float, tolerance: float, names: Iterable[str], score: str = "accuracy"
) -> str:
    """The plateau in words, as a clause that follows "stage 1 ends: "; `score` is what the accuracy is called."""
    return (
        f"in {state['not_risen']} readings the mean {score} of {' and '.join(names)} has not risen by {tolerance:g} "
        f"above {state['best_accuracy']:.3f} and is {accuracy:.3f}"
    )
