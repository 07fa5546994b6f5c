"""Memorization: what a modality says about training rows is not what it says about others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from ecsfusion.diagnostics.finding import Finding, Scale
from ecsfusion.pid.decomposition import PID

KEPT = 0.5
"""Share of its information that a modality must keep on validation rows. All encoders know their training rows a little
better; one that loses most of it has learnt the rows."""

LEAST = 0.1
"""Bits that it must lose at least: every encoder of noise has learnt a little of its rows."""


def memorized(
    training: PID,
    validation: PID,
    training_accuracy: Mapping[str, float],
    validation_accuracy: Mapping[str, float],
    scale: Scale,
) -> Iterator[Finding]:
    """For each modality that says less than `KEPT` of what it says about training rows.

    The loss must be above `LEAST` and the sum of both noise floors, and its head must say so, too: right more often on
    training rows by three standard errors. The information I(X_m; Y) is compared, and the uniqueness reported with it:
    uniqueness depends on the other modalities too, and falls on training rows where one of those memorizes.

    Args:
        training: decomposition of training rows, about as many as of the other.
        validation: decomposition of the probe set.
        training_accuracy: of each modality's head on the training rows.
        validation_accuracy: the same on the probe set.
        scale: of that set; the training rows are about as many.
    """
    for i, name in enumerate(validation.names):
        seen, held_out = (float(pid.mutual_information[i]) for pid in (training, validation))
        floor = sum(
            float(pid.unique_floor[i]) for pid in (training, validation) if pid.unique_floor is not None
        )
        right, right_held_out = training_accuracy[name], validation_accuracy[name]
        noise = math.hypot(scale.error(right), scale.error(right_held_out))
        if (
            held_out < KEPT * seen
            and seen - held_out > max(floor, LEAST)
            and right - right_held_out > 3 * noise
        ):
            unique, unique_seen = float(validation.unique[i]), float(training.unique[i])
            yield Finding(
                "memorization",
                name,
                f"{name} has memorized training rows: about these it says {seen:.2f} bits (uniqueness "
                f"{unique_seen:.2f}, accuracy {right:.3f}), about validation rows {held_out:.2f} "
                f"({unique:.2f}, {right_held_out:.3f}); augment or regularize it, lower its rate in "
                "modality_learning_rates, or train it for fewer steps.",
            )
