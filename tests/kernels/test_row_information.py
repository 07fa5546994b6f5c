"""What the posterior of each row says: the kernel against the reference and float64, and by hand."""

import math

import pytest
import torch
from ecsfusion_kernels import reference, row_information


def arguments(problems, rows, classes, sharpness=3.0):
    generator = torch.Generator().manual_seed(rows)
    scores = sharpness * torch.randn(problems, rows, classes, generator=generator, dtype=torch.float64)
    return (
        scores.softmax(-1),
        torch.randint(classes, (rows,), generator=generator),
        torch.randn(classes, generator=generator, dtype=torch.float64).log_softmax(-1),
    )


# More rows than a block has, and more classes than a tile. Sharp posteriors have classes below 1e-30, and zeros.
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 150, 3), (2, 20, 16), (2, 37, 70), (1, 3, 2051)])
@pytest.mark.parametrize("sharpness", [0.1, 3.0, 300.0])
def test_the_kernel_says_what_its_reference_says(device, shape, sharpness):
    posteriors, labels, log_prior = given = arguments(*shape, sharpness)
    told, unsure, roots = (x.cpu() for x in row_information(*(x.to(device) for x in given)))
    expected = reference.row_information(*given)
    torch.testing.assert_close(told, expected[0], rtol=1e-13, atol=1e-13)
    assert torch.equal(roots, posteriors.float().double().sqrt().float())
    # PyTorch's root on a CPU is not always the nearest number.
    torch.testing.assert_close(expected[2], roots, rtol=2e-7, atol=0)
    for entropy in (unsure, expected[1]):
        exact = -torch.xlogy(posteriors, posteriors).sum(-1) / math.log(2)
        torch.testing.assert_close(entropy, exact, rtol=1e-6, atol=1e-6)
    at_label = posteriors[:, torch.arange(shape[1]), labels].clamp_min(1e-30)
    exact = at_label.log2() - log_prior[labels] / math.log(2)
    torch.testing.assert_close(told, exact, rtol=1e-12, atol=1e-12)


def test_by_hand(device):
    """Four classes of different shares: what is certain and right, undecided, undecided between two, and wrong."""
    log_prior = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64).log()
    rows = [[0, 1, 0, 0], [0.25] * 4, [0, 0, 0.5, 0.5], [0, 0, 0, 1]]
    posteriors, labels = torch.tensor([rows], dtype=torch.float64), torch.tensor([1, 0, 3, 0])
    found = row_information(*(x.to(device) for x in (posteriors, labels, log_prior)))
    told, unsure, roots = (x.cpu()[0] for x in found)
    expected = torch.tensor([2.0, -1.0, 2.0, math.log2(1e-30) + 1], dtype=torch.float64)
    torch.testing.assert_close(told, expected, rtol=1e-14, atol=1e-14)
    assert unsure.tolist() == [0.0, 2.0, 1.0, 0.0]
    assert roots.dtype == torch.float32
    assert torch.equal(roots.square()[[0, 1, 3]], posteriors[0, [0, 1, 3]].float())


def test_strides_and_nothing(device):
    given = [x.to(device) for x in arguments(2, 40, 5)]
    expected = row_information(*given)
    posteriors, labels, log_prior = given
    gaps = (torch.stack([x, x], 1)[:, 0] for x in (labels, log_prior))
    for one, other in zip(row_information(posteriors.mT.contiguous().mT, *gaps), expected, strict=True):
        assert torch.equal(one, other)
    shared = row_information(posteriors[:1].expand(2, -1, -1), labels, log_prior)
    for one, other in zip(shared, expected, strict=True):
        assert torch.equal(one, other[:1].expand_as(one))
    for some, number in ((posteriors[:0], (0, 40)), (posteriors[:, :0], (2, 0))):
        told, unsure, roots = row_information(some, labels[: some.shape[1]], log_prior)
        assert told.shape == unsure.shape == number
        assert roots.shape == some.shape


def test_arguments_that_do_not_fit_are_named(device):
    posteriors, labels, log_prior = (x.to(device) for x in arguments(2, 40, 5))
    with pytest.raises(
        TypeError, match=r"must be float64, got torch.float32 and torch.float64; convert with"
    ):
        row_information(posteriors.float(), labels, log_prior)
    with pytest.raises(ValueError, match=r"labels must be \(N,\) .* got \(39,\) and \(5,\)"):
        row_information(posteriors, labels[1:], log_prior)
    with pytest.raises(
        ValueError, match=r"log_prior \(C,\) .* posteriors \(2, 40, 5\), got \(40,\) and \(4,\)"
    ):
        row_information(posteriors, labels, log_prior[1:])
