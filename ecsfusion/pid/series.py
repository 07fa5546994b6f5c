"""Whether rows that follow each other are alike beyond their class, as in recordings: no independent evidence."""

from collections.abc import Mapping

import torch
from torch import Tensor

MAX_PAIRS = 2048
"""The pairs of neighbours that are looked at, spread over all rows."""
MIN_PAIRS = 64
"""With fewer pairs of one class nothing is said."""
SURE = 6.0
"""How many standard errors a correlation, or a share of neighbours of one class, must be beyond chance,"""
MIN_CORRELATION = 0.02
"""and how large the correlation must be: of 64 columns as little as 0.04 can be a quarter of a bit."""


def alike_neighbours(embeddings: Mapping[str, Tensor], labels: Tensor) -> tuple[str, float] | None:
    """The first modality in which neighbours are alike beyond their class, and their correlation there.

    Only where neighbours also tend to be of one class: otherwise who recognizes a neighbour learns no label by it.

    Args:
        embeddings: matrices (N, D_m) by name.
        labels: (N,) int64 classes.
    """
    num_pairs = min(len(labels) - 1, MAX_PAIRS)
    if num_pairs < MIN_PAIRS:
        return None
    first = torch.arange(num_pairs, device=labels.device) * (len(labels) - 1) // num_pairs
    classes = torch.stack([labels[first], labels[first + 1]]).cpu()
    is_same = classes[0] == classes[1]
    shares = torch.bincount(classes.flatten()).double() / classes.numel()
    chance = float((shares**2).sum())
    if float(is_same.double().mean()) <= chance + SURE * (chance * (1 - chance) / num_pairs) ** 0.5:
        return None
    pairs = {
        name: torch.stack([rows[first], rows[first + 1]]).cpu().double() for name, rows in embeddings.items()
    }
    # Rows that are equal in all that there is stay in one fold in any case.
    is_equal = torch.stack([(one == other).all(1) for one, other in pairs.values()]).all(0)
    is_same &= ~is_equal
    same = int(is_same.sum())
    if same < MIN_PAIRS:
        return None
    for name, rows in pairs.items():
        products = _standardized(rows.flatten(0, 1), classes.flatten()).unflatten(0, (2, -1)).prod(0)
        alike = products[is_same].mean(1)
        correlation = float(alike.mean())
        if correlation > max(MIN_CORRELATION, SURE * float(alike.std()) / same**0.5):
            return name, correlation
    return None


def _standardized(rows: Tensor, classes: Tensor) -> Tensor:
    """Rows (N, D) about the means of their classes (N,), in units of each column; 0 in columns without a spread."""
    sums = rows.new_zeros(int(classes.max()) + 1, rows.shape[1]).index_add_(0, classes, rows)
    residual = rows - (sums / torch.bincount(classes).clamp_min(1)[:, None])[classes]
    deviation = residual.std(0, correction=0)
    # What rounding leaves of a column that says the class and no more is no spread.
    is_spread = deviation > 1e-6 * rows.abs().amax(0)
    return torch.where(is_spread, residual / deviation, 0.0)
