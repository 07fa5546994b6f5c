"""k-means in plain PyTorch: iterations and assignment; batched over problems.

A problem is one set of points with one set of centers; restarts are problems on the same points.

A point whose squared length is not a finite float32 number (a NaN, an infinity, entries beyond 1e19) is left out:
its label is -1, it is never drawn as a center, and it takes no part in any sum.
"""

from typing import NamedTuple

import torch
from torch import Tensor

try:
    import numpy as np
# PyTorch works without NumPy, and so does the kernel package by itself.
except ImportError:
    np = None  # type: ignore[assignment]

from ..precision import in_full_precision

__all__ = ["Clustering", "lloyd", "nearest"]

# Scores of points and centers that are held at a time, so many that they stay in the cache of a core.
MAX_CPU_SCORES = 1 << 18


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
        labels, distance = _nearest_by_parts(points, centers)
        sums, sizes = _cluster_sums(points, labels, centers.shape[1])
        means = sums / sizes.clamp_min(1.0).unsqueeze(-1)
        is_moved = active.unsqueeze(-1) & (sizes > 0)
        centers = torch.where(is_moved.unsqueeze(-1), means, centers)
        previous, inertia = (
            inertia,
            torch.where(active, distance.masked_fill(labels < 0, 0.0).sum(-1), inertia),
        )
        active = active & (previous - inertia > tolerance * inertia)
        if not bool(active.any()):
            break
    labels, distance = _nearest_by_parts(points, centers)
    sizes = torch.zeros(centers.shape[:2], dtype=torch.int64, device=points.device)
    sizes.scatter_add_(1, labels.clamp_min(0), (labels >= 0).to(torch.int64))
    return Clustering(centers, labels, distance.masked_fill(labels < 0, 0.0).sum(-1), sizes)


def _cluster_sums(points: Tensor, labels: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """The sum (B, K, d) and the number (B, K) of the points of each cluster, without those that are left out."""
    finite_points = points.masked_fill((labels < 0).unsqueeze(-1), 0.0)
    if points.is_cuda:
        # Sums of many threads into one place would depend on their order.
        membership = labels.unsqueeze(-1) == torch.arange(num_clusters, device=points.device)
        return torch.bmm(membership.mT.to(points.dtype), finite_points), membership.sum(1).to(points.dtype)
    place = labels.clamp_min(0)
    sizes = points.new_zeros(len(points), num_clusters)
    sizes.scatter_add_(1, place, (labels >= 0).to(points.dtype))
    sums = points.new_zeros(len(points), num_clusters, points.shape[2])
    return sums.scatter_add_(1, place.unsqueeze(-1).expand_as(points), finite_points), sizes


@in_full_precision
def nearest(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest center of each point and its squared distance: (B, N) int64 and (B, N) float32.

    points (B, N, d), centers (B, K, d); the first center wins among equals. A point left out has label -1 and
    distance NaN; a center that is not finite is nearest to no point.
    """
    return _nearest_by_parts(points, centers)


def _nearest_by_parts(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    rows_at_once = max(1, MAX_CPU_SCORES // max(1, centers[..., 0].numel()))
    if points.device.type == "cpu" and points.shape[1] > rows_at_once:
        parts = [_nearest(part, centers) for part in points.split(rows_at_once, 1)]
        return torch.cat([labels for labels, _ in parts], 1), torch.cat(
            [distance for _, distance in parts], 1
        )
    return _nearest(points, centers)


def _nearest(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    norm = centers.square().sum(-1, keepdim=True)
    bias = norm.masked_fill(~torch.isfinite(norm), torch.inf)
    scores = torch.baddbmm(bias.mT, points, centers.masked_fill(bias == torch.inf, 0.0).mT, alpha=-2.0)
    lowest, labels = _first_lowest(scores)
    length = points.square().sum(-1)
    is_left_out = ~torch.isfinite(length)
    distance = (lowest + length).clamp_min(0.0).masked_fill(is_left_out, torch.nan)
    return labels.masked_fill(is_left_out, -1), distance


def _first_lowest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest of scores (..., K) and the place of the first of equals, (...) each."""
    if np is None or scores.device.type != "cpu":
        lowest = scores.min(-1)
        return lowest.values, lowest.indices
    # A few times faster than both at once.
    return scores.amin(-1), torch.from_numpy(scores.numpy().argmin(-1))
