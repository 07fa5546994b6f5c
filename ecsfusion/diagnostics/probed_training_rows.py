"""Diagnostic: the probe set is the training set itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ecsfusion.diagnostics.finding import Finding


def probed_training_rows(train_dataset: Any, evaluation_sets: Mapping[str, Any]) -> Iterator[Finding]:
    """Find that the rows of the probe are those that the model trains on.

    Args:
        train_dataset: the training rows.
        evaluation_sets: the evaluation sets by their name in messages, the probe set first.

    Yields:
        At most one finding.
    """
    for argument, dataset in list(evaluation_sets.items())[:1]:
        if dataset is train_dataset:
            yield Finding(
                "probe of training rows",
                "",
                f"{argument}, which is measured, is train_dataset itself: what the model has memorized counts there as "
                "what a modality knows; give rows that it does not train on, and, of several sets, give these first.",
            )
