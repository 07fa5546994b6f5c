"""Graded imbalance: avmnist with one modality made noisy, slow, or strong, and two unequal halves of a digit.

*Noisy*: Gaussian noise is added once to the standardized values of a modality, in all splits. It then knows less.

*Slow*: the standardized values of a modality are multiplied by a small number. That can be undone, so it knows as much
as before; but encoders without normalization learn from it later.

*Strong*: the images are whole MNIST digits. The image then knows nearly everything, at once and reliably.
"""

from dataclasses import replace

import torch
from torch import nn

from suites import avmnist
from suites.encoders import ImageEncoder
from suites.folders import SPLITS
from suites.mnist import load_digits
from suites.modular import draw_rows
from suites.suite import Split, Suite, standardize

# Standard deviations of the noise; those of the signal are 1 (image: a pixel, audio: a mel band).
NOISE_LEVELS = {"audio": (0.5, 1.0), "image": (2.0, 4.0)}
SLOW_SCALE = {"audio": 0.2, "image": 0.03}
HALVES_NOISE = 1.0
HALVES_SCALE = 0.05
HALVES_PER_CLASS = {"train": 400, "validation": 100, "test": 200}
STRONG_PER_CLASS = {"train": 1200, "validation": 300, "test": 500}
SEED = 2024


def noisy(modality: str, level: int) -> Suite:
    """The suites `noisy-audio-1`, `noisy-audio-2`, `noisy-image-1`, `noisy-image-2`.

    Args:
        modality: "audio" or "image".
        level: 1 or 2, the stronger noise.
    """
    suite = avmnist.small()
    generator = torch.Generator().manual_seed(SEED)
    std = NOISE_LEVELS[modality][level - 1]
    return replace(
        suite,
        name=f"noisy-{modality}-{level}",
        description=f"avmnist-small whose {modality} is noisy, at level {level} of 2: Gaussian noise of {std} sd.",
        **{split: add_noise(getattr(suite, split), modality, std, generator) for split in SPLITS},
    )


def slow(modality: str) -> Suite:
    """The suites `slow-audio` and `slow-image`.

    Args:
        modality: "audio" or "image".
    """
    suite = avmnist.small()
    scale = SLOW_SCALE[modality]
    return replace(
        suite,
        name=f"slow-{modality}",
        description=(
            f"avmnist-small whose {modality} is slow: multiplied by {scale}, it knows as much and is learned later."
        ),
        **{split: rescale(getattr(suite, split), modality, scale) for split in SPLITS},
    )


def strong_image(config: str = "full") -> Suite:
    """The suite `strong-image`: the sounds of avmnist-full, each with a whole MNIST digit of its label.

    Args:
        config: of avmnist, where the sounds are from.
    """
    suite = avmnist.full() if config == "full" else avmnist.small()
    generator = torch.Generator().manual_seed(SEED)
    heard = [getattr(suite, split) for split in SPLITS]
    images = []
    for name, split in zip(SPLITS, heard, strict=True):
        image, digits = load_digits(name, STRONG_PER_CLASS[name])
        images.append(image[draw_rows(split.labels, digits, generator)])
    images = standardize(images, dims=(0, 1, 2, 3))
    return replace(
        suite,
        name="strong-image",
        description=(
            f"avmnist-{config} with whole MNIST digits: the image knows nearly everything at once, and reliably."
        ),
        **{
            name: replace(split, inputs={**split.inputs, "image": image})
            for name, split, image in zip(SPLITS, heard, images, strict=True)
        },
    )


def halves() -> Suite:
    """The suite `halves`: left and right half of noisy MNIST digits; 4 000 / 1 000 / 2 000 rows, balanced."""
    generator = torch.Generator().manual_seed(SEED)
    digits = [load_digits(split, HALVES_PER_CLASS[split]) for split in SPLITS]
    images = standardize([images for images, _ in digits], dims=(0, 1, 2, 3))
    splits = {}
    for name, image, (_, labels) in zip(SPLITS, images, digits, strict=True):
        split = Split({"left": image[..., :14].clone(), "right": image[..., 14:].clone()}, labels)
        for half in ("left", "right"):
            split = add_noise(split, half, HALVES_NOISE, generator)
        splits[name] = rescale(split, "right", HALVES_SCALE)
    return Suite(
        name="halves",
        description=(
            "Left and right half of a noisy digit, about equally informative; the right one is slow, for it is "
            f"multiplied by {HALVES_SCALE}."
        ),
        num_classes=10,
        **splits,
        build_encoders=build_half_encoders,
        epochs=12,
        batch_size=64,
        learning_rates=(1e-3, 3e-3),
        sgd_learning_rates=(0.03, 0.1),
    )


def build_half_encoders() -> dict[str, nn.Module]:
    """Equal small convnets for the halves."""
    return {"left": ImageEncoder((1, 28, 14)), "right": ImageEncoder((1, 28, 14))}


def add_noise(split: Split, modality: str, std: float, generator: torch.Generator) -> Split:
    """The split with Gaussian noise on one modality, the same whenever a row is read."""
    values = split.inputs[modality]
    noise = std * torch.randn(values.shape, generator=generator)
    return replace(split, inputs={**split.inputs, modality: values + noise})


def rescale(split: Split, modality: str, scale: float) -> Split:
    """The split with one modality multiplied by a number."""
    return replace(split, inputs={**split.inputs, modality: scale * split.inputs[modality]})
