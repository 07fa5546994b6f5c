"""A greedy soup: the average of the weights of those epochs of a run that make it better on validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def greedy_soup(
    epochs: Sequence[tuple[float, Weights]], judge: Callable[[Weights], float]
) -> dict[str, Tensor]:
    """Average the weights of some epochs (model soups, Wortsman et al. 2022, arXiv 2203.05482, the greedy recipe).

    The epochs are tried from the best to the worst; one stays in the average if the average with it is not worse on
    validation than without it. In the paper the models are of several runs with other settings; here they are the
    epochs of one run, so that the budget is that of joint training.

    Args:
        epochs: validation accuracy and weights of each epoch. Ties go to the earlier one.
        judge: the validation accuracy of weights.

    Returns:
        The averaged weights. Of tensors of whole numbers, such as counts of batches, those of the best epoch.

    Raises:
        ValueError: there is no epoch.
    """
    if not epochs:
        raise ValueError("there is no epoch to average; give at least one.")
    order = sorted(range(len(epochs)), key=lambda place: -epochs[place][0])
    best, *others = [epochs[place][1] for place in order]
    # The judge's own value, so that equals are equal to the last digit.
    chosen, accuracy, soup = [best], judge(best), dict(best)
    for weights in others:
        tried = average([*chosen, weights])
        found = judge(tried)
        if found >= accuracy:
            chosen, accuracy, soup = [*chosen, weights], found, tried
    return soup


def average(several: Sequence[Weights]) -> dict[str, Tensor]:
    """The mean of each tensor; of tensors of whole numbers the first."""
    return {
        name: torch.stack([weights[name] for weights in several]).mean(dim=0)
        if value.is_floating_point()
        else value
        for name, value in several[0].items()
    }
