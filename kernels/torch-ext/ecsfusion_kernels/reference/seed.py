"""k-means++ seeding in plain PyTorch; batched over problems."""

import torch
from torch import Tensor

from .random import uniform

__all__ = ["seed"]


def seed(points: Tensor, num_clusters: int, seed: int = 0) -> Tensor:
    """k-means++ seeding (Arthur and Vassilvitskii 2007): each center is a point, drawn with probability D^2.

    The draw is the Gumbel-max trick in its exponential form, argmin of E_i / D_i^2, which needs one pass over the
    points and no prefix sum. If all points coincide with a center already, the first point is repeated. The random
    numbers are a hash of (seed, problem, center, point), so they depend neither on the device nor on the state of a
    generator. Points that are not finite (see `lloyd`) are never drawn.

    Args:
        points: (B, N, d) float32, N at least 1.
        num_clusters: K.
        seed: any whole number.

    Returns:
        (B, num_clusters, d) float32.
    """
    batch, num_points, _ = points.shape
    index = torch.arange(num_points, device=points.device)
    problem = torch.arange(batch, device=points.device).unsqueeze(-1)
    is_left_out = ~torch.isfinite(points.square().sum(-1))
    squared_distance = points.new_ones(batch, num_points)
    centers = []
    for k in range(num_clusters):
        counter = index + num_points * (k + num_clusters * problem)
        waiting = -torch.log(uniform(counter, seed)) / squared_distance
        # A center gets the largest finite number and a point left out infinity, so that a center is drawn again only
        # if there is nothing else, and a point left out never.
        waiting = torch.where(squared_distance > 0, waiting, torch.finfo(torch.float32).max)
        waiting = waiting.clamp_max(torch.finfo(torch.float32).max).masked_fill(is_left_out, torch.inf)
        chosen = waiting.argmin(-1)
        center = points[problem.squeeze(-1), chosen]
        centers.append(center)
        distance = (points - center.unsqueeze(1)).square().sum(-1)
        squared_distance = distance if k == 0 else torch.minimum(squared_distance, distance)
    return torch.stack(centers, 1)
