"""Directions along which two modalities follow each other, whatever the label: canonical correlations (Hotelling 1936).

Of embeddings of hundreds of columns, what the modalities have to do with each other lies along a few directions: what a
picture shows, and what its caption says. A label that asks whether the two belong together is told by products along
these, which rows are too few to find among all pairs of columns.
"""

import math

import torch
from ecsfusion_kernels import uniform
from torch import Tensor

from ecsfusion.pid.cholesky import half_solved, transposed_solved
from ecsfusion.pid.linear import LinearSums, covariance_between

MAX_DIRECTIONS = 32
"""Of each side."""
WHITENING = 1e-3
"""Share of the identity in the covariance of a side."""
ITERATIONS = 6
MARGIN = 1.05
"""How far beyond the largest correlation of noise a correlation must be."""


def canonical_coordinates(first: LinearSums, second: LinearSums, products: Tensor) -> Tensor | None:
    """Both sides along their canonical directions, (N, 2 k) of variance about 1, or None where there is only noise.

    The directions are those of the rows of all folds but one within the classes. They are the same for all rows.

    Args:
        first: the sums of one side, for all training sets.
        second: those of the other.
        products: (T, D1, D2), `fold_products` of both.
    """
    sides = first.one_set(0), second.one_set(0)
    shrinkage = first.rows.new_tensor(WHITENING)
    factors = [side.factor(shrinkage) for side in sides]
    between = half_solved(factors[0], covariance_between(*sides, products[:1]))
    # (1, D2, D1): the correlations of all pairs of whitened columns.
    correlations = half_solved(factors[1], between.mT)[0]
    width = min(MAX_DIRECTIONS + 8, *correlations.shape)
    counter = torch.arange(correlations.shape[1] * width, device=correlations.device)
    right = torch.linalg.qr(uniform(counter, 11).view(-1, width) - 0.5).Q
    for _ in range(ITERATIONS):
        right = torch.linalg.qr(correlations.mT @ (correlations @ right)).Q
    left, found, rotation = torch.linalg.svd(correlations @ right, full_matrices=False)
    rows = float(sides[0].sets.sizes)
    number = min(
        MAX_DIRECTIONS,
        int((found > MARGIN * largest_of_noise(correlations.shape[0], correlations.shape[1], rows)).sum()),
    )
    if not number:
        return None
    directions = (right @ rotation.mT)[:, :number], left[:, :number]
    along = [
        (side.rows - side.center) @ transposed_solved(factor, vectors[None])[0]
        for side, factor, vectors in zip(sides, factors, directions, strict=True)
    ]
    return torch.cat(along, 1)


def largest_of_noise(first: int, second: int, rows: float) -> float:
    """The largest canonical correlation of so many columns of noise on either side, of many (Wachter 1980)."""
    a, b = min(first / rows, 1.0), min(second / rows, 1.0)
    if a + b >= 1:
        return 1.0
    return math.sqrt(a * (1 - b)) + math.sqrt(b * (1 - a))
