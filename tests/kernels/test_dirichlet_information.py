"""Evidence and entropy of labels under Dirichlet priors: the kernel against the reference, and by hand."""

import math

import pytest
import torch
from ecsfusion_kernels import dirichlet_information, reference


def given(tables, cells, classes):
    generator = torch.Generator().manual_seed(cells + classes)
    rates = 4 * torch.rand(tables, cells, classes, generator=generator) ** 2
    counts = torch.poisson(rates, generator=generator).double()
    base = torch.rand(tables, cells, classes, generator=generator).double()
    return counts, base / base.sum(-1, keepdim=True), torch.logspace(-2, 4, 4, dtype=torch.float64)


# One part, parts of one and of several blocks, and a part that is not full.
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9, 3), (3, 130, 4), (1, 300, 18), (1, 2, 300)])
def test_the_kernel_finds_the_sums_of_its_reference(device, shape):
    arguments = given(*shape)
    expected = reference.dirichlet_information(*arguments)
    found = dirichlet_information(*(x.to(device) for x in arguments)).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_classes_that_the_prior_has_not_and_cells_without_samples(device):
    counts, base, grid = given(2, 9, 3)
    counts[0, 4], base[0, 4] = 0.0, 0.0
    counts[1, 5, 1] = base[1, 5, 1] = 0.0
    # Seen where the prior has nothing: nearly impossible, and a number.
    base[1, 6, 2], counts[1, 6, 2] = 0.0, 3.0
    expected = reference.dirichlet_information(counts, base, grid)
    found = dirichlet_information(counts.to(device), base.to(device), grid.to(device)).cpu()
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_by_hand(device):
    """One sample of a fair coin: its evidence is a half, and the posterior is between the sample and the prior."""
    counts = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    base, grid = torch.full_like(counts, 0.5), torch.tensor([1e-9, 2.0, 1e6], dtype=torch.float64)
    evidence, entropy, share = dirichlet_information(
        counts.to(device), base.to(device), grid.to(device)
    ).cpu()
    torch.testing.assert_close(
        evidence[1:, 0], torch.full((2,), math.log(0.5), dtype=torch.float64), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(share[:, 0], grid / (1 + grid))
    # Dirichlet (2, 1): psi(4) - 2 / 3 psi(3) - 1 / 3 psi(2).
    assert float(entropy[1, 0]) == pytest.approx(0.5, abs=1e-12)
    assert float(entropy[0, 0]) == pytest.approx(0.0, abs=1e-8)
    assert float(entropy[2, 0]) == pytest.approx(math.log(2), abs=1e-5)


def test_strides_and_nothing(device):
    counts, base, grid = (x.to(device) for x in given(2, 9, 3))
    expected = dirichlet_information(counts, base, grid)
    for change in (lambda x: x.mT.contiguous().mT, lambda x: torch.stack([x, x], -1)[..., 0]):
        assert torch.equal(dirichlet_information(change(counts), change(base), grid), expected)
    assert torch.equal(dirichlet_information(counts[1:], base[1:], grid), expected[..., 1:])
    assert dirichlet_information(counts[:0], base[:0], grid).shape == (3, 4, 0)


def test_arguments_that_do_not_fit_are_named(device):
    counts, base, grid = (x.to(device) for x in given(2, 9, 3))
    with pytest.raises(TypeError, match=r"must be float64, got torch.float64, torch.float32, torch.float64;"):
        dirichlet_information(counts, base.float(), grid)
    with pytest.raises(ValueError, match=r"counts and base must be \(B, X, C\) and grid \(G,\), got shapes"):
        dirichlet_information(counts, base[:1], grid)
