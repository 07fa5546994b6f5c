"""Readouts of a few columns by their nearness to landmarks: islands, spirals and boards, which no direction shows.

Of a few columns every row is described by its nearness exp(-|x - l|^2 / 2 h^2) to some rows, the landmarks (the
Nystroem method, Williams and Seeger 2001, without its rotation). A linear readout of these columns is a readout by a
Gaussian kernel. Which widths h tell anything is tried on some of the rows first.
"""

import torch
from ecsfusion_kernels import uniform
from torch import Tensor

from ecsfusion.pid.linear import LinearSums, TrainingSets, linear_readouts
from ecsfusion.pid.trial import is_worth, some_rows, told_by

MAX_COLUMNS = 32
"""Of more columns all rows are about equally far from each other."""
MAX_LANDMARKS = 192
ROWS_PER_LANDMARK = 4
WIDTHS = (1.0, 0.5, 0.25)
"""In median distances of rows."""
MAX_SAMPLED_ROWS = 512
"""Rows between which distances are sampled."""


def landmark_readouts(
    rows: Tensor, sets: TrainingSets, known: list[Tensor], log_prior: Tensor, random_seed: int
) -> list[Tensor]:
    """Held-out logits (2, N, C) by nearness to landmarks, or none where by halves they tell nothing new.

    Args:
        rows: (N, D) standardized rows.
        sets: all training sets.
        known: (2, N, C) each, held-out logits of other readouts.
        log_prior: (C,).
        random_seed: of the choice of landmarks.
    """
    if rows.shape[1] > MAX_COLUMNS:
        return []
    number = min(MAX_LANDMARKS, len(rows) // ROWS_PER_LANDMARK)
    chosen = uniform(torch.arange(len(rows), device=rows.device), random_seed + 29).argsort()
    landmarks = rows[chosen[:number]]
    sample = rows[chosen[:MAX_SAMPLED_ROWS]]
    apart = torch.cdist(sample, sample).flatten()
    unit = apart.kthvalue(1 + len(apart) // 2).values.clamp_min(1e-6)
    places = some_rows(len(rows), rows.device)
    distance = torch.cdist(rows[places], landmarks)
    found: list[Tensor] = []
    for width in WIDTHS:
        new = told_by(_nearness(distance, width * unit), sets, places)
        if is_worth(new, [*known, *found], sets, places, log_prior):
            columns = _nearness(torch.cdist(rows, landmarks), width * unit)
            found += linear_readouts(LinearSums.make(columns, sets), log_prior).logits
    return found


def _nearness(distance: Tensor, width: Tensor) -> Tensor:
    """exp(-distance^2 / 2 width^2)."""
    return (-0.5 * (distance / width).square()).exp()
