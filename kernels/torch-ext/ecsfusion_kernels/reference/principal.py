"""Leading principal directions by orthogonal iteration, in plain PyTorch."""

import torch
from torch import Tensor

from ..precision import in_full_precision
from .random import uniform

__all__ = ["principal_directions"]

ITERATIONS = 10
# Columns that are iterated beyond the directions asked for, so that these converge.
SPARE_COLUMNS = 8
MIN_SQUARE = (
    # Eigenvalues of the squared matrix below this share of the largest are rounding errors of float32.
    1e-13
)


@in_full_precision
def principal_directions(rows: Tensor, num_directions: int) -> Tensor:
    """The leading principal directions of centered rows, by orthogonal iteration from a fixed start.

        V <- orthonormal basis of X^T (X V), 10 times, with 8 columns to spare; the last basis is that of the
        principal components of X V, in the order of their variance

    The D x D matrix is never formed. The largest entry of each direction is positive. Directions whose variance is
    under 3e-7 of the largest cannot be resolved in float32 and are zeros, as are those beyond D.

    Args:
        rows: (B, n, D) float32, finite, each problem of mean zero.
        num_directions: d, at least 1.

    Returns:
        (B, D, d) float32, orthonormal columns.
    """
    vectors = start(rows, num_directions)
    for _ in range(ITERATIONS):
        image = (rows.mT @ (rows @ vectors)).to(torch.float64)
        values, rotation = torch.linalg.eigh(image.mT @ image)
        values, rotation = values.flip(-1), rotation.flip(-1)
        is_resolved = values > MIN_SQUARE * values[..., :1]
        scale = torch.where(is_resolved, values, torch.inf).rsqrt()
        vectors = (image @ (rotation * scale.unsqueeze(-2))).to(torch.float32)
    return with_largest_positive(vectors[..., :num_directions])


def with_largest_positive(vectors: Tensor) -> Tensor:
    """Columns (B, D, d) with the signs for which the entry of the largest size is positive, contiguous."""
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors).contiguous()


def start(rows: Tensor, num_directions: int) -> Tensor:
    """The start of the iteration: the same hashed numbers for every problem, (B, D, num_directions + 8)."""
    batch, _, num_dims = rows.shape
    width = num_directions + SPARE_COLUMNS
    counter = torch.arange(num_dims * width, device=rows.device)
    return (uniform(counter, 0) - 0.5).reshape(num_dims, width).expand(batch, -1, -1)
