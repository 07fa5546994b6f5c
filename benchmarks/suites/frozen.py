"""Embeddings of pretrained encoders that stay as they are: a suite trains small encoders on them, in seconds.

The file `embeddings.npz` of a data set holds its rows in the order train, validation, test: float16 embeddings by
modality (N, D), "label", "split", "group" (N,), and whatever else is known of a row.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from suites.encoders import FeatureEncoder
from suites.folders import SPLITS, data_file
from suites.suite import Split, Suite, standardize_splits


def load_embeddings(data: str) -> dict[str, np.ndarray]:
    """The arrays of `DATA/embeddings.npz`.

    Raises:
        FileNotFoundError: the data are absent.
    """
    with np.load(data_file(f"{data}/embeddings.npz"), allow_pickle=False) as stored:
        return dict(stored)


def split_rows(stored: Mapping[str, np.ndarray], modalities: Sequence[str]) -> dict[str, Split]:
    """Train, validation and test: embeddings (N, D) float32, labels and groups (N,) int64."""
    splits = {}
    for name in SPLITS:
        rows = stored["split"] == name
        splits[name] = Split(
            {
                modality: torch.from_numpy(stored[modality][rows].astype(np.float32))
                for modality in modalities
            },
            torch.from_numpy(stored["label"][rows].astype(np.int64)),
            torch.from_numpy(stored["group"][rows].astype(np.int64)),
        )
    return splits


def suite_of(
    name: str, description: str, num_classes: int, splits: Mapping[str, Split], *, shifted: str
) -> Suite:
    """The suite of splits of embeddings, scaled by the training rows.

    Args:
        name: of the suite.
        description: of the suite.
        num_classes: of the label.
        splits: "train", "validation", "test", and the further test set.
        shifted: name of the further test set among the splits.
    """
    scaled = standardize_splits(splits, dims=(0,))
    return Suite(
        name=name,
        description=description,
        num_classes=num_classes,
        **{split: scaled[split] for split in SPLITS},
        shifted={shifted: scaled[shifted]},
        build_encoders=encoder_builder(scaled["train"]),
        epochs=12,
        batch_size=64,
        learning_rates=(1e-3, 3e-3),
        sgd_learning_rates=(0.01, 0.03),
    )


def encoder_builder(split: Split) -> Callable[[], dict[str, nn.Module]]:
    """A function that builds a `FeatureEncoder` for each modality of a split."""
    return partial(_build, {name: values.shape[1] for name, values in split.inputs.items()})


def _build(widths: Mapping[str, int]) -> dict[str, nn.Module]:
    return {name: FeatureEncoder(width) for name, width in widths.items()}
