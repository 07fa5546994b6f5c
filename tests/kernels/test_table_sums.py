"""Entropies of tables and of their marginals: the kernel against the reference, and by hand."""

import math

import pytest
import torch
from ecsfusion_kernels import reference, table_sums


def counts_of(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.poisson(2 * torch.rand(shape, generator=generator), generator=generator).double()


# Both tiles, full and not, tables of two variables, and tables that no tile holds.
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 4, 2), (3, 16, 5, 3), (2, 20, 1, 18), (1, 32, 32, 2), (1, 33, 4, 3)]
)
def test_the_kernel_finds_the_sums_of_its_reference(device, shape):
    counts = counts_of(*shape)
    counts[0, 0, 0, 0] += 1
    found = [part.cpu() for part in table_sums(counts.to(device))]
    for one, other in zip(found, reference.table_sums(counts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found[0], counts.sum(2) / counts.sum((1, 2, 3))[:, None, None])
    torch.testing.assert_close(found[1], counts.sum(1) / counts.sum((1, 2, 3))[:, None, None])


def test_by_hand(device):
    """The label is the exclusive or of two fair bits, of which there are 20 samples; and a table without samples."""
    counts = torch.zeros(2, 2, 2, 2, dtype=torch.float64)
    counts[0, [0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]] = 5.0
    numbers = table_sums(counts.to(device))[2].cpu()
    bits = torch.tensor([1, 1, 1, 2, 2, 2, 2], dtype=torch.float64)
    torch.testing.assert_close(numbers[0, :7], -bits * math.log(2))
    assert numbers[0, 7:].tolist() == [2, 2, 2, 4, 4, 4, 4, 20]
    assert not numbers[1].any()


def test_strides_batches_and_nothing(device):
    counts = counts_of(6, 3, 4, 2).to(device)
    expected = table_sums(counts)
    for layout in (counts.mT.contiguous().mT, torch.stack([counts, counts], -1)[..., 0]):
        for one, other in zip(table_sums(layout), expected, strict=True):
            assert torch.equal(one, other)
    for one, other in zip(table_sums(counts.view(2, 3, 3, 4, 2)), expected, strict=True):
        assert torch.equal(one.flatten(0, 1), other)
    assert [part.shape for part in table_sums(counts[:0])] == [(0, 3, 2), (0, 4, 2), (0, 15)]
    # A table keeps its bits beside others.
    for one, other in zip(table_sums(counts[2]), expected, strict=True):
        assert torch.equal(one, other[2])


def test_what_is_no_number_stays_none(device):
    """A table with a NaN has no entropies; the one beside it has its own."""
    counts = counts_of(2, 3, 4, 2)
    expected = table_sums(counts[1].to(device))[2].cpu()
    counts[0, 1, 1, 1] = torch.nan
    numbers = table_sums(counts.to(device))[2].cpu()
    assert numbers[0, :7].isnan().all()
    assert torch.equal(numbers[1], expected)


def test_arguments_that_do_not_fit_are_named(device):
    with pytest.raises(TypeError, match=r"tables must be float64, got torch.float32; convert with"):
        table_sums(torch.ones(2, 3, 4, device=device))
    with pytest.raises(ValueError, match=r"tables must be \(..., K1, K2, C\), got shape \(2, 3\)"):
        table_sums(torch.ones(2, 3, dtype=torch.float64, device=device))
