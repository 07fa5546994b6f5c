"""Plain MNIST digits, of which other suites are made."""

import numpy as np
import torch
from torch import Tensor

from suites.folders import data_file


def load_digits(split: str, per_class: int) -> tuple[Tensor, Tensor]:
    """The first images of each digit in a split, in the order of the file, which is shuffled.

    Args:
        split: "train" (at most 1 200 a digit), "validation" (300), or "test" (500).
        per_class: images of each digit.

    Returns:
        Images (10 * per_class, 1, 28, 28), float32 from 0 to 1, and labels (10 * per_class,) int64.

    Raises:
        FileNotFoundError: the data are absent.
        ValueError: the split has fewer images of a digit.
    """
    stored = np.load(data_file(f"mnist/{split}.npz"), allow_pickle=False)
    images, labels = torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"])
    chosen = [(labels == digit).nonzero()[:per_class, 0] for digit in range(10)]
    if min(len(rows) for rows in chosen) < per_class:
        raise ValueError(
            f"per_class is {per_class}, but mnist/{split}.npz has {min(len(rows) for rows in chosen)} images of some "
            "digit; ask for no more."
        )
    rows = torch.cat(chosen).sort().values
    return images[rows].unsqueeze(1) / 255, labels[rows]
