"""Projection of embeddings on a few directions, in plain PyTorch."""

import torch
from torch import Tensor

from ..precision import in_full_precision

__all__ = ["project", "scale_rows"]


@in_full_precision
def project(embeddings: Tensor, basis: Tensor, offset: Tensor, radius: Tensor | float = 0.0) -> Tensor:
    """Scale each row into the unit ball, express it in `basis`: x / sqrt(|x|^2 + radius^2) @ basis - offset.

    A radius of 0 is L2 normalization. With a positive radius the order of the norms is kept: the map
    from R^D to the open unit ball is then one to one, linear for rows far shorter than the radius, and bounded for
    outliers.

    Args:
        embeddings: (N, D), floating point of any precision; computed in float32 (float64 for float64).
        basis: (D, d), one direction per column.
        offset: (d,), subtracted at the end: the projection of the mean.
        radius: a number, or a tensor of no dimensions.

    Returns:
        (N, d) float32.
    """
    rows = scale_rows(embeddings, radius)
    return (rows @ basis.to(rows.dtype) - offset.to(rows.dtype)).to(torch.float32)


def scale_rows(embeddings: Tensor, radius: Tensor | float = 0.0) -> Tensor:
    """Rows x / sqrt(|x|^2 + radius^2), (N, D) float32 (float64 for float64); a row of zeros stays zero."""
    rows = embeddings if embeddings.dtype == torch.float64 else embeddings.to(torch.float32)
    # Dividing by the largest entry first keeps the squares finite for any finite row.
    largest = rows.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    unit = rows / largest
    length = torch.sqrt(unit.square().sum(-1, keepdim=True) + (radius / largest).square())
    return unit / length.clamp_min(1e-30)
