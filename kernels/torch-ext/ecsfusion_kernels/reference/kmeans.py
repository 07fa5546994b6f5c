"""k-means in plain PyTorch: iterations and assignment; batched over problems.

A problem is one set of points with one set of centers; restarts are problems on the same points.

A point whose squared length is not a finite float32 number (a NaN, an infinity, entries beyond 1e19) is left out:
its label is -1, it is never drawn as a center, and it takes no part in any sum.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..precision import in_full_precision

__all__ = ["Clustering", "lloyd", "nearest"]


class Clustering(NamedTuple):
    """The result of `lloyd` for B problems.

    Attributes:
        centers: (B, K, d) float32.
        labels: (B, N) int64: the nearest center of each point, the first among equals; -1 for a point left out.
        inertia: (B,) float32: sum of squared distances to the nearest center.
        sizes: (B, K) int64: points per cluster; 0 for an empty cluster, which keeps its center.
    """

    centers: Tensor
    labels: Tensor
    inertia: Tensor
    sizes: Tensor


@in_full_precision
def lloyd(points: Tensor, centers: Tensor, max_iterations: int = 30, tolerance: float = 1e-3) -> Clustering:
    """Lloyd's iterations until the inertia hardly changes; an empty cluster keeps its center.

    The result of a problem does not depend on the other problems of the batch.

    Args:
        points: (B, N, d) float32.
        centers: (B, K, d) float32, the start.
        max_iterations: the most iterations of assignment and update.
        tolerance: a problem's iterations end when its inertia decreased by no more than this share.
    """
    inertia = points.new_full(points.shape[:1], torch.inf)
    active = torch.ones(points.shape[:1], dtype=torch.bool, device=points.device)
    for _ in range(max_iterations):
        labels, distance = nearest(points, centers)
        membership = labels.unsqueeze(-1) == torch.arange(centers.shape[1], device=points.device)
        sizes = membership.sum(1).to(points.dtype)
        finite_points = points.masked_fill((labels < 0).unsqueeze(-1), 0.0)
        means = torch.bmm(membership.mT.to(points.dtype), finite_points) / sizes.clamp_min(1.0).unsqueeze(-1)
        is_moved = active.unsqueeze(-1) & (sizes > 0)
        centers = torch.where(is_moved.unsqueeze(-1), means, centers)
        previous, inertia = (
            inertia,
            torch.where(active, distance.masked_fill(labels < 0, 0.0).sum(-1), inertia),
        )
        active = active & (previous - inertia > tolerance * inertia)
        if not bool(active.any()):
            break
    labels, distance = nearest(points, centers)
    sizes = torch.zeros(centers.shape[:2], dtype=torch.int64, device=points.device)
    sizes.scatter_add_(1, labels.clamp_min(0), (labels >= 0).to(torch.int64))
    return Clustering(centers, labels, distance.masked_fill(labels < 0, 0.0).sum(-1), sizes)


@in_full_precision
def nearest(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest center of each point and its squared distance: (B, N) int64 and (B, N) float32.

    points (B, N, d), centers (B, K, d); the first center wins among equals. A point left out has label -1 and
    distance NaN; a center that is not finite is nearest to no point.
    """
    norm = centers.square().sum(-1, keepdim=True)
    bias = norm.masked_fill(~torch.isfinite(norm), torch.inf)
    scores = torch.baddbmm(bias.mT, points, centers.masked_fill(bias == torch.inf, 0.0).mT, alpha=-2.0)
    lowest, labels = scores.min(-1)
    length = points.square().sum(-1)
    is_left_out = ~torch.isfinite(length)
    distance = (lowest + length).clamp_min(0.0).masked_fill(is_left_out, torch.nan)
    return labels.masked_fill(is_left_out, -1), distance
