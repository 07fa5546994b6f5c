"""Smooth readouts: what curves, steps and products tell, where the truth is an integral over one number a modality."""

import numpy as np
import pytest
import torch

from ecsfusion.pid.estimate import fast_pid
from ecsfusion.pid.linear import TrainingSets
from ecsfusion.pid.smooth import is_worth, smooth_readout, waves

FOLDS = 6


def hidden(values, columns, random_seed):
    """One number (N,) in the first of so many columns of noise, rotated."""
    generator = np.random.default_rng(random_seed)
    rows = np.concatenate([values[:, None], generator.normal(size=(len(values), columns - 1))], 1)
    return (rows @ np.linalg.qr(generator.normal(size=(columns, columns)))[0]).astype(np.float32)


def entropy(share):
    return -(share * np.log2(np.clip(share, 1e-12, None))).sum(-1)


def knows(posterior):
    """I in bits of posteriors (n, 2) of equally likely points."""
    return entropy(posterior.mean(0)) - entropy(posterior).mean()


def yes(logit):
    share = 1 / (1 + np.exp(-logit))
    return np.stack([1 - share, share], -1)


@pytest.mark.parametrize(
    "logit",
    [lambda a: 3 * (a**2 - 1), lambda a: 4 * np.where(np.abs(a - 0.4) < 0.5, 1.0, -1.0)],
    ids=["ring", "steps"],
)
def test_what_a_curve_tells_is_known_to_the_truth(logit):
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=(2, 3000))
    labels = (generator.random(3000) < yes(logit(a))[:, 1]).astype(np.int64)
    pid = fast_pid([hidden(a, 6, 1), hidden(b, 4, 2)], labels)
    truth = knows(yes(logit(np.random.default_rng(0).normal(size=400_000))))
    assert float(pid.mutual_information[0]) == pytest.approx(truth, abs=0.06)


def sets_of(labels, classes):
    fold = torch.arange(len(labels)) % FOLDS
    order = (fold * classes + labels).argsort(stable=True)
    return order, TrainingSets.make(fold[order], FOLDS, labels[order], classes)


def test_rows_are_read_by_a_fit_without_them():
    """A label that no coordinate tells stays untold, however flexible the fit is."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (600,), generator=generator)
    order, sets = sets_of(labels, 3)
    points = torch.randn(600, 1, 4, generator=generator)
    log_prior = torch.full((3,), -np.log(3.0))
    logits = smooth_readout(points, sets.folds(), log_prior, 0)
    told = (logits + log_prior).log_softmax(-1).gather(1, labels[order, None]).mean()
    assert told < log_prior[0]
    known = torch.zeros(1, 600, 3)
    assert not is_worth(points, known, sets.halves(), log_prior, 0)


def test_a_product_is_worth_a_readout():
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(800, 1, 3, generator=generator)
    labels = (points[:, 0, 0] * points[:, 0, 1] > 0).long()
    order, sets = sets_of(labels, 2)
    points = points[order]
    log_prior = torch.full((2,), -np.log(2.0))
    assert is_worth(points, torch.zeros(1, 800, 2), sets.halves(), log_prior, 0)
    logits = smooth_readout(points, sets.folds(), log_prior, 0)
    assert float((logits.argmax(1) == labels[order]).float().mean()) > 0.85


def test_waves_are_drawn_by_the_seed():
    one, other = waves(4, 0, torch.device("cpu")), waves(4, 1, torch.device("cpu"))
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[0], waves(4, 0, torch.device("cpu"))[0])
    widths = one[0].std(dim=(0,)).view(2, -1).mean(1)
    assert widths[1] / widths[0] == pytest.approx(3, rel=0.3)
