"""k-means in plain PyTorch: seeding, iterations, assignment; batched over problems.

A problem is one set of points with one set of centers; restarts are problems on the same points. The random
numbers are a hash of (seed, problem, center, point): they depend neither on the device nor on the global
generator.

A point whose squared length is not a finite float32 number (a NaN, an infinity, entries beyond 1e19) is left out:
its label is -1, it is never drawn as a center, and it takes no part in any sum.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .random import uniform


class Clustering(NamedTuple):
    """What `lloyd` returns for B problems."""

    centers: Tensor  # (B, K, d) float32
    labels: (
        Tensor  # (B, N) int64: the nearest center of each point, the first among equals; -1 for one left out
    )
    inertia: Tensor  # (B,) float32: sum of squared distances to the nearest center
    sizes: Tensor  # (B, K) int64: points per cluster; 0 marks a center that was kept where it was


def seed(points: Tensor, num_clusters: int, seed: int = 0) -> Tensor:
    """k-means++ seeding (Arthur and Vassilvitskii 2007): each center is a point, drawn with probability D^2.

    The draw is the Gumbel-max trick in its exponential form, argmin of E_i / D_i^2, one pass over the
    points and no prefix sum. When all points coincide with a center already, the first point is repeated.

    Args:
        points: (B, N, d) float32, N at least 1.

    Returns:
        (B, num_clusters, d) float32.
    """
    batch, number, _ = points.shape
    index = torch.arange(number, device=points.device)
    problem = torch.arange(batch, device=points.device).unsqueeze(-1)
    left_out = ~torch.isfinite(points.square().sum(-1))
    weight = torch.ones(batch, number, device=points.device)
    centers = []
    for k in range(num_clusters):
        counter = index + number * (k + num_clusters * problem)
        waiting = -torch.log(uniform(counter, seed)) / weight
        # Whoever is a center waits as long as a number can tell, but not as long as a point left out.
        waiting = torch.where(weight > 0, waiting, torch.finfo(torch.float32).max)
        waiting = waiting.clamp_max(torch.finfo(torch.float32).max).masked_fill(left_out, torch.inf)
        chosen = waiting.argmin(-1)
        center = points[problem.squeeze(-1), chosen]
        centers.append(center)
        distance = (points - center.unsqueeze(1)).square().sum(-1)
        weight = distance if k == 0 else torch.minimum(weight, distance)
    return torch.stack(centers, 1)


def lloyd(points: Tensor, centers: Tensor, max_iterations: int = 30, tolerance: float = 1e-3) -> Clustering:
    """Lloyd's iterations until the inertia settles; an empty cluster keeps its center.

    Every problem stops by itself: its result does not depend on what else is in the batch.

    Args:
        points: (B, N, d) float32.
        centers: (B, K, d) float32, where to begin.
        max_iterations: of assignment and update.
        tolerance: a problem's iterations end when its inertia fell by no more than this share.
    """
    inertia = torch.full(points.shape[:1], torch.inf, device=points.device)
    active = torch.ones(points.shape[:1], dtype=torch.bool, device=points.device)
    for _ in range(max_iterations):
        labels, distance = nearest(points, centers)
        here = labels.unsqueeze(-1) == torch.arange(centers.shape[1], device=points.device)
        sizes = here.sum(1).to(points.dtype)
        counted = points.masked_fill((labels < 0).unsqueeze(-1), 0.0)
        means = torch.bmm(here.mT.to(points.dtype), counted) / sizes.clamp_min(1.0).unsqueeze(-1)
        moves = active.unsqueeze(-1) & (sizes > 0)
        centers = torch.where(moves.unsqueeze(-1), means, centers)
        before, inertia = inertia, torch.where(active, distance.masked_fill(labels < 0, 0.0).sum(-1), inertia)
        active = active & (before - inertia > tolerance * inertia)
        if not bool(active.any()):
            break
    labels, distance = nearest(points, centers)
    sizes = torch.zeros(centers.shape[:2], dtype=torch.int64, device=points.device)
    sizes.scatter_add_(1, labels.clamp_min(0), (labels >= 0).to(torch.int64))
    return Clustering(centers, labels, distance.masked_fill(labels < 0, 0.0).sum(-1), sizes)


def nearest(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest center of each point and its squared distance: (B, N) int64 and (B, N) float32.

    points (B, N, d), centers (B, K, d); the first center wins among equals. A point left out has label -1 and
    distance NaN; a center that is not finite is nearest to no point.
    """
    norm = centers.square().sum(-1, keepdim=True)
    bias = norm.masked_fill(~torch.isfinite(norm), torch.inf)
    scores = torch.baddbmm(bias.mT, points, centers.masked_fill(bias == torch.inf, 0.0).mT, alpha=-2.0)
    least, labels = scores.min(-1)
    length = points.square().sum(-1)
    left_out = ~torch.isfinite(length)
    distance = (least + length).clamp_min(0.0).masked_fill(left_out, torch.nan)
    return labels.masked_fill(left_out, -1), distance
