"""Posteriors of pools: the kernel against the reference, and by hand."""

import math

import pytest
import torch
from ecsfusion_kernels import pool_posteriors, reference


def arguments(pools, number, rows, classes):
    generator = torch.Generator().manual_seed(rows)
    share = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.2
    return (
        3 * torch.randn(pools, number, rows, classes, generator=generator),
        torch.rand(2, pools, number, generator=generator, dtype=torch.float64),
        torch.randint(2, (rows,), generator=generator),
        (share / share.sum()).log(),
    )


# More rows than a block has, and more classes than a tile.
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 3, 150, 3), (2, 9, 20, 16), (2, 2, 37, 70), (1, 2, 3, 2051)]
)
def test_the_kernel_has_the_posteriors_of_its_reference(device, shape):
    given = arguments(*shape)
    found = pool_posteriors(*(x.to(device) for x in given)).cpu()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, reference.pool_posteriors(*given), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]), rtol=1e-13, atol=0)


def test_a_row_is_read_by_the_weights_of_the_other_part(device):
    """Odds of 3 from a readout, raised to the weight of each pool: 2 and 1 for part 0, 0 and -1 for part 1."""
    logits = torch.tensor([math.log(3.0), 0.0]).expand(2, 1, 4, 2)
    weights = torch.tensor([[[0.0], [-1.0]], [[2.0], [1.0]]], dtype=torch.float64)
    part, log_prior = torch.tensor([0, 1, 1, 0]), torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    found = pool_posteriors(*(x.to(device) for x in (logits, weights, part, log_prior))).cpu()
    expected = torch.tensor([[0.9, 0.5, 0.5, 0.9], [0.75, 0.25, 0.25, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(found[..., 0], expected, rtol=1e-7, atol=0)


def test_readouts_add_up_and_none_leave_the_prior(device):
    logits, weights, part, log_prior = (x.to(device) for x in arguments(2, 3, 40, 20))
    alone = pool_posteriors(logits[:, :0], weights[..., :0], part, log_prior)
    torch.testing.assert_close(alone, log_prior.exp().expand_as(alone), rtol=1e-12, atol=0)
    # The same readout twice is one with the sum of its weights.
    twice = logits[:, :1].expand(-1, 3, -1, -1)
    found = pool_posteriors(twice, weights, part, log_prior)
    once = pool_posteriors(logits[:, :1], weights.sum(-1, keepdim=True), part, log_prior)
    torch.testing.assert_close(found, once, rtol=1e-11, atol=0)


def test_sums_beyond_the_range_of_exponentials(device):
    """A sum of 1e5 has no exponential, and one of -1e5 none above zero."""
    logits = torch.zeros(1, 2, 3, 40)
    logits[0, :, 0, 37], logits[0, :, 1], logits[0, :, 1, 2] = 1e4, -1e4, -1e4 + 1
    given = logits, torch.full((2, 1, 2), 5.0).double(), torch.tensor([0, 1, 1]), torch.zeros(40).double()
    found = pool_posteriors(*(x.to(device) for x in given)).cpu()
    torch.testing.assert_close(found, reference.pool_posteriors(*given), rtol=1e-12, atol=0)
    assert found[0, 0, 37] == 1
    assert float(found[0, 1, 2]) == pytest.approx(1 / (1 + 39 * math.exp(-10)))
    assert float(found[0, 2, 39]) == pytest.approx(1 / 40)


def test_strides_and_nothing(device):
    given = [x.to(device) for x in arguments(2, 3, 40, 5)]
    expected = pool_posteriors(*given)
    logits, weights, part, log_prior = given
    strided = logits.mT.contiguous().mT, weights.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    gaps = (torch.stack([x, x], 1)[:, 0] for x in (part, log_prior))
    assert torch.equal(pool_posteriors(*strided, *gaps), expected)
    assert pool_posteriors(logits[:0], weights[:, :0], part, log_prior).shape == (0, 40, 5)
    assert pool_posteriors(logits[:, :, :0], weights, part[:0], log_prior).shape == (2, 0, 5)
    assert pool_posteriors(logits[..., :0], weights, part, log_prior[:0]).shape == (2, 40, 0)


def test_arguments_that_do_not_fit_are_named(device):
    logits, weights, part, log_prior = (x.to(device) for x in arguments(2, 3, 40, 5))
    with pytest.raises(
        ValueError, match=r"weights must be \(2, B, K\), a set for each part, .* got \(1, 2, 3\)"
    ):
        pool_posteriors(logits, weights[:1], part, log_prior)
    with pytest.raises(ValueError, match=r"part must be \(N,\) .* got \(39,\) and \(5,\)"):
        pool_posteriors(logits, weights, part[1:], log_prior)
    with pytest.raises(
        TypeError, match=r"weights and log_prior float64, got torch.float32, torch.float32 and"
    ):
        pool_posteriors(logits, weights.float(), part, log_prior)
