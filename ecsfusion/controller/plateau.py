"""A plateau: a score that has not risen for some readings.

What is remembered is in a dictionary of JSON values with the keys "best_accuracy" (None before the first reading) and
"not_risen".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def is_behind(state: dict[str, Any], accuracy: float, tolerance: float) -> bool:
    """Whether an accuracy is below the best so far by more than the tolerance."""
    best = state["best_accuracy"]
    return best is not None and accuracy < best - tolerance


def readings_without_rise(state: dict[str, Any], accuracy: float, tolerance: float) -> int:
    """Count this reading: how many in a row have not been above the best by more than the tolerance."""
    best = state["best_accuracy"]
    state["not_risen"] += 1
    if best is None or accuracy > best + tolerance:
        state["best_accuracy"], state["not_risen"] = accuracy, 0
    return int(state["not_risen"])


def plateau(state: dict[str, Any], accuracy: float, tolerance: float, names: Iterable[str]) -> str:
    """The plateau in words, to follow "stage 1 ends: "."""
    return (
        f"in {state['not_risen']} readings the mean accuracy of {' and '.join(names)} has not risen by {tolerance:g} "
        f"above {state['best_accuracy']:.3f} and is {accuracy:.3f}"
    )
