"""Interaction: the label is a sum of two digits, so that both modalities have to be read together.

Images are plain MNIST digits and sounds are rows of avmnist-full that are not too noisy; they are paired anew within
each split, and every pair of digits occurs equally often. Each digit is then exactly independent of the sum modulo 10.

Logits that are a sum over the modalities, as from a linear layer over concatenated embeddings, cannot say a sum modulo
10: these suites have the nonlinear fused head "mlp".
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from suites import avmnist
from suites.folders import SPLITS
from suites.mnist import load_digits
from suites.suite import Split, Suite, standardize

NUM_DIGITS = 10
# Of the sounds that are used; those of AV-MNIST reach from -15 to 5.
MIN_SNR_DB = 0.0
IMAGES_PER_CLASS = {"train": 1200, "validation": 300, "test": 500}
# A cell has a hundredth of the rows.
PAIRS_PER_CELL = {"train": 120, "validation": 10, "test": 20}
# Width and height in pixels of the bright corner.
MARK = 5
SEED = 1801


def synergy(config: str = "full", pairs_per_cell: Mapping[str, int] = PAIRS_PER_CELL) -> Suite:
    """The suite `synergy`: 12 000 / 1 000 / 2 000 rows, balanced.

    Args:
        config: of avmnist, where the sounds are from.
        pairs_per_cell: by split, rows for each of the 100 pairs of digits.
    """
    pairs = {name: all_pairs(pairs_per_cell[name]) for name in SPLITS}
    return _suite(
        "synergy",
        "Digit in the image plus spoken digit, modulo 10: neither modality alone knows anything about the label.",
        config,
        pairs,
        {name: torch.ones(len(pairs[name]), dtype=torch.bool) for name in SPLITS},
    )


def mixture(config: str = "full", pairs_per_cell: Mapping[str, int] = PAIRS_PER_CELL) -> Suite:
    """The suite `mixture`: as many rows as `synergy`, of which half are redundant, balanced.

    Args:
        config: of avmnist, where the sounds are from.
        pairs_per_cell: by split, a hundredth of the rows; an even number.
    """
    needing_both = {name: all_pairs(pairs_per_cell[name] // 2) for name in SPLITS}
    redundant = {name: equal_pairs(5 * pairs_per_cell[name]) for name in SPLITS}
    return _suite(
        "mixture",
        "Half of the rows show the label in both modalities; the other half, marked by a bright corner of the image, "
        "need the sum of both digits modulo 10.",
        config,
        {name: torch.cat([needing_both[name], redundant[name]]) for name in SPLITS},
        {name: torch.arange(100 * pairs_per_cell[name]) < len(needing_both[name]) for name in SPLITS},
        marked=True,
    )


def all_pairs(count: int) -> Tensor:
    """Every pair of digits `count` times, (100 * count, 2) int64."""
    digits = torch.arange(NUM_DIGITS)
    return torch.cartesian_prod(digits, digits).repeat(count, 1)


def equal_pairs(count: int) -> Tensor:
    """Every pair of equal digits `count` times, (10 * count, 2) int64."""
    return torch.arange(NUM_DIGITS)[:, None].expand(-1, 2).repeat(count, 1)


def draw_rows(wanted: Tensor, digits: Tensor, generator: torch.Generator) -> Tensor:
    """For each wanted digit a row that shows it, drawn in shuffled rounds: none twice before all were used once.

    Args:
        wanted: (n,) int64.
        digits: of the rows, (N,) int64; every wanted digit is among them.
        generator: of the order.

    Returns:
        Rows (n,) int64 with digits[rows] == wanted.
    """
    rows = torch.empty_like(wanted)
    for digit in wanted.unique():
        places, have = (wanted == digit).nonzero()[:, 0], (digits == digit).nonzero()[:, 0]
        rounds = [
            have[torch.randperm(len(have), generator=generator)] for _ in range(0, len(places), len(have))
        ]
        rows[places] = torch.cat(rounds)[: len(places)]
    return rows


def sum_labels(pairs: Tensor, needs_both: Tensor) -> Tensor:
    """Labels (N,): the sum modulo 10 of each pair of digits (N, 2), or its first digit where one is enough."""
    return torch.where(needs_both, pairs.sum(dim=1) % NUM_DIGITS, pairs[:, 0])


def _suite(
    name: str,
    description: str,
    config: str,
    pairs: Mapping[str, Tensor],
    needs_both: Mapping[str, Tensor],
    marked: bool = False,
) -> Suite:
    """Images and sounds of the pairs of digits (N, 2) of each split, shuffled; `marked`: those that need both are."""
    generator = torch.Generator().manual_seed(SEED)
    images, sounds, labels = [], [], []
    for split in SPLITS:
        image, image_digits = load_digits(split, IMAGES_PER_CLASS[split])
        heard = avmnist.load_rows(config, split)
        clear = heard["snr_db"] >= MIN_SNR_DB
        order = torch.randperm(len(pairs[split]), generator=generator)
        digits, both = pairs[split][order], needs_both[split][order]
        image = image[draw_rows(digits[:, 0], image_digits, generator)]
        if marked:
            image[both, :, :MARK, :MARK] = 1.0
        images.append(image)
        sounds.append(heard["audio"][clear][draw_rows(digits[:, 1], heard["labels"][clear], generator)])
        labels.append(sum_labels(digits, both))
    images, sounds = standardize(images, dims=(0, 1, 2, 3)), standardize(sounds, dims=(0, 1, 3))
    return Suite(
        name=name,
        description=description,
        num_classes=NUM_DIGITS,
        **{
            split: Split({"image": image, "audio": audio}, label)
            for split, image, audio, label in zip(SPLITS, images, sounds, labels, strict=True)
        },
        build_encoders=partial(avmnist.build_encoders, batch_norm=True),
        epochs=8,
        batch_size=128,
        learning_rates=(3e-3, 6e-3),
        sgd_learning_rates=(0.03, 0.1),
        fusion="mlp",
    )
