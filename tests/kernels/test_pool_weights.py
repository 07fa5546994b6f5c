"""The weights of pooled readouts: the kernel against its reference."""

import sys

import pytest
import torch
from ecsfusion_kernels import language, pool_weights, reference

# 300 rows are more than a part has.
SHAPES = [(1, 1, 30, 2), (2, 2, 37, 3), (2, 2, 300, 3), (1, 3, 40, 17), (1, 5, 20, 4)]


@pytest.fixture(autouse=True)
def steps_to_the_end(monkeypatch):
    """On a CPU the reference ends where no loss changes by 1e-5, which leaves the weights off by 1e-3."""
    monkeypatch.setattr(sys.modules[reference.pool_weights.__module__], "SETTLED", 0.0)


def readouts(pools, number, rows, classes, scale=1.0):
    """Logits (B, K, N, C) of readouts of different quality, labels, and log p(y)."""
    generator = torch.Generator().manual_seed(pools + number + classes)
    labels = torch.randint(classes, (rows,), generator=generator)
    quality = torch.linspace(0.0, 1.5, number)[:, None, None]
    noise = torch.randn(pools, number, rows, classes, generator=generator)
    share = torch.rand(classes, generator=generator) + 0.2
    return scale * (quality * torch.eye(classes)[labels] + noise), labels, (share / share.sum()).log()


def losses(weights, logits, labels, log_prior):
    scores = (weights.float().mT @ logits.flatten(2)).view(len(logits), *logits.shape[2:]) + log_prior
    return torch.nn.functional.cross_entropy(scores.double().mT, labels.expand(len(scores), -1))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_finds_the_weights_of_its_reference(device, shape):
    given = readouts(*shape)
    expected = reference.pool_weights(*given)
    found = pool_weights(*(x.to(device) for x in given)).cpu()
    assert found.shape == (1, *shape[:2])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [0.05, 30.0, 3e38])
def test_logits_that_are_small_or_large_or_not_finite(device, scale):
    """The start does worse than the prior, or overflows: the steps begin at the prior."""
    logits, labels, log_prior = readouts(1, 2, 30, 3, scale)
    logits[0, 0, 3], logits[0, 1, 4, 1], logits[0, 1, 5, 2] = torch.nan, torch.inf, -torch.inf
    expected = reference.pool_weights(logits, labels, log_prior)
    found = pool_weights(*(x.to(device) for x in (logits, labels, log_prior))).cpu()
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-4)


def test_sets_of_rows_are_fitted_each_by_itself(device):
    """One of them without rows, and one with more than are read; each as if its rows were all there were."""
    logits, labels, log_prior = readouts(2, 2, 40, 3)
    rows, bounds = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:34], [0, 15, 15, 34]
    given = (x.to(device) for x in (logits, labels, log_prior, rows, torch.tensor(bounds)))
    found = pool_weights(*given, 10).cpu()
    for part, chosen in zip(found, (rows[:15:2], rows[:0], rows[15::2]), strict=True):
        alone = reference.pool_weights(logits[:, :, chosen], labels[chosen], log_prior)[0]
        torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-4)
    assert not found[1].any()
    assert not torch.allclose(found[0], found[2], atol=1e-2), "the sets must differ for this to show anything"


@pytest.mark.parametrize("shape", [(0, 2, 9, 3), (2, 2, 0, 3), (2, 9, 12, 3)])
def test_no_pools_no_rows_and_more_readouts_than_the_kernel_takes(device, shape):
    given = readouts(*shape)
    found = pool_weights(*(x.to(device) for x in given)).cpu()
    torch.testing.assert_close(found, reference.pool_weights(*given), rtol=1e-4, atol=1e-4)
    assert found.shape == (1, *shape[:2])


def test_one_class_has_nothing_to_tell(device):
    given = torch.randn(1, 2, 9, 1), torch.zeros(9, dtype=torch.int64), torch.zeros(1)
    assert not pool_weights(*(x.to(device) for x in given)).any()


def test_layout_and_place_change_no_bit(device):
    given = [x.to(device) for x in readouts(1, 2, 20, 3)]
    expected = pool_weights(*given)
    strided = (
        given[0].mT.contiguous().mT,
        torch.stack([given[1]] * 2, 1)[:, 0],
        torch.stack([given[2]] * 2)[1],
    )
    assert torch.equal(pool_weights(*strided), expected)


def test_a_pool_has_the_same_bits_beside_others(device, large):
    """Beside many others no program shares its rows."""
    logits, labels, log_prior = (x.to(device) for x in readouts(300 if large else 2, 2, 300, 3))
    together = pool_weights(logits, labels, log_prior)
    assert torch.equal(pool_weights(logits[1:2], labels, log_prior), together[:, 1:2])


def test_arguments_that_do_not_fit_are_named(device):
    logits, labels, log_prior = (x.to(device) for x in readouts(1, 2, 9, 3))
    with pytest.raises(TypeError, match=r"must be float32, got torch.float64 .* convert with .float"):
        pool_weights(logits.double(), labels, log_prior)
    with pytest.raises(ValueError, match="rows and bounds must be given together"):
        pool_weights(logits, labels, log_prior, labels)


def test_pool_weights_needs_no_host(device, large):
    if not large or language.INTERPRETED:
        pytest.skip("a GPU is needed")
    given = [x.to(device) for x in readouts(6, 3, 4000, 10)]
    expected = pool_weights(*given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = pool_weights(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, expected)
