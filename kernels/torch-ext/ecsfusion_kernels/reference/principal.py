"""Leading principal directions by orthogonal iteration, in plain PyTorch."""

import torch
from torch import Tensor

from .random import uniform

ITERATIONS = 10
SPARE = 8  # columns beyond the directions asked for, which let those converge
MIN_SQUARE = (
    1e-13  # eigenvalues of the squared matrix below this share of the largest are rounding in float32
)


def principal_directions(rows: Tensor, number: int) -> Tensor:
    """The leading principal directions of centred rows, by orthogonal iteration from a fixed start.

        V <- orthonormal basis of X^T (X V), 10 times, with 8 columns to spare; the last basis is that of the
        principal components of X V, in the order of their variance

    It never forms the D x D matrix. Directions whose variance is under 3e-7 of the largest are lost in float32 and
    come out as zeros, as do those beyond D.

    Args:
        rows: (B, n, D) float32, finite, each problem of mean zero.
        number: d, from 1.

    Returns:
        (B, D, d) float32, orthonormal columns, each with an arbitrary sign.
    """
    vectors = start(rows, number)
    for _ in range(ITERATIONS):
        image = (rows.mT @ (rows @ vectors)).to(torch.float64)
        values, rotation = torch.linalg.eigh(image.mT @ image)
        values, rotation = values.flip(-1), rotation.flip(-1)
        kept = values > MIN_SQUARE * values[..., :1]
        scale = torch.where(kept, values, torch.inf).rsqrt()
        vectors = (image @ (rotation * scale.unsqueeze(-2))).to(torch.float32)
    return vectors[..., :number].contiguous()


def start(rows: Tensor, number: int) -> Tensor:
    """Where the iteration begins: the same hashed numbers for every problem, (B, D, number + 8)."""
    batch, _, dimension = rows.shape
    width = number + SPARE
    counter = torch.arange(dimension * width, device=rows.device)
    return (uniform(counter, 0) - 0.5).reshape(dimension, width).expand(batch, -1, -1)
