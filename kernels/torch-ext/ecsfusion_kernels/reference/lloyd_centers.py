"""The centers of k-means, in plain PyTorch."""

from torch import Tensor

from .kmeans import lloyd

__all__ = ["lloyd_centers"]


def lloyd_centers(
    points: Tensor, centers: Tensor, max_iterations: int = 30, tolerance: float = 1e-3
) -> Tensor:
    """The centers (B, K, d) of `lloyd`."""
    return lloyd(points, centers, max_iterations, tolerance).centers
