"""The pool of readouts against a general optimizer of the same convex problem."""

import math

import numpy as np
import pytest
import torch
from ecsfusion_kernels.reference.pool_weights import WEIGHT_COST
from scipy.optimize import minimize
from scipy.special import log_softmax

from ecsfusion.pid.pooling import Pool, pool, pool_with_part


def readouts(rows, classes, number, random_seed, scale=1.0):
    """Logits of readouts of different quality, labels, and the logarithm of the classes' shares."""
    generator = np.random.default_rng(random_seed)
    labels = generator.choice(classes, rows, p=generator.dirichlet(np.full(classes, 3.0)))
    common = generator.normal(size=(rows, classes))
    parts = [
        scale * (quality * np.eye(classes)[labels] + 0.4 * common + generator.normal(size=(rows, classes)))
        for quality in np.linspace(0.0, 1.5, number)
    ]
    share = (np.bincount(labels, minlength=classes) + 1.0) / (rows + classes)
    return (
        [torch.from_numpy(part).float() for part in parts],
        torch.from_numpy(labels),
        torch.from_numpy(np.log(share)).float(),
    )


def pool_of(logits, labels, log_prior):
    """The pool of a list of readouts (N, C)."""
    found = pool(torch.stack(logits).unsqueeze(0), labels, log_prior)
    return Pool(found.log_posterior[0], found.weights[0])


def loss_of(weights, logits, labels, log_prior):
    """The log-loss, and what the weights cost."""
    parts = np.stack([part.double().numpy() for part in logits])
    scores = np.tensordot(weights, parts, 1)
    size = np.sqrt(np.square(parts - parts.mean(-1, keepdims=True)).mean((1, 2))).clip(max=1.0)
    cost = WEIGHT_COST / len(labels) * (size * weights).sum()
    return cost - log_softmax(scores + log_prior.double().numpy(), -1)[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
@pytest.mark.parametrize(("rows", "classes", "number"), [(500, 2, 1), (800, 4, 3), (1500, 10, 6)])
def test_the_weights_are_those_of_a_general_optimizer(rows, classes, number, scale):
    logits, labels, log_prior = readouts(rows, classes, number, number, scale)
    found = pool_of(logits, labels, log_prior)
    best = minimize(
        loss_of,
        np.full(number, 0.5 / number / scale),
        (logits, labels.numpy(), log_prior),
        bounds=[(0, None)] * number,
        method="L-BFGS-B",
        options={"ftol": 1e-14, "gtol": 1e-10, "maxiter": 2000},
    )
    reached = loss_of(found.weights.numpy(), logits, labels.numpy(), log_prior)
    assert reached <= best.fun + 1e-4
    np.testing.assert_allclose(scale * found.weights.numpy(), scale * best.x, atol=1e-2)


def test_large_logits_that_tell_some_classes_apart_and_others_not():
    """Of readouts that are sure of half of the label, and noise in the other half, a very small weight is right.

    The loss falls steeply near 0 and is nearly flat beyond, and the logits are so large that in float32 only their
    differences are exact.
    """
    log_prior = torch.full((4,), math.log(0.25))
    for random_seed in range(6):
        generator = np.random.default_rng(random_seed)
        labels = generator.integers(0, 4, 3000)
        told = 3000.0 * (np.arange(4) // 2 == labels[:, None] // 2) * generator.normal(1.0, 0.3, (3000, 1))
        logits = [
            torch.from_numpy(share * told + width * generator.normal(size=(3000, 4))).float()
            for share, width in zip(generator.uniform(0.1, 1.0, 4), (1.0, 2.0, 4.0, 0.5), strict=True)
        ]
        found = pool_of(logits, torch.from_numpy(labels), log_prior)
        held = found.log_posterior.gather(1, torch.from_numpy(labels)[:, None]).mean()
        assert float(held) == pytest.approx(-math.log(2), abs=5e-3)


def test_the_posterior_is_that_of_the_weights():
    logits, labels, log_prior = readouts(300, 5, 3, 0)
    found = pool_of(logits, labels, log_prior)
    scores = torch.einsum("k,knc->nc", found.weights.float(), torch.stack(logits)) + log_prior
    torch.testing.assert_close(found.log_posterior, scores.log_softmax(-1), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.log_posterior.exp().sum(-1), torch.ones(300))


def test_a_useless_readout_gets_next_to_no_weight():
    logits, labels, log_prior = readouts(4000, 3, 2, 1)
    generator = torch.Generator().manual_seed(2)
    useless = [torch.randn(4000, 3, generator=generator) for _ in range(2)]
    found = pool_of([logits[1], *useless], labels, log_prior)
    assert found.weights[0] > 0.3
    assert (found.weights[1:] < 0.05).all()


def test_a_readout_that_is_wrong_gets_none():
    logits, labels, log_prior = readouts(1000, 3, 2, 3)
    found = pool_of([-logits[1]], labels, log_prior)
    assert found.weights.tolist() == [0.0]
    torch.testing.assert_close(found.log_posterior, log_prior.log_softmax(-1).expand(1000, -1))


@pytest.mark.parametrize("max_fitted_rows", [300, 4096])
@pytest.mark.parametrize("scale", [1.0, 3000.0])
def test_a_pool_and_that_of_its_first_readouts_are_found_together(scale, max_fitted_rows):
    parts, labels, log_prior = readouts(1000, 4, 3, 6, scale)
    logits = torch.stack(parts)
    both = pool_with_part(logits, 2, labels, log_prior, max_fitted_rows)
    for place, number in enumerate((3, 2)):
        one = pool(logits[None, :number], labels, log_prior, max_fitted_rows)
        torch.testing.assert_close(both.weights[place, :number], one.weights[0], rtol=1e-2, atol=1e-2 / scale)
        torch.testing.assert_close(
            both.log_posterior[place].exp(), one.log_posterior[0].exp(), rtol=0, atol=5e-3
        )
    assert both.weights[1, 2] == 0


def test_one_calibrated_readout_keeps_its_temperature():
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(4000, 2, generator=generator) * 1.5
    labels = (torch.rand(4000, generator=generator) < logits.softmax(-1)[:, 1]).long()
    for factor in (0.1, 1.0, 10.0):
        found = pool_of([factor * logits], labels, torch.full((2,), math.log(0.5)))
        assert abs(factor * float(found.weights[0]) - 1) < 0.1


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e38])
def test_a_readout_that_overflows_does_not_harm_the_others(value):
    logits, labels, log_prior = readouts(600, 4, 3, 5)
    alone = pool_of([logits[2]], labels, log_prior)
    broken = torch.zeros(600, 4)
    broken[::3, 1] = value
    found = pool_of([logits[2], broken], labels, log_prior)
    assert torch.isfinite(found.log_posterior).all()
    assert torch.isfinite(found.weights).all()

    def loss(part):
        return -part.log_posterior.gather(1, labels[:, None]).mean()

    assert loss(found) <= loss(alone) + 1e-3


def test_a_readout_that_is_always_right_gives_finite_sure_answers():
    labels = torch.arange(500) % 3
    log_prior = torch.full((3,), math.log(1 / 3))
    found = pool_of([torch.nn.functional.one_hot(labels, 3).float()], labels, log_prior)
    assert torch.isfinite(found.log_posterior).all()
    assert found.log_posterior.gather(1, labels[:, None]).mean() > -0.05


def test_one_row_and_one_class_give_numbers():
    for rows, classes in ((1, 3), (5, 1)):
        labels = torch.zeros(rows, dtype=torch.long)
        found = pool_of([torch.randn(rows, classes)], labels, torch.full((classes,), -math.log(classes)))
        assert torch.isfinite(found.log_posterior).all()


def test_pools_are_fitted_one_by_one():
    """A pool of a batch is that of its readouts alone; zeros stand for a readout that it is without."""
    logits, labels, log_prior = readouts(600, 3, 3, 6)
    every = torch.stack(logits)
    two = every.clone()
    two[2] = 0
    found = pool(torch.stack([every, two]), labels, log_prior)
    for index, parts in enumerate((logits, logits[:2])):
        alone = pool_of(parts, labels, log_prior)
        torch.testing.assert_close(found.log_posterior[index], alone.log_posterior, rtol=0, atol=1e-3)
