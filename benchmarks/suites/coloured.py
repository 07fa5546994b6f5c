"""Coloured-and-gray MNIST: a shortcut that training and validation offer and the test withholds.

After the coloured MNIST of Kim et al. 2019 (*Learning Not to Learn*, arXiv 1812.10352), with gray and colour as two
modalities as in Wu et al. 2022 (arXiv 2202.05306). Here the colour modality is a plain patch, without the digit's
shape, so that it carries nothing but the colour.
"""

import torch
from torch import Tensor, nn

from suites.encoders import ImageEncoder
from suites.folders import SPLITS
from suites.mnist import load_digits
from suites.suite import Split, Suite, standardize

# Mean colour (RGB) of each digit, from Kim et al.
MEAN_COLOURS = (
    (220, 20, 60),
    (0, 128, 128),
    (253, 233, 16),
    (0, 149, 182),
    (237, 145, 33),
    (145, 30, 188),
    (70, 240, 240),
    (250, 197, 187),
    (210, 245, 60),
    (128, 0, 0),
)
# Share of the training and validation rows that have the mean colour of their own digit.
BIAS = 1.0
# Standard deviation of each channel, of 0 to 1: the best classifier of the colours is right in 99.6 %.
JITTER = 0.05
# Width and height of a patch in pixels.
PATCH = 8
PER_CLASS = {"train": 400, "validation": 100, "test": 200}
SEED = 2019


def cg_mnist() -> Suite:
    """The suite `cg-mnist`: 4 000 / 1 000 / 2 000 rows, balanced."""
    generator = torch.Generator().manual_seed(SEED)
    digits = [load_digits(split, PER_CLASS[split]) for split in SPLITS]
    grays = standardize([images for images, _ in digits], dims=(0, 1, 2, 3))
    splits = {}
    for name, gray, (_, labels) in zip(SPLITS, grays, digits, strict=True):
        shades = choose_shades(labels, 0.0 if name == "test" else BIAS, generator)
        splits[name] = Split({"gray": gray, "colour": paint(shades, generator)}, labels)
    return Suite(
        name="cg-mnist",
        description=(
            "Gray digit and a patch of colour: colour is a fast, nearly perfect shortcut in train and validation and "
            "random in test; gray is slower and reliable."
        ),
        num_classes=10,
        **splits,
        build_encoders=build_encoders,
        epochs=12,
        batch_size=64,
        learning_rates=(1e-3, 3e-3),
        sgd_learning_rates=(0.01, 0.03),
    )


def build_encoders() -> dict[str, nn.Module]:
    """Small convnets for the gray digit and the patch of colour."""
    return {"gray": ImageEncoder((1, 28, 28)), "colour": ImageEncoder((3, PATCH, PATCH), channels=(16, 32))}


def choose_shades(labels: Tensor, bias: float, generator: torch.Generator) -> Tensor:
    """Which mean colour each row gets, (N,) from 0 to 9: its label with probability `bias`, else any of the ten."""
    own = torch.rand(len(labels), generator=generator) < bias
    anything = torch.randint(len(MEAN_COLOURS), (len(labels),), generator=generator)
    return torch.where(own, labels, anything)


def paint(shades: Tensor, generator: torch.Generator) -> Tensor:
    """Patches (N, 3, 8, 8), float32 from -1 to 1, of one jittered colour each."""
    colours = torch.tensor(MEAN_COLOURS)[shades] / 255
    colours = colours + JITTER * torch.randn(colours.shape, generator=generator)
    return (2 * colours.clamp(0, 1) - 1)[:, :, None, None].expand(-1, -1, PATCH, PATCH).contiguous()
