"""Fewer rows than columns, in coordinates of the space that they span.

What reads embeddings here sees their rows through inner products alone, where columns are many. So N rows of more than
N columns lose nothing by a rotation into N dimensions, and covariances of N by N values take the place of D by D: of
300 rows with the 8192 columns of a language model, less than a thousandth.
"""

import torch
from torch import Tensor

ROUNDING = 1e-9
"""Added to the inner products, as a share of the mean square of a row, so that rows may repeat."""


def in_their_span(rows: Tensor) -> Tensor:
    """Rows (N, D) float32, or, where D is larger than N, N coordinates of each with the same inner products."""
    number, columns = rows.shape
    if columns <= number:
        return rows
    products = rows.double() @ rows.double().T
    products.diagonal().add_(ROUNDING * products.diagonal().mean() + torch.finfo(torch.float64).tiny)
    return torch.linalg.cholesky_ex(products).L.float()
