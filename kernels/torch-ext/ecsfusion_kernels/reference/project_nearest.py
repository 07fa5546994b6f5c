"""The nearest center of each projected row, in plain PyTorch."""

from torch import Tensor

from .kmeans import nearest
from .project import project

__all__ = ["project_nearest"]


def project_nearest(
    embeddings: Tensor, basis: Tensor, offset: Tensor, radius: Tensor | float, centers: Tensor
) -> Tensor:
    """The nearest of centers (K, d) of each row of `project`: (N,) int64, -1 for a row with a NaN or an infinity."""
    points = project(embeddings, basis, offset, radius)
    return nearest(points[None], centers[None])[0][0]
