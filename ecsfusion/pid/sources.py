"""Directions along which the rows of one side are no Gaussian: independent component analysis, which needs no label.

Bits, angles, places on a line and clusters show in the shape of what is there, however the columns mix them and whether
or not the label depends on one of them alone. A label that is a parity of three bits, or that compares an angle of one
modality with an angle of another, changes neither means nor covariances from class to class, so that no other search
finds its directions.

The search starts from the directions whose fourth moments are farthest from a Gaussian's (fourth-order blind
identification, Cardoso 1989) and takes a few fixed-point steps (FastICA, Hyvarinen 1999) that heavy tails hardly
disturb.
"""

import math

import torch
from torch import Tensor

from ecsfusion.pid.linear import LinearSums

MAX_SOURCES = 4
"""The most directions of one side."""
SOUGHT = 8
"""Directions that are followed; the best of them are kept."""
MAX_COLUMNS = 128
"""With more columns the fourth moments and their noise cost more than they tell."""
MIN_ROWS = 1.0
"""Rows for each pair of columns below which fourth moments are noise."""
ENOUGH_ROWS = 8
"""Rows for each pair of columns; more are not used."""
MIN_USED_ROWS = 4096
STEPS = 5
"""Of the fixed point."""
MIN_CONTRAST = 0.15
"""Times the root of columns by rows: the contrast that directions of a Gaussian do not reach."""
GAUSSIAN = 0.3745672
"""E[log cosh] of a standard normal."""
LEAST = 1e-6
"""Directions of less variance, as a share of the largest, are what rounding leaves."""
TINY = 1e-30


def has_enough_rows(side: LinearSums) -> bool:
    """Whether the shape of the rows can be told from noise."""
    rows, columns = side.rows.shape
    return columns <= MAX_COLUMNS and rows >= MIN_ROWS * columns**2


def source_coordinates(side: LinearSums) -> tuple[Tensor, ...]:
    """A side along its directions that are no Gaussian: (N, 1, q), each of variance 1 at most; all sets have the same.

    None on a CPU where there is no such direction. On a GPU, where no one waits to know, its coordinates are zeros.
    """
    if not has_enough_rows(side):
        return ()
    rows, columns = side.rows.shape
    used = side.rows[:: max(1, rows // max(ENOUGH_ROWS * columns**2, MIN_USED_ROWS))]
    center = used.mean(0)
    variance, directions = torch.linalg.eigh((used.T @ used / len(used) - center[:, None] * center).double())
    is_there = variance > LEAST * variance[-1]
    weights = torch.where(is_there, directions / variance.clamp_min(TINY).sqrt(), 0.0).float()
    white = torch.addmm(-(center @ weights), used, weights)
    far = white.square().sum(1, keepdim=True) - (columns + 2)
    moments, found = torch.linalg.eigh(((white * far).T @ white / len(used)).double())
    order = torch.where(is_there, moments, 0.0).abs().argsort(descending=True)
    along = found[:, order[: min(SOUGHT, columns)]].float()
    for _ in range(STEPS):
        bent = (white @ along).tanh_()
        new = white.T @ bent / len(used) - along * (1 - bent.square().mean(0))
        along = _orthogonal(new)
    size = (white @ along).abs_()
    # log cosh
    contrast = ((size + torch.log1p((-2 * size).exp_())).mean(0) - math.log(2) - GAUSSIAN).abs()
    number = min(MAX_SOURCES, along.shape[1])
    best = contrast.topk(number).indices
    is_source = contrast[best] > MIN_CONTRAST * (columns / len(used)) ** 0.5
    if used.device.type == "cpu":
        best = best[is_source]
        if not len(best):
            return ()
        is_source = is_source[is_source]
    chosen = weights @ along[:, best] * is_source
    return (torch.addmm(-(center @ chosen), side.rows, chosen).unsqueeze(1),)


def _orthogonal(vectors: Tensor) -> Tensor:
    """The closest orthonormal columns to those of a matrix (D, q), none before another."""
    wide = vectors.double()
    values, rotation = torch.linalg.eigh(wide.T @ wide)
    return (wide @ (rotation / values.clamp_min(TINY).sqrt()) @ rotation.T).to(vectors.dtype)
