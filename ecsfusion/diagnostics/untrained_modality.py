"""Diagnostic: no row that was trained on has a modality."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ecsfusion.diagnostics.finding import Finding


def untrained_modality(unseen: Collection[str]) -> Iterator[Finding]:
    """Find the modalities that have not trained at all, because every row lacks them.

    Args:
        unseen: the modalities that no row had until now.

    Yields:
        One finding for each of them.
    """
    for name in unseen:
        yield Finding(
            "no training rows",
            name,
            f"no row that has been trained on until now has {name}, so that it does not train: look at this column of "
            "train_dataset, whose values are all missing (None or NaN), or leave the modality out.",
        )


def absent_from(batch: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """Those of these modalities that no row of a batch, as the model takes it, has."""
    masks = batch.get("present") or {}
    return [
        name
        for name in names
        if batch.get(name) is None or (masks.get(name) is not None and not bool(masks[name].any()))
    ]
