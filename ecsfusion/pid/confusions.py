"""Labels that are confused with others: a share of the rows of one class bear the name of another.

Cats that are called dogs, a grade that is one too low, names of a family in place of the species: then the rows of a
label are of several kinds, far apart, and no function of one linear score says so. Each row has a hidden class z, which
the columns tell, and its label comes from a table T of p(y | z), as if through a noisy channel (Lawrence and Schölkopf,
"Estimating a kernel Fisher discriminant in the presence of label noise", ICML 2001). All that lines tell of the classes
lies in their C logits, so the Gaussians of the hidden classes are fitted to held-out logits.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ecsfusion.pid.cholesky import factored, solved
from ecsfusion.pid.linear import TrainingSets, tells_more
from ecsfusion.pid.trial import some_rows

ROWS_PER_CLASS = 32
"""With fewer rows for each class, halves of them tell so much less that a limit for many rows cannot be told from
them."""
ROWS_PER_CELL = 8
"""With fewer for each cell of the table, its rows are alike but for the own class: all have a share of labels that
come from one distribution, as where rows without a label bear the name of one class."""
MAX_TRIED_ROWS = 4096
"""The most rows that show whether there are confusions,"""
MAX_FITTED_ROWS = 8192
"""and the most that they are fitted to."""
MIN_GAIN = 8.0
"""Log-likelihood, in nats, that the table must add by halves. Where there is nothing to tell it adds more than other
readouts do by luck, and confused labels add hundreds."""
FIRST_RATE = 0.3
"""The share of the labels that is taken to be drawn at random at first."""
MAX_RATE = 0.95
ITERATIONS = 15
"""Of expectation maximization."""
RIDGE = 1e-3
"""Share of the variance of the logits, averaged, that is added to it: one of C directions is empty."""
PRIOR_ROWS = 1.0
"""Rows of the prior p(y) that each row of the table starts with."""
TINY = 1e-12


class Channel(NamedTuple):
    """T fits of hidden classes, and of the labels that come from them."""

    weights: Tensor
    """(T, C, C): the scores of hidden classes are products of logits with it,"""
    offset: Tensor
    """(T, C): to which this is added."""
    table: Tensor
    """(T, C, C): p(y | z), a row for each hidden class."""


def confusion_readouts(
    logits: Tensor, sets: TrainingSets, known: list[Tensor], log_prior: Tensor
) -> list[Tensor]:
    """Held-out logits (2, N, C) of labels that come from hidden classes; none where they tell nothing new by halves.

    Args:
        logits: (2, N, C) held-out logits of a linear readout, by folds and by halves.
        sets: all training sets, one of which has read each row; none was fitted on a row that it reads.
        known: (2, N, C) each, held-out logits of other readouts.
        log_prior: (C,).
    """
    rows = min(len(sets.fold), MAX_FITTED_ROWS)
    if rows < ROWS_PER_CLASS * sets.num_classes:
        return []
    is_free = rows >= ROWS_PER_CELL * sets.num_classes**2
    centered = logits - logits.mean(2, keepdim=True)
    halves = sets.halves()
    places = some_rows(len(sets.fold), logits.device, MAX_TRIED_ROWS)
    trial = halves._replace(
        fold=sets.fold[places], labels=sets.labels[places], one_hot=sets.one_hot[places], cells=None
    )
    tried = centered[1, places]
    found = _read(tried, fit_channel(tried, trial, log_prior, is_free), trial, log_prior)
    tried_by_half = [part[1, places] for part in known]
    if not tells_more(tried_by_half, [found], sets.labels[places], log_prior, MIN_GAIN):
        return []
    fitted = some_rows(len(sets.fold), logits.device, MAX_FITTED_ROWS)
    readouts = []
    for own, every in zip(centered, (sets.folds(), halves), strict=True):
        part = every._replace(
            fold=sets.fold[fitted], labels=sets.labels[fitted], one_hot=sets.one_hot[fitted], cells=None
        )
        readouts.append(_read(own, fit_channel(own[fitted], part, log_prior, is_free), every, log_prior))
    return [torch.stack(readouts)]


def fit_channel(logits: Tensor, sets: TrainingSets, log_prior: Tensor, is_free: bool = True) -> Channel:
    """Fit Gaussians of one shape to logits (N, C), one for each hidden class, by expectation maximization.

    Args:
        logits: each row less its mean.
        sets: T training sets of these rows.
        log_prior: (C,).
        is_free: whether any class may bear the name of any other; else all have the same share of labels that come from
            one distribution.
    """
    classes = sets.num_classes
    member, prior = sets.member.T.contiguous(), log_prior.exp()
    size = member.sum(1).clamp_min(1)[:, None, None]
    moment = ((member.unsqueeze(2) * logits).mT @ logits / size).double()
    ridge = RIDGE * moment.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + TINY
    ridge = ridge * torch.eye(classes, dtype=moment.dtype, device=moment.device)
    # Hidden classes before rows: a softmax over a few of them is then one of long vectors.
    share = sets.one_hot.T * member.unsqueeze(1)
    one = torch.eye(classes, dtype=prior.dtype, device=prior.device)
    # (T, 1, 1) and (T, 1, C): a label is drawn at random so often, and then from these.
    rate = torch.full_like(size, FIRST_RATE)
    drawn = prior.expand(len(member), 1, -1)
    table = (1 - rate) * one + rate * drawn
    for iteration in range(ITERATIONS):
        number = share.sum(2, keepdim=True).clamp_min(0.5)
        means = share @ logits / number
        often = number / number.sum(1, keepdim=True)
        if iteration:
            counts = share @ sets.one_hot
            if is_free:
                table = (counts + PRIOR_ROWS * prior) / (number + PRIOR_ROWS)
            else:
                at_random = (counts * (rate * drawn / table.clamp_min(TINY))).sum(1, keepdim=True)
                at_random = at_random + PRIOR_ROWS * prior
                rate = (at_random.sum(2, keepdim=True) / size).clamp_max(MAX_RATE)
                drawn = at_random / at_random.sum(2, keepdim=True)
                table = (1 - rate) * one + rate * drawn
        wide = means.double()
        within = moment - wide.mT @ (wide * often) + ridge
        weights = solved(factored(within), wide.mT).to(logits.dtype)
        offset = often.log().squeeze(2) - 0.5 * (means.mT * weights).sum(1)
        scores = torch.baddbmm(offset.unsqueeze(2), weights.mT, logits.T.expand(len(member), -1, -1))
        scores += table.clamp_min(TINY).log()[:, :, sets.labels]
        share = torch.softmax(scores, 1) * member.unsqueeze(1)
    return Channel(weights, offset, table)


def _read(logits: Tensor, channel: Channel, sets: TrainingSets, log_prior: Tensor) -> Tensor:
    """Held-out logits (N, C) of the labels, from logits (N, C) of each row less their mean."""
    found = torch.empty_like(logits)
    for number in range(len(channel.table)):
        is_read = sets.reader[0] == number
        hidden = torch.addmm(channel.offset[number], logits[is_read], channel.weights[number])
        found[is_read] = torch.softmax(hidden, 1) @ channel.table[number]
    return found.clamp_min_(TINY).log_().sub_(log_prior)
