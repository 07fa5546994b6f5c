"""Tables of clusters and label, and of half as many clusters, in plain PyTorch."""

import torch
from torch import Tensor

from .broja import LN2
from .match_prior import TINY

__all__ = ["cluster_tables"]

ROUNDS = 3
"""Of the search for half as many clusters."""


def half_of(num_clusters: int) -> int:
    """The number of the coarser clusters."""
    return max(num_clusters // 2, min(num_clusters, 2))


def cluster_tables(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Tables (B, 2, K, C) of sums (B, K, C) of posteriors by cluster, and their information in bits (B, 2).

    See the op of this name.
    """
    sums = sums.contiguous()
    share = sums.sum(1, keepdim=True)
    possible = (share > 0).all(0, keepdim=True)
    tables = torch.where(possible, sums * (share[:1] / share.clamp_min(TINY)), 0.0)
    tables = tables / tables.sum((1, 2), keepdim=True)
    both = torch.stack([tables, torch.zeros_like(tables)], 1)
    number = half_of(sums.shape[1])
    halved = both[:, 1, :number]
    roots, centers = _roots(tables), _roots(tables[:, :number])
    for turn in range(ROUNDS):
        nearest = (roots @ centers.mT).argmax(-1)
        if turn == 0:
            nearest[:, :number] = torch.arange(number, device=sums.device)
        halved.zero_().scatter_add_(1, nearest.unsqueeze(-1).expand_as(tables), tables)
        centers = _roots(halved)
    return both, (_bits(both.flatten(2)) - _bits(both.sum(2)) - _bits(both.sum(3)))


def _roots(tables: Tensor) -> Tensor:
    """Square roots of the posteriors of clusters: the smaller the product of two, the farther apart they are."""
    return (tables / tables.sum(-1, keepdim=True).clamp_min(TINY)).sqrt()


def _bits(p: Tensor) -> Tensor:
    return torch.xlogy(p, p).sum(-1) / LN2
