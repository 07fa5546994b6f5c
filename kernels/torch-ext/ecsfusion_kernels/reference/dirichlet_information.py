"""Evidence and entropy of labels under Dirichlet priors of a grid of concentrations, in plain PyTorch."""

import torch
from torch import Tensor

__all__ = ["dirichlet_information"]

TINY = 1e-300
CPU_ELEMENTS = 1 << 18
"""Elements (concentrations x tables x cells) that are computed at a time on the CPU: they fit into its cache."""
GPU_ELEMENTS = 1 << 22
"""The same on a GPU: few launches, with 32 MB per array."""


def dirichlet_information(counts: Tensor, base: Tensor, grid: Tensor) -> Tensor:
    """(3, G, B) of counts and p(y | x), (B, X, C) each, and concentrations (G,). See the op of this name."""
    per_cell = counts.sum(-1)
    evidence, entropy, share = [], [], []
    max_elements = CPU_ELEMENTS if counts.device.type == "cpu" else GPU_ELEMENTS
    for part in grid.split(max(1, max_elements // max(counts.numel(), 1))):
        a = part[:, None, None]
        cell = per_cell + a
        weight = a.unsqueeze(-1) * base
        posterior = counts + weight
        seen = torch.where(counts > 0, torch.lgamma(posterior) - torch.lgamma(weight.clamp_min(TINY)), 0.0)
        evidence.append((torch.lgamma(a) - torch.lgamma(cell)).sum(-1) + seen.sum((-2, -1)))
        expected = (posterior * torch.digamma(posterior + 1)).sum(-1) / cell
        entropies = torch.digamma(cell + 1) - expected
        entropy.append((per_cell * entropies).sum(-1))
        share.append((per_cell / cell).sum(-1) * part.unsqueeze(-1))
    return torch.stack([torch.cat(parts) for parts in (evidence, entropy, share)])
