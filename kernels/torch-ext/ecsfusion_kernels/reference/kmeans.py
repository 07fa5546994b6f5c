"""k-means in plain PyTorch: seeding, iterations, assignment; batched over problems.

A problem is one set of points with one set of centres; restarts are problems on the same points. The random
numbers are a hash of (seed, problem, centre, point): they depend neither on the device nor on the global
generator.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .random import uniform


class Clustering(NamedTuple):
    """What `lloyd` returns for B problems."""

    centres: Tensor  # (B, K, d) float32
    labels: Tensor  # (B, N) int64: the nearest centre of each point, the first among equals
    inertia: Tensor  # (B,) float32: sum of squared distances to the nearest centre
    sizes: Tensor  # (B, K) int64: points per cluster; 0 marks a centre that was kept where it was


def seed(points: Tensor, num_clusters: int, seed: int = 0) -> Tensor:
    """k-means++ seeding (Arthur and Vassilvitskii 2007): each centre is a point, drawn with probability D^2.

    The draw is the Gumbel-max trick in its exponential form, argmin of E_i / D_i^2, one pass over the
    points and no prefix sum. When all points coincide with a centre already, the first point is repeated.

    Args:
        points: (B, N, d) float32.

    Returns:
        (B, num_clusters, d) float32.
    """
    batch, number, _ = points.shape
    index = torch.arange(number, device=points.device)
    problem = torch.arange(batch, device=points.device).unsqueeze(-1)
    weight = torch.ones(batch, number, device=points.device)
    centres = []
    for k in range(num_clusters):
        counter = index + number * (k + num_clusters * problem)
        waiting = -torch.log(uniform(counter, seed)) / weight
        chosen = waiting.argmin(-1)
        centre = points[problem.squeeze(-1), chosen]
        centres.append(centre)
        distance = (points - centre.unsqueeze(1)).square().sum(-1)
        weight = distance if k == 0 else torch.minimum(weight, distance)
    return torch.stack(centres, 1)


def lloyd(points: Tensor, centres: Tensor, max_iterations: int = 30, tolerance: float = 1e-3) -> Clustering:
    """Lloyd's iterations until the labels settle; an empty cluster keeps its centre.

    Args:
        points: (B, N, d) float32.
        centres: (B, K, d) float32, where to begin.
        max_iterations: of assignment and update.
        tolerance: the iterations end when no problem's inertia fell by more than this share.
    """
    inertia = torch.full(points.shape[:1], torch.inf, device=points.device)
    for _ in range(max_iterations):
        labels, distance = nearest(points, centres)
        before, inertia = inertia, distance.sum(-1)
        member = torch.nn.functional.one_hot(labels, centres.shape[1]).to(points.dtype)
        sizes = member.sum(1)
        means = torch.bmm(member.mT, points) / sizes.clamp_min(1.0).unsqueeze(-1)
        centres = torch.where(sizes.unsqueeze(-1) > 0, means, centres)
        if bool((before - inertia <= tolerance * inertia).all()):
            break
    labels, distance = nearest(points, centres)
    sizes = torch.zeros(centres.shape[:2], dtype=torch.int64, device=points.device)
    sizes.scatter_add_(1, labels, torch.ones_like(labels))
    return Clustering(centres, labels, distance.sum(-1), sizes)


def nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each point and its squared distance: (B, N) int64 and (B, N) float32.

    points (B, N, d), centres (B, K, d); the first centre wins among equals.
    """
    scores = torch.baddbmm(centres.square().sum(-1).unsqueeze(1), points, centres.mT, alpha=-2.0)
    least, labels = scores.min(-1)
    return labels, (least + points.square().sum(-1)).clamp_min(0.0)
