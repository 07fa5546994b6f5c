"""What the rows of one side look like, whatever the label: where they vary most, and where they are no Gaussian.

Bits, angles, places on a line and clusters show in the shape of what is there, however the columns mix them, and
whether or not the label depends on one of them alone. A label that is a parity of three bits, or that compares an angle
of one modality with an angle of another, changes neither means nor covariances from class to class, so that no search
by the label finds its directions. Independent component analysis does: it starts from the directions whose fourth
moments are farthest from a Gaussian's (Cardoso 1989, "Source separation using higher order moments") and takes a few
fixed-point steps that heavy tails hardly disturb (FastICA, Hyvarinen 1999).
"""

import math
from typing import NamedTuple

import torch
from ecsfusion_kernels import uniform
from torch import Tensor

LEADING_DIRECTIONS = 3
MANY_LEADING = 9
"""Directions of the largest variance along which kinds of things lie apart."""
MAX_SOURCES = 4
"""The most directions that are no Gaussian."""
FOLLOWED = 8
"""Directions that the fixed point follows; the best of them are kept."""
ROWS_PER_PAIR = 5
"""Rows for each pair of directions; with fewer than `MIN_ROWS_PER_PAIR` for all columns, sources are sought among the
directions of the largest variance."""
MIN_ROWS_PER_PAIR = 1
"""Rows for each pair of directions, without which fourth moments are noise."""
FEW_COLUMNS = 128
MAX_DIRECTIONS = (64, 24)
"""The most directions in which sources are sought, of few columns and of more, whose products cost,"""
MAX_ROWS = (10_240, 2048)
"""and the most rows."""
ITERATIONS = 2
"""Of the search for them."""
STEPS = 5
"""Of the fixed point."""
MAX_TOLD = 0.5
"""The share of the variance of a source that lies between the classes, beyond which the classes are its shape."""
MIN_CONTRAST = 0.15
"""Times the root of directions by rows: a contrast that directions of a Gaussian do not reach."""
GAUSSIAN = 0.3745672
"""E[log cosh] of a standard normal."""
LEAST_VARIANCE = 1e-6
"""Directions of less variance, as a share of the largest, are what rounding leaves."""
MIN_VARIANCE = 0.5
"""Of a direction that was scaled to variance 1."""
TINY = 1e-12


class Shape(NamedTuple):
    """Coordinates of one side; no label is needed for them, so that those of all training sets are the same."""

    leading: Tensor
    """(N, 1, q + 1): along the directions of the largest variance, and the length of the rows."""
    spread: Tensor
    """(N, 1, q): along more directions of the largest variance, in units of the columns."""
    sources: tuple[Tensor, ...]
    """(N, 1, q) along directions that are no Gaussian, of variance 1; none where there are none."""


def shape_of(rows: Tensor, one_hot: Tensor) -> Shape:
    """The shape of standardized rows (N, D).

    Where the classes (N, C) are all that there is to see, there are no sources: other readouts have their directions.
    """
    is_wide = rows.shape[1] > FEW_COLUMNS
    used = rows[:: max(1, -(-len(rows) // MAX_ROWS[is_wide]))].contiguous()
    number = min(rows.shape[1], MAX_DIRECTIONS[is_wide])
    if len(used) < MIN_ROWS_PER_PAIR * number**2:
        number = math.isqrt(len(used) // ROWS_PER_PAIR)
    directions = leading_directions(used, max(number, MANY_LEADING))
    sources = source_directions(used @ directions[:, :number]) if number else None
    leading = _leading_coordinates(rows, directions[:, :LEADING_DIRECTIONS]).unsqueeze(1)
    spread = _along(rows, directions[:, :MANY_LEADING]).unsqueeze(1)
    if sources is None:
        return Shape(leading, spread, ())
    along = _along(rows, directions[:, :number] @ sources)
    is_news = bool((_told(along, one_hot) < MAX_TOLD).any())
    return Shape(leading, spread, (along.unsqueeze(1),) if is_news else ())


def _told(along: Tensor, one_hot: Tensor) -> Tensor:
    """The share (q,) of the variance of coordinates (N, q) that lies between the classes (N, C); 1 without variance."""
    share = one_hot.mean(0)[:, None]
    mean = along.mean(0)
    means = (one_hot.T @ along / len(along)) / share.clamp_min(TINY) - mean
    variance = along.square().mean(0) - mean.square()
    return torch.where(variance > TINY, (share * means.square()).sum(0) / variance.clamp_min(TINY), 1.0)


def leading_directions(rows: Tensor, number: int) -> Tensor:
    """The directions (D, q) of the largest variance of standardized rows (N, D), largest first; orthonormal."""
    dimension = rows.shape[1]
    number = min(number, dimension)
    vectors = torch.eye(dimension, dtype=rows.dtype, device=rows.device)
    if number < dimension:
        places = torch.arange(dimension * number, device=rows.device)
        vectors = torch.linalg.qr(uniform(places, 11).view(dimension, number) - 0.5).Q
        for _ in range(ITERATIONS):
            vectors = torch.linalg.qr((_along(rows, vectors).T @ rows).T).Q
    along = _along(rows, vectors) if number < dimension else rows
    rotation = torch.linalg.eigh((along.T @ along).double()).eigenvectors.flip(-1)
    return vectors @ rotation.to(rows.dtype)


def _along(rows: Tensor, directions: Tensor) -> Tensor:
    """The product of rows (N, D) with directions (D, q); with few columns it is read fastest from the left."""
    return (directions.T.contiguous() @ rows.T).T


def _leading_coordinates(rows: Tensor, directions: Tensor) -> Tensor:
    """Rows (N, D) along directions (D, q), and the logarithm of their length, each of variance 1: (N, q + 1)."""
    along = rows @ directions.T.contiguous().T
    along = along / along.std(0, keepdim=True, correction=0).clamp_min(TINY)
    length = torch.linalg.vector_norm(rows, dim=1).clamp_min(TINY).log()
    length = (length - length.mean()) / length.std(correction=0).clamp_min(1e-6)
    return torch.cat([along, length[:, None]], 1)


def source_directions(points: Tensor) -> Tensor | None:
    """The directions (d, q) of points (n, d) that are no Gaussian, each scaled to variance 1.

    None where there are none.
    """
    number = len(points)
    center = points.mean(0)
    variance, directions = torch.linalg.eigh((points.T @ points / number - center[:, None] * center).double())
    is_there = variance > LEAST_VARIANCE * variance[-1]
    weights = torch.where(is_there, directions / variance.clamp_min(TINY).sqrt(), 0.0).to(points.dtype)
    white = torch.addmm(-(center @ weights), points, weights)
    # Columns that are constant or copies of others are no directions.
    rank = is_there.sum().to(points.dtype)
    far = white.square().sum(1, keepdim=True) - (rank + 2)
    moments, found = torch.linalg.eigh(((white * far).T @ white / number).double())
    order = moments.abs().argsort(descending=True)
    along = found[:, order[:FOLLOWED]].to(points.dtype).T
    for _ in range(STEPS):
        bent = (along @ white.T).tanh_()
        along = _orthogonal(bent @ white / number - along * (1 - bent.square().mean(1, keepdim=True)))
    size = (along @ white.T).abs_()
    # log cosh
    contrast = ((size + torch.log1p((-2 * size).exp_())).mean(1) - math.log(2) - GAUSSIAN).abs()
    # Where rounding is all that is left of a direction, there is none.
    contrast *= size.square().mean(1) > MIN_VARIANCE
    best = contrast.topk(min(MAX_SOURCES, len(contrast))).indices
    is_source = contrast[best] > MIN_CONTRAST * (rank / number).sqrt()
    best = best[is_source]
    return weights @ along[best].T if len(best) else None


def _orthogonal(vectors: Tensor) -> Tensor:
    """The closest orthonormal rows to those of a matrix (q, d), none before another."""
    wide = vectors.double()
    values, rotation = torch.linalg.eigh(wide @ wide.T)
    return (rotation @ ((rotation / values.clamp_min(TINY).sqrt()).T @ wide)).to(vectors.dtype)
