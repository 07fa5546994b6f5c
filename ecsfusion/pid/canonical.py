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
from ecsfusion.pid.shape import leading_directions

MAX_DIRECTIONS = 32
"""Of each side."""
WHITENING = 1e-3
"""Share of the identity in the covariance of a side."""
LARGEST_NOISE = 0.6
"""Where noise is correlated by more than this, because rows are few for the columns, only the directions of the largest
variance are looked at,"""
ROWS_PER_DIRECTION = 32
"""one for so many rows,"""
MIN_DIRECTIONS = 8
"""and at least so many."""
MAX_ROWS = 4096
"""The most rows that show which these are."""
ITERATIONS = 6


def canonical_coordinates(first: LinearSums, second: LinearSums, products: Tensor) -> Tensor | None:
    """Both sides along their canonical directions, (N, 2 k) of variance about 1, or None where there is only noise.

    The directions are those of the rows of all folds but one within the classes. They are the same for all rows.

    Args:
        first: the sums of one side, for all training sets.
        second: those of the other.
        products: (T, D1, D2), `fold_products` of both.
    """
    sides = first.one_set(0), second.one_set(0)
    rows = float(sides[0].sets.sizes)
    sizes = first.rows.shape[1], second.rows.shape[1]
    between = covariance_between(*sides, products[:1])
    within = [side.within for side in sides]
    leading: list[Tensor | None] = [None, None]
    if largest_of_noise(*sizes, rows) > LARGEST_NOISE:
        most = max(int(rows / ROWS_PER_DIRECTION), MIN_DIRECTIONS)
        some = slice(None, None, max(1, -(-len(first.rows) // MAX_ROWS)))
        leading = [
            leading_directions(side.rows[some], most) if size > most else None
            for side, size in zip(sides, sizes, strict=True)
        ]
        for place, basis in enumerate(leading):
            if basis is not None:
                within[place] = basis.T @ within[place] @ basis
                between = basis.T @ between if place == 0 else between @ basis
    shrinkage = torch.tensor(WHITENING, dtype=first.rows.dtype, device=first.rows.device)
    factors = [side._replace(within=own).factor(shrinkage) for side, own in zip(sides, within, strict=True)]
    between = half_solved(factors[0], between)
    # (1, D2, D1): the correlations of all pairs of whitened columns.
    correlations = half_solved(factors[1], between.mT)[0]
    width = min(MAX_DIRECTIONS + 8, *correlations.shape)
    counter = torch.arange(correlations.shape[1] * width, device=correlations.device)
    right = torch.linalg.qr(uniform(counter, 11).view(-1, width) - 0.5).Q
    for _ in range(ITERATIONS):
        right = torch.linalg.qr(correlations.mT @ (correlations @ right)).Q
    left, found, rotation = torch.linalg.svd(correlations @ right, full_matrices=False)
    columns = correlations.shape
    noise = largest_of_noise(columns[0], columns[1], rows)
    # The fewer columns, the more the largest correlation of noise varies.
    is_found = found[0] > (1 + math.prod(columns) ** (-1 / 3)) * noise
    number = min(int(((found > noise) & is_found).sum()), MAX_DIRECTIONS)
    if not number:
        return None
    along = []
    for side, factor, basis, vectors in zip(
        sides, factors, leading, ((right @ rotation.mT)[:, :number], left[:, :number]), strict=True
    ):
        directions = transposed_solved(factor, vectors[None])[0]
        directions = directions if basis is None else basis @ directions
        along.append((side.rows - side.center) @ directions)
    return torch.cat(along, 1)


def largest_of_noise(first: int, second: int, rows: float) -> float:
    """The largest canonical correlation of so many columns of noise on either side, of many (Wachter 1980)."""
    a, b = min(first / rows, 1.0), min(second / rows, 1.0)
    if a + b >= 1:
        return 1.0
    return math.sqrt(a * (1 - b)) + math.sqrt(b * (1 - a))
