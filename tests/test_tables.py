"""Tables of soft clusters: what blurred counts say of rows between clusters."""

import pytest
import torch
from known_answers import assert_consistent
from sorted_sets import sets_of

from ecsfusion import fast_pid
from ecsfusion.pid.soft_tables import table_readout

ROWS, KINDS = 12_000, 5


def shares_of(points, spread, sizes):
    """The true shares (N, 1, K) of points (N,) in kinds of some sizes, so many standard deviations apart."""
    centers = spread * torch.arange(KINDS)
    return (points[:, None] * centers - 0.5 * centers.square() + sizes.log()).softmax(1).unsqueeze(1)


def readout(shares, labels, classes):
    """The posterior (N, C) of a table, and the labels, in the same order of rows."""
    order, sets = sets_of(labels, seed=9)
    log_prior = sets.one_hot.mean(0).log()
    logits = table_readout([share[order] for share in shares], sets.folds(), log_prior)
    back = order.argsort()
    return (logits + log_prior).exp()[back]


def told(posterior, labels):
    """The mean of log2 q(y | x), in bits."""
    return float(posterior.gather(1, labels[:, None]).log2().mean())


@pytest.mark.parametrize("spread", [1.0, 2.0, 6.0])
def test_of_one_side_the_posterior_is_that_of_a_mixture_of_kinds(spread):
    generator = torch.Generator().manual_seed(0)
    # Of each class the shares of the kinds, which overlap.
    weights = torch.tensor([[0.6, 0.0, 0.4, 0.0, 0.0], [0.0, 0.5, 0.0, 0.5, 0.0], [0.1, 0.0, 0.0, 0.0, 0.9]])
    labels = torch.randint(3, (ROWS,), generator=generator)
    kinds = weights[labels].multinomial(1, generator=generator)[:, 0]
    points = spread * kinds + torch.randn(ROWS, generator=generator)
    sizes = weights.mean(0)
    share = shares_of(points, spread, sizes)
    found = readout([share], labels, 3)
    right = share[:, 0] / sizes @ weights.T
    right = right / right.sum(1, keepdim=True)
    assert (found.sum(1) - 1).abs().max() < 1e-4
    # Counts alone are 0.09 bits, 0.15 and 0.005 behind.
    assert told(found, labels) > told(right, labels) - 0.02


@pytest.mark.parametrize("spread", [1.0, 2.0, 6.0])
def test_of_two_sides_the_posterior_is_whether_they_show_the_same_kind(spread):
    generator = torch.Generator().manual_seed(1)
    first = torch.randint(KINDS, (ROWS,), generator=generator)
    labels = torch.randint(2, (ROWS,), generator=generator)
    second = torch.where(labels == 1, first, torch.randint(KINDS, (ROWS,), generator=generator))
    sizes = torch.full((KINDS,), 1 / KINDS)
    shares = [
        shares_of(spread * kinds + torch.randn(ROWS, generator=generator), spread, sizes)
        for kinds in (first, second)
    ]
    found = readout(shares, labels, 2)
    same = KINDS * (shares[0] * shares[1]).sum((1, 2))
    right = torch.stack([1 / (1 + same), same / (1 + same)], 1)
    # Counts alone are 0.05 bits, 0.07 and 0.01 behind.
    assert told(found, labels) > told(right, labels) - 0.02


def objects(rows, columns, strength, random_seed, number=10):
    """Two views of an object each, of the same kind in half of the rows, labels, and S in bits by true posteriors."""
    generator = torch.Generator().manual_seed(random_seed)
    means = strength / columns**0.5 * torch.randn(2, number, columns, generator=generator)
    labels = torch.randint(2, (rows,), generator=generator)
    first, anew = torch.randint(number, (2, rows), generator=generator)
    kinds = torch.stack([first, torch.where(labels == 1, first, anew)])
    views = torch.stack([m[k] for m, k in zip(means, kinds, strict=True)])
    views += torch.randn(views.shape, generator=generator)
    scores = views @ means.mT - 0.5 * means.square().sum(2)[:, None]
    same = number * scores.double().softmax(2).prod(0).sum(1)
    posterior = torch.stack([1 / (1 + same), same / (1 + same)], 1)
    return (
        views,
        labels,
        1 + float(torch.special.xlogy(posterior, posterior).sum(1).mean() / torch.tensor(2).log()),
    )


@pytest.mark.parametrize(("rows", "columns"), [(3000, 64), (4000, 128)])
def test_whether_both_show_the_same_kind_of_object_is_synergy(rows, columns):
    """Kinds are not along the directions of the label: there is none in one view."""
    (first, second), labels, right = objects(rows, columns, 5.0, 0)
    assert right > 0.6
    found = fast_pid([first, second], labels)
    assert_consistent(found)
    assert float(found.synergy) > 0.8 * right
    low, high = found.synergy_interval.tolist()
    assert low - 0.03 <= right <= high + 0.03
    assert float(found.mutual_information.max()) < 0.03
