"""Whether further columns are worth a readout: a cheap one on some of the rows tells, before all folds are fitted."""

import torch
from torch import Tensor

from ecsfusion.pid.linear import LinearSums, TrainingSets, tells_more

MIN_ROWS = 256
"""With fewer rows, or rows of fewer sources, half of them do not show what is worth it."""
MAX_ROWS = 4096
"""The most rows of a trial; half of them are fitted on, and half judge."""
SHRINKAGE = (1e-3, 0.03, 0.3)
"""Shares of the identity in the covariance, all of which are pooled."""


def some_rows(number: int, device: torch.device, most: int = MAX_ROWS) -> Tensor:
    """The places (n,) int64 of at most so many rows for a trial, of all that are sorted by fold and class."""
    return torch.arange(0, number, max(1, -(-number // most)), device=device)


def told_by(columns: Tensor, sets: TrainingSets, places: Tensor) -> list[Tensor]:
    """Held-out logits (n, C) of some rows by discriminant analyses of other columns (n, D) of theirs, by halves.

    Args:
        columns: of these rows.
        sets: all training sets of all rows.
        places: (n,) int64, of these rows among all.
    """
    own = TrainingSets.make(sets.fold[places], sets.num_folds, sets.labels[places], sets.num_classes)
    sums = LinearSums.make(columns, own.halves())
    shrinkages = torch.tensor(SHRINKAGE, dtype=columns.dtype, device=columns.device)
    return [sums.read(*sums.discriminant(sums.factor(shrinkage)))[0] for shrinkage in shrinkages]


def is_worth(
    new: list[Tensor], known: list[Tensor], sets: TrainingSets, places: Tensor, log_prior: Tensor
) -> bool:
    """Whether held-out logits (n, C) of some rows tell what is not known of them.

    Args:
        new: of the rows at `places`.
        known: (2, N, C) each, of all rows; the second by halves.
        sets: all training sets.
        places: (n,) int64.
        log_prior: (C,).
    """
    return tells_more([part[1, places] for part in known], new, sets.labels[places], log_prior)
