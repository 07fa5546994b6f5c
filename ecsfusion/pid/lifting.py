"""Directions of tiny variance, made large enough to be read.

Standardized columns may still be mixtures of directions whose variances differ by many orders of magnitude, as those of
an embedding after a linear map. What the smallest of them know would drown in the shrinkage of covariances and in
float32. They are lifted to a share of the variance of a column that every readout resolves; other directions, and the
axes, stay as they are.
"""

import torch
from torch import Tensor

LEAST_VARIANCE = 1e-3
"""Directions of less variance are lifted to it; that of a column is 1."""
ROUNDING = 1e-12
"""Directions of less variance are what rounding leaves of columns that are copies or sums of others."""
MAX_COLUMNS = 256
"""Of more columns the covariance in float64 and its directions would cost too much beside the readouts."""
MIN_ROWS_PER_COLUMN = 4
"""With fewer rows per column some directions have little variance by chance."""
ENOUGH_ROWS_PER_COLUMN = 8
ENOUGH_VALUES = 1 << 18
"""The covariance is taken of so many rows per column, or of so many values where these are more rows."""


def lifted(rows: Tensor) -> Tensor:
    """Standardized rows (N, D) float32 without directions of variance between `ROUNDING` and `LEAST_VARIANCE`."""
    number, columns = rows.shape
    if columns > MAX_COLUMNS or number < MIN_ROWS_PER_COLUMN * columns:
        return rows
    enough = max(ENOUGH_ROWS_PER_COLUMN * columns, ENOUGH_VALUES // columns)
    some = rows[:: max(1, number // enough)].double()
    variance, directions = torch.linalg.eigh(some.T @ some / len(some))
    is_small = (variance > ROUNDING) & (variance < LEAST_VARIANCE)
    if not bool(is_small.any()):
        return rows
    more = torch.where(is_small, (LEAST_VARIANCE / variance.clamp_min(ROUNDING)).sqrt() - 1, 0.0)
    return (rows.double() + (rows.double() @ directions * more) @ directions.T).float()
