"""Diagnostic: a class is evaluated, but no training row has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ecsfusion.diagnostics.finding import Finding


def untrained_classes(
    train_labels: np.ndarray | None,
    evaluation_labels: Mapping[str, np.ndarray | None],
    names: Mapping[int, str],
) -> Iterator[Finding]:
    """Find that classes of an evaluation set have no training rows, as where sorted rows are split by their place.

    Args:
        train_labels: the class labels (N,) of the training rows; None where they are not known before training.
        evaluation_labels: those of the evaluation sets, by their name in messages.
        names: the names of all classes, by index.

    Yields:
        At most one finding for each evaluation set.
    """
    if train_labels is None:
        return
    trained = set(np.unique(train_labels).tolist())
    for argument, labels in evaluation_labels.items():
        found = {} if labels is None else dict(zip(*np.unique(labels, return_counts=True), strict=True))
        absent = {int(index): int(count) for index, count in found.items() if index not in trained}
        if absent:
            listed = ", ".join(f"{index} ({names.get(index, index)})" for index in absent)
            yield Finding(
                "no training rows",
                argument,
                f"train_dataset has no row of class {listed}, of which {argument} has {sum(absent.values())}, so that "
                "nothing learns it: look at how the rows were split (shuffle them before, or give "
                "stratify_by_column), or leave the class out.",
            )
