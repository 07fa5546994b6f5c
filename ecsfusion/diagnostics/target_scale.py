"""Diagnostic: the targets of a regression are far from where the heads start."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ecsfusion.diagnostics.finding import Finding

FAR = 100.0
"""A distance, or a spread, that heads do not come to in a usual run: they move by their rate at each step."""
MANY_DEVIATIONS = 5.0
"""A mean that is so many deviations away, and at least as far in all, makes R² hugely negative until it is reached."""


def target_scale(targets: np.ndarray | None) -> Iterator[Finding]:
    """Find that the mean or the spread of targets is far from what the heads answer at first, which is about 1 wide.

    Args:
        targets: (N,) or (N, C) of the training rows; None where they are not known before training.

    Yields:
        At most one finding, about the first such target.
    """
    if targets is None or not len(targets):
        return
    for place, column in enumerate(targets.reshape(len(targets), -1).T):
        mean, deviation = float(column.mean()), float(column.std())
        if max(abs(mean), deviation) > FAR or abs(mean) > MANY_DEVIATIONS * max(deviation, 1.0):
            which = "the targets" if targets.ndim == 1 else f"targets {place}"
            yield Finding(
                "scale of targets",
                "",
                f"{which} of train_dataset have the mean {mean:.3g} and the deviation {deviation:.3g}, but heads start "
                "near 0 with a spread of about 1 and may not get there: subtract the mean from the labels of all sets, "
                "and divide them by the deviation, and undo it in the answers.",
            )
            return
