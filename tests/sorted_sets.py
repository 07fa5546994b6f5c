"""Training sets of rows that are sorted by fold and class, as the estimate sorts them."""

import torch

from ecsfusion.pid.linear import TrainingSets

FOLDS = 6


def sets_of(labels, seed=0):
    """Training sets of rows that are sorted by fold and class, and the order of the rows."""
    generator = torch.Generator().manual_seed(seed)
    fold = torch.randint(FOLDS, labels.shape, generator=generator)
    order = (fold * (int(labels.max()) + 1) + labels).argsort(stable=True)
    return order, TrainingSets.make(fold[order], FOLDS, labels[order], int(labels.max()) + 1)
