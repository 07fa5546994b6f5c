"""Rows whose label has nothing to do with what the readouts say: lapse rates of pools, and of `fast_pid`."""

import math

import numpy as np
import pytest
import torch
from known_answers import assert_consistent, intervals
from scipy.optimize import minimize
from scipy.special import log_softmax

from ecsfusion import fast_pid
from ecsfusion.pid.pooling import pool, pool_with_part


def rows_with_lapses(rate, rows=6000, classes=4, random_seed=0):
    """Logits (2, N, C) of two readouts whose sum is right, and labels, a share of them drawn anew from the prior."""
    generator = torch.Generator().manual_seed(random_seed)
    logits = 2.5 * torch.randn(2, rows, classes, generator=generator)
    log_prior = torch.linspace(1.0, 2.0, classes).log_softmax(0)
    posterior = (logits.sum(0) + log_prior).softmax(1)
    labels = posterior.multinomial(1, generator=generator)[:, 0]
    anew = log_prior.exp().multinomial(rows, True, generator=generator)
    is_lapse = torch.rand(rows, generator=generator) < rate
    mixed = (1 - rate) * posterior + rate * log_prior.exp()
    return logits, torch.where(is_lapse, anew, labels), log_prior, mixed.log()


def told(log_posterior, labels):
    return log_posterior.gather(1, labels[:, None]).double().mean().item()


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.7])
def test_the_posterior_is_that_of_the_rows_with_their_lapses(rate):
    logits, labels, log_prior, right = rows_with_lapses(rate)
    found = pool(logits.unsqueeze(0), labels, log_prior, len(labels))
    assert found.log_posterior[0].exp().sum(1).sub(1).abs().max() < 1e-5
    assert (found.log_posterior[0].exp() - right.exp()).abs().mean() < 0.02
    assert told(found.log_posterior[0], labels) > told(right, labels) - 1e-3
    # What is said of a row that is no lapse.
    kept = (logits.sum(0) + log_prior).softmax(1)
    assert (found.without_lapses[0].exp() - kept).abs().mean() < 0.05


@pytest.mark.parametrize("random_seed", range(3))
def test_weights_and_rate_are_those_of_a_general_optimizer(random_seed):
    logits, labels, log_prior, _ = rows_with_lapses(0.2, 1000, 3, random_seed)
    z, base = logits.double().numpy(), log_prior.double().numpy()
    place = np.arange(len(labels)), labels.numpy()

    def loss(parameters):
        *weights, odds = parameters
        q = np.exp(log_softmax(np.tensordot(weights, z, 1) + base, -1)[place])
        return -np.log((q + odds * np.exp(base[labels])) / (1 + odds)).mean()

    best = minimize(loss, [0.5, 0.5, 0.1], bounds=[(0, None)] * 3, method="L-BFGS-B")
    found = pool(logits.unsqueeze(0), labels, log_prior)
    # The pool also pays for its weights.
    assert -told(found.log_posterior[0], labels) == pytest.approx(best.fun, abs=2e-3)


@pytest.mark.parametrize("random_seed", range(8))
def test_rows_without_lapses_have_none(random_seed):
    logits, labels, log_prior, _ = rows_with_lapses(0.0, 1500, 5, random_seed)
    assert pool(logits.unsqueeze(0), labels, log_prior).without_lapses is None


def test_a_part_of_a_pool_has_its_own_lapses_and_no_other_readout():
    logits, labels, log_prior, _ = rows_with_lapses(0.3)
    # The first readout knows all of it; the second is not in the part.
    logits[0] += logits[1]
    found = pool_with_part(logits, 1, labels, log_prior)
    alone = pool(logits[:1].unsqueeze(0), labels, log_prior)
    assert float(found.weights[1, 1]) == 0
    torch.testing.assert_close(found.log_posterior[1], alone.log_posterior[0], rtol=0, atol=1e-3)


class Channel:
    """Gaussian classes of which a modality sees the class, or, in a share of the rows, another that is drawn anew."""

    def __init__(self, classes, columns, generator):
        self.generator = generator
        self.means = torch.zeros(classes, columns)
        self.means[:, :8] = 1.2 * torch.randn(classes, 8, generator=generator)
        self.mixing = torch.linalg.qr(torch.randn(columns, columns, generator=generator)).Q

    def rows(self, labels):
        noise = torch.randn(len(labels), self.means.shape[1], generator=self.generator)
        return (self.means[labels] + noise) @ self.mixing

    def anew(self, labels, rate):
        other = torch.randint(len(self.means), labels.shape, generator=self.generator)
        return torch.where(torch.rand(len(labels), generator=self.generator) < rate, other, labels)

    def likelihood(self, rows, rate):
        """p(x | y) up to a factor by row, (N, C)."""
        distance = torch.cdist((rows @ self.mixing.T).double(), self.means.double()).square()
        return (1 - rate) * (-distance / 2).softmax(1) + rate / len(self.means)


def image_and_text(classes):
    """Two modalities that show the classes at the same distances, and labels (4000,)."""
    generator = torch.Generator().manual_seed(classes)
    image, text = (Channel(classes, 48, generator) for _ in range(2))
    text.means = image.means
    return image, text, torch.randint(classes, (4000,), generator=generator)


def bits(likelihood, labels):
    """What the posterior of equally likely classes tells about the labels, in bits."""
    posterior = likelihood / likelihood.sum(1, keepdim=True)
    return posterior[torch.arange(len(labels)), labels].log2().mean() + math.log2(likelihood.shape[1])


def assert_atoms(pid, truth):
    """The limits are near the truth of these very rows, and the intervals hold it."""
    assert_consistent(pid)
    truth = torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in truth])
    found = torch.cat([pid.redundancy.reshape(1), pid.unique, pid.synergy.reshape(1)])
    torch.testing.assert_close(found, truth, rtol=0, atol=0.1)
    low, high = intervals(pid).T
    assert ((low <= truth + 0.02) & (truth <= high + 0.02)).all()


@pytest.mark.parametrize(("classes", "rate"), [(10, 0.25), (30, 0.2)])
def test_what_pairs_tell_of_which_some_do_not_belong_together(classes, rate):
    image, text, labels = image_and_text(classes)
    rows = image.rows(labels), text.rows(text.anew(labels, rate))
    pid = fast_pid({"image": rows[0], "text": rows[1]}, labels)
    of_image, of_text = image.likelihood(rows[0], 0.0), text.likelihood(rows[1], rate)
    # A text is a picture that is sometimes that of another row: all that it knows the picture knows, too.
    first, second, both = (bits(part, labels) for part in (of_image, of_text, of_image * of_text))
    assert_atoms(pid, (second, first - second, 0.0, both - first))
    assert float(pid.held_out.mutual_information[1]) > float(second) - 0.1


@pytest.mark.parametrize(("classes", "rate"), [(10, 0.2), (10, 0.3)])
def test_what_is_known_of_labels_of_which_some_are_wrong(classes, rate):
    image, text, right = image_and_text(classes)
    rows = image.rows(right), text.rows(right)
    labels = image.anew(right, rate)
    pid = fast_pid({"image": rows[0], "text": rows[1]}, labels)
    sure = [part.likelihood(x, 0.0) for part, x in zip((image, text), rows, strict=True)]
    single = [bits((1 - rate) * part + rate / classes, labels) for part in sure]
    together = sure[0] * sure[1]
    both = bits((1 - rate) * together / together.sum(1, keepdim=True) + rate / classes, labels)
    # Both say the same about the label: nothing is unique.
    shared = min(single)
    assert_atoms(pid, (shared, single[0] - shared, single[1] - shared, both - max(single)))
