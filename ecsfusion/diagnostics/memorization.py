"""Diagnostic: a modality knows much more about training rows than about validation rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from ecsfusion.diagnostics.finding import Finding
from ecsfusion.evaluation.measurement import Information, Measurement

MIN_KEPT_SHARE = 0.5
"""The least share of its information that a modality should keep on validation rows. All encoders know their training
rows a little better; an encoder that loses most of its information has memorized the rows."""

MIN_LOST_BITS = 0.1
"""A loss below this many bits does not count, because every encoder of noise memorizes its rows a little."""


def memorized(
    training: Information, training_scores: Mapping[str, float], validation: Measurement
) -> Iterator[Finding]:
    """Find each modality that keeps less than `MIN_KEPT_SHARE` of its information about training rows.

    The loss must be above `MIN_LOST_BITS` and above the sum of both noise floors, and the accuracy of the modality's
    head must be higher on training rows by three standard errors. The information that is compared is I(X_m; Y). The
    uniqueness is reported but not compared, because it depends on the other modalities too: it is lower on training
    rows if another modality has memorized them.

    Args:
        training: the decomposition of training rows, about as many as the probe set has.
        training_scores: the score of each modality's head on these rows.
        validation: the measurement of the probe set.

    Yields:
        One finding for each such modality.
    """
    information, scale, word = validation.information, validation.scale, validation.score_in_words
    if information is None:
        return
    for name, held_out_bits in information.mutual_information.items():
        trained_bits = training.mutual_information[name]
        floor = training.floor.get(name, 0.0) + information.floor.get(name, 0.0)
        accuracy, held_out_accuracy = training_scores[name], validation.scores[name]
        noise = math.hypot(scale.error(accuracy), scale.error(held_out_accuracy))
        if (
            held_out_bits < MIN_KEPT_SHARE * trained_bits
            and trained_bits - held_out_bits > max(floor, MIN_LOST_BITS)
            and accuracy - held_out_accuracy > 3 * noise
        ):
            unique, trained_unique = information.unique[name], training.unique[name]
            yield Finding(
                "memorization",
                name,
                f"{name} has memorized training rows: about these it says {trained_bits:.2f} bits (uniqueness "
                f"{trained_unique:.2f}, {word} {accuracy:.3f}), about validation rows {held_out_bits:.2f} "
                f"({unique:.2f}, {held_out_accuracy:.3f}); augment or regularize it, lower its rate in "
                "modality_learning_rates, or train it for fewer steps.",
            )
