"""The centers of k-means, in plain PyTorch."""

from typing import NamedTuple

from torch import Tensor

from .kmeans import lloyd

__all__ = ["Centers", "lloyd_centers", "lloyd_inertia"]


class Centers(NamedTuple):
    """The result of `lloyd_inertia`."""

    centers: Tensor
    """(B, K, d) float32."""
    inertia: Tensor
    """(B,) float32: the sum of squared distances from the points to their nearest centers."""
    sizes: Tensor
    """(B, K) int64: points per cluster."""


def lloyd_centers(
    points: Tensor, centers: Tensor, max_iterations: int = 30, tolerance: float = 1e-3
) -> Tensor:
    """The centers (B, K, d) of `lloyd`."""
    return lloyd(points, centers, max_iterations, tolerance).centers


def lloyd_inertia(
    points: Tensor, centers: Tensor, max_iterations: int = 30, tolerance: float = 1e-3
) -> Centers:
    """`lloyd` without the labels of the points."""
    found = lloyd(points, centers, max_iterations, tolerance)
    return Centers(found.centers, found.inertia, found.sizes)
