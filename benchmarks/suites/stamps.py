"""Pictures, spoken and written descriptions: which kind of thing does a stamp of Tux Paint show?

Three pretrained encoders: EfficientNet-Lite0, Whisper tiny.en's encoder, all-MiniLM-L6-v2. A row is one spoken
description; rows of one picture share image and text, and are a group. Text knows most, the picture nearly as much,
sound little. The data are GPL-2 and no part of this repository.

Train, validation and test hold the six languages of which there is most. The shifted test set `languages` holds the
others, of the same unseen pictures as test: sounds of a kind that was never trained on, beside image and text as ever.

In the other suites the encoders are trained further, on one description of a picture: `stamps-finetuned` whole,
`stamps-lora` with adapters, `stamps-scratch` with a small convnet of random weights for the sound beside the pretrained
encoders of image and text. Those that end in `-full` have all pictures, for a GPU.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from suites import finetuned, frozen
from suites.suite import Suite

MODALITIES = ("image", "audio", "text")
# French, Bulgarian, Romanian, Russian, Catalan, Spanish; the other eight are held out.
LANGUAGES = ("fr", "bg", "ro", "ru", "ca", "es")
# Rows of the suites whose encoders are trained further.
FEW = {"train": 160, "validation": 97, "test": 174, "languages": 90}


def stamps() -> Suite:
    """The suite `stamps`: 2 295 / 424 / 762 rows, and 276 in other languages; frozen encoders."""
    stored = frozen.load_embeddings("stamps")
    splits = frozen.split_rows(stored, MODALITIES)
    known = np.isin(stored["language"], LANGUAGES)
    of_split = {name: torch.from_numpy(known[stored["split"] == name]) for name in splits}
    splits["languages"] = splits["test"].select(~of_split["test"])
    splits |= {name: splits[name].select(rows) for name, rows in of_split.items()}
    return frozen.suite_of(
        "stamps",
        "Pictures, spoken and written descriptions, embeddings of frozen pretrained encoders: sound is weak, and "
        "overfits.",
        len(stored["names"]),
        splits,
        shifted="languages",
    )


def further_trained(kind: str, full: bool = False) -> Suite:
    """The suites `stamps-finetuned`, `stamps-lora` and `stamps-scratch`: 160 / 97 / 174 rows, one of a picture.

    And 90 in other languages.

    Args:
        kind: "finetuned", "lora" or "scratch".
        full: one row of every picture, 523 / 97 / 174.
    """
    return finetuned.suite_of(
        "stamps",
        MODALITIES,
        "Pictures, spoken and written descriptions",
        kind,
        group="picture",
        scratch="audio",
        number_of_rows=None if full else FEW,
        shifted=("languages", [row for row in finetuned.read_rows("stamps", "test") if not is_known(row)]),
        is_known=is_known,
        # With three encoders an epoch more would take a run past three minutes on one core.
        epochs=3,
    )


def is_known(row: Mapping[str, Any]) -> bool:
    """Whether the row is in a language that is trained on."""
    return row["language"] in LANGUAGES
