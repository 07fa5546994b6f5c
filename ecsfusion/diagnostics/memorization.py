"""Diagnostic: a modality knows much more about training rows than about others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from ecsfusion.diagnostics.finding import Finding
from ecsfusion.evaluation.measurement import Information, Measurement

MIN_KEPT_SHARE = 0.5
"""Share of its information that a modality must keep on validation rows. All encoders know their training rows a little
better; one that loses most of its information has memorized the rows."""

MIN_LOST_BITS = 0.1
"""Bits below which a loss does not count: every encoder of noise has memorized a little of its rows."""


def memorized(
    training: Information, training_scores: Mapping[str, float], validation: Measurement
) -> Iterator[Finding]:
    """Find each modality that keeps less than `MIN_KEPT_SHARE` of its information about training rows.

    The loss must be above `MIN_LOST_BITS` and above the sum of both noise floors, and the modality's head must be right
    more often on training rows by three standard errors. What is compared is the information I(X_m; Y). The uniqueness
    is only reported, because it depends on the other modalities too: it falls on training rows where one of those
    memorizes.

    Args:
        training: decomposition of training rows, about as many as the probe set has.
        training_scores: of each modality's head on these rows.
        validation: of the probe set.
    """
    information, scale = validation.information, validation.scale
    if information is None:
        return
    for name, held_out in information.mutual_information.items():
        seen = training.mutual_information[name]
        floor = training.floor.get(name, 0.0) + information.floor.get(name, 0.0)
        right, right_held_out = training_scores[name], validation.scores[name]
        noise = math.hypot(scale.error(right), scale.error(right_held_out))
        if (
            held_out < MIN_KEPT_SHARE * seen
            and seen - held_out > max(floor, MIN_LOST_BITS)
            and right - right_held_out > 3 * noise
        ):
            unique, unique_seen = information.unique[name], training.unique[name]
            yield Finding(
                "memorization",
                name,
                f"{name} has memorized training rows: about these it says {seen:.2f} bits (uniqueness "
                f"{unique_seen:.2f}, accuracy {right:.3f}), about validation rows {held_out:.2f} "
                f"({unique:.2f}, {right_held_out:.3f}); augment or regularize it, lower its rate in "
                "modality_learning_rates, or train it for fewer steps.",
            )
