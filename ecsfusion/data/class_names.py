"""Checks that a class has one number, and a number one class, in all data sets that name their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ecsfusion.data.columns import LABEL_COLUMNS, has_transform


def check_class_names(datasets: Mapping[str, Any], id2label: Mapping[int, str]) -> None:
    """Check that no class has one number in one place and another one elsewhere, and no number two classes.

    `class_encode_column` and folders of classes number the classes of each split by themselves, so that a split that
    lacks a class numbers the others differently, without an error anywhere. The model may call a class something else
    than the data sets do.

    Args:
        datasets: by the argument under which the user passed them. Only a `datasets.Dataset` whose labels are a
            `ClassLabel`, and whose rows no transform makes, names its classes.
        id2label: that of the model; a class that it does not name is not compared.

    Raises:
        ValueError: the name of a class has two numbers, or a number has two names in data sets.
    """
    numbers: dict[str, tuple[int, str]] = {
        name: (int(number), "model.config.id2label") for number, name in id2label.items()
    }
    names: dict[int, tuple[str, str]] = {}
    remedy = (
        "give all of them one order of the classes, as dataset.cast_column('label', datasets.ClassLabel(names=[...])) "
        "does, with that of model.config.id2label."
    )
    for argument, dataset in datasets.items():
        for number, name in enumerate(_class_names(dataset)):
            first, place = numbers.setdefault(name, (number, argument))
            if first != number:
                raise ValueError(
                    f"the class {name!r} has the number {number} in {argument} and {first} in {place}; {remedy}"
                )
            other, place = names.setdefault(number, (name, argument))
            if other != name:
                raise ValueError(
                    f"the number {number} is the class {name!r} in {argument} and {other!r} in {place}; {remedy}"
                )


def _class_names(dataset: Any) -> list[str]:
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping) or has_transform(dataset):
        return []
    label = next((features[name] for name in LABEL_COLUMNS if name in features), None)
    # `ClassLabel`, without an import of `datasets` where none is used.
    return [*names] if isinstance(names := getattr(label, "names", None), list) else []
