"""Rows of suites that train in seconds: a pattern for each class, under noise, for the tests of the comparison."""

from collections.abc import Sequence

import torch
from suites import Split

NAMES = ("left", "right")
CLASSES, WIDTH = 3, 6


def patterns(rows: int, seed: int, noises: Sequence[float]) -> Split:
    """Both modalities show the class under noise of these standard deviations; of all seeds by the same patterns."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    shown = torch.randn(2, CLASSES, WIDTH, generator=torch.Generator().manual_seed(7))
    inputs = {
        name: pattern[labels] + noise * torch.randn(rows, WIDTH, generator=generator)
        for name, pattern, noise in zip(NAMES, shown, noises, strict=True)
    }
    return Split(inputs, labels)
