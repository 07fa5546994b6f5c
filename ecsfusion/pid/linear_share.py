"""How much of one embedding another one tells, beyond what the label tells of both: a held-out linear prediction.

With h = what the label leaves of an embedding (its distance from the mean of its class), the share is

    R^2 = 1 - sum |h_target - W h_source|^2 / sum |h_target|^2

on rows that the ridge regression W did not see. Two encoders of one input come near to 1. Clusters do not show this:
what two of them share, in bits, is a small part of what they hold even for copies.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_FOLDS = 4
MAX_ROWS = 1000
"""More rows would tell the same; the regression takes the cube of their number."""
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths of the ridge, in units of the mean square of a row; the best counts."""


def linear_share(target: Tensor, source: Tensor, labels: Tensor, groups: Tensor | None = None) -> float:
    """The share of what one embedding holds beyond the label that another one tells.

    Args:
        target: (N, D1), of which the share is told.
        source: (N, D2), which tells it.
        labels: (N,) class indices, or (N, L) labels or targets, whose linear part is then taken away.
        groups: (N,) int64 numbers of the source of each row, which a fold does not split; None where rows stand alone.

    Returns:
        R^2, between 0 and 1. It is 0 where there are fewer than two rows or groups, or nothing is left to tell.
    """
    own = torch.arange(len(labels)) if groups is None else groups.unique(return_inverse=True)[1]
    # Rows may come sorted, and a seed of its own keeps the random numbers of the run as they are.
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(labels), generator=generator)[:MAX_ROWS]
    fold = (torch.randperm(int(own.max()) + 1, generator=generator) % NUM_FOLDS)[own[chosen]]
    y = labels[chosen]
    told = (
        torch.nn.functional.one_hot(y).double() if y.ndim == 1 and not y.is_floating_point() else y.double()
    )
    basis = torch.cat([torch.ones(len(y), 1, dtype=torch.float64), told.reshape(len(y), -1)], dim=1)
    # So few rows are compared on the CPU, wherever all of them are.
    h, s = (_rest(x[chosen].cpu().double(), basis) for x in (target, source))
    spread = s.std(0)
    s = s / spread.where(spread > 0, 1.0)
    total, folds = float(h.square().sum()), fold.unique()
    if len(folds) < 2 or not total > 0 or not bool(s.any()):
        return 0.0
    products = s @ s.T
    errors = torch.zeros(len(RIDGES), dtype=torch.float64)
    for k in folds:
        train, test = fold != k, fold == k
        values, vectors = torch.linalg.eigh(products[train][:, train])
        left, right = products[test][:, train] @ vectors, vectors.T @ h[train]
        for i, ridge in enumerate(RIDGES):
            strength = ridge * values.mean().clamp_min(torch.finfo(torch.float64).tiny)
            errors[i] += (h[test] - left @ (right / (values.clamp_min(0) + strength)[:, None])).square().sum()
    return max(0.0, 1 - float(errors.min()) / total)


def _rest(x: Tensor, basis: Tensor) -> Tensor:
    """What is left of the columns of x (N, D) without their linear part in a basis (N, L), which may have copies."""
    u, scale, _ = torch.linalg.svd(basis, full_matrices=False)
    u = u[:, scale > 1e-10 * scale[0]]
    rest = x - u @ (u.T @ x)
    # What rounding leaves of a column that the basis tells is nothing.
    return rest.where(rest.norm(dim=0) > 1e-10 * x.norm(dim=0), 0.0)
