"""Drawings and their titles: what does a clip art show? Pictures and titles belong together by themselves.

From the Open Clip Art Library (public domain), 13 folders of a librarian as classes; the words of the folders are
masked in the titles. Rows of one series (an icon theme, a deck of cards, one author's variants) are a group, and no
group is in two splits. Text is the strong modality, the picture knows about half as much.

The shifted test set `stamps`, of all these suites, has the pictures and descriptions of Tux Paint's stamps (GPL-2) that
belong to one of four classes: mostly photographs, where the training rows are drawings. (Their frozen embeddings are of
224 x 224 pixels, those of the drawings of 160 x 160.)

In the other suites the encoders are trained further, on one row of a series: `clipart-finetuned` whole, `clipart-lora`
with adapters, `clipart-scratch` with a small convnet of random weights for the picture beside the pretrained encoder of
the text. Those that end in `-full` have all groups, for a GPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from suites import finetuned, frozen
from suites.folders import SPLITS
from suites.suite import Split, Suite

MODALITIES = ("image", "text")
# Classes of the stamps, by the class of the drawings that they belong to.
STAMPS = {
    "animals": ("birds", "mammals", "other_animals"),
    "food": ("food",),
    "plants": ("plants",),
    "transportation": ("vehicles",),
}
# Rows of the suites whose encoders are trained further.
FEW = {"train": 240, "validation": 120, "test": 240, "stamps": 120}


def clipart() -> Suite:
    """The suite `clipart`: 2 908 / 489 / 736 rows, frozen EfficientNet-Lite0 and all-MiniLM-L6-v2."""
    stored = frozen.load_embeddings("clipart")
    splits = frozen.split_rows(stored, MODALITIES)
    stamps = stamps_of_classes(list(stored["names"]), frozen.load_embeddings("stamps"))
    # Groups are numbered in each data set by itself.
    splits["stamps"] = replace(stamps, groups=stamps.groups + int(stored["group"].max()) + 1)
    return frozen.suite_of(
        "clipart",
        "Drawings and their titles, embeddings of frozen pretrained encoders: text is strong, and the picture adds "
        "little to it.",
        len(stored["names"]),
        splits,
        shifted="stamps",
    )


def further_trained(kind: str, full: bool = False) -> Suite:
    """The suites `clipart-finetuned`, `clipart-lora` and `clipart-scratch`: 240 / 120 / 240 rows, one of a group.

    And 120 stamps.

    Args:
        kind: "finetuned", "lora" or "scratch".
        full: one row of every group, 1 181 / 274 / 409, and 315 stamps.
    """
    return finetuned.suite_of(
        "clipart",
        MODALITIES,
        "Drawings and their titles",
        kind,
        group="group",
        scratch="image",
        number_of_rows=None if full else FEW,
        shifted=("stamps", raw_stamps()),
    )


def raw_stamps() -> list[dict[str, Any]]:
    """The rows of all stamps that belong to one of the drawings' classes, with the label of the drawings and a group.

    Raises:
        FileNotFoundError: the data are absent.
    """
    names, stamps = finetuned.class_names("clipart"), finetuned.class_names("stamps")
    label_of = labels_of_stamps(names)
    return [
        {**row, "label": label_of[stamps[row["label"]]], "group": row["picture"]}
        for split in SPLITS
        for row in finetuned.read_rows("stamps", split)
        if stamps[row["label"]] in label_of
    ]


def labels_of_stamps(names: Sequence[str]) -> dict[str, int]:
    """The label of a drawing by the class of the stamps.

    Args:
        names: of the drawings' classes.
    """
    return {stamp: names.index(name) for name, kinds in STAMPS.items() for stamp in kinds}


def stamps_of_classes(names: list[str], stored: Mapping[str, np.ndarray]) -> Split:
    """Every picture of the stamps that belongs to one of the drawings' classes, once; all splits of it.

    Args:
        names: of the drawings' classes.
        stored: the embeddings of the stamps.
    """
    label_of = labels_of_stamps(names)
    labels = np.array([label_of.get(name, -1) for name in stored["names"]])[stored["label"]]
    # The rows of a picture differ in their sound alone.
    _, first = np.unique(stored["group"], return_index=True)
    rows = first[labels[first] >= 0]
    return Split(
        {name: torch.from_numpy(stored[name][rows].astype(np.float32)) for name in MODALITIES},
        torch.from_numpy(labels[rows]),
        torch.from_numpy(stored["group"][rows].astype(np.int64)),
    )
