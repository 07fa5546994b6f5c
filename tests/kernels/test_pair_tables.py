"""Pair tables and their expectations: the kernel against the reference, and by hand."""

import pytest
import torch
from ecsfusion_kernels import pair_tables, reference


def counts_of(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.poisson(2 * torch.rand(shape, generator=generator), generator=generator).double()


# Both tiles, more of each variable than of the others, and a table that no tile holds.
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 2), (3, 20, 4), (4, 3, 21), (33, 40, 5), (65, 3, 2)])
def test_the_kernel_counts_as_its_reference(device, shape):
    table = counts_of(*shape)
    pairs, expected = (part.cpu() for part in pair_tables(table.to(device), 77))
    for one, other in zip((pairs, expected), reference.pair_tables(table, 77), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)
    rows, columns, classes = shape
    assert torch.equal(pairs[0, :rows, :classes], table.sum(1))
    assert torch.equal(pairs[1, :columns, :classes], table.sum(0))
    assert torch.equal(pairs[2, :rows, :columns], table.sum(2))
    assert pairs.sum((1, 2)).tolist() == [float(table.sum())] * 3


def test_by_hand(device):
    table = torch.tensor([[[3.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [2.0, 4.0]]], dtype=torch.float64)
    pairs, expected = (part.cpu() for part in pair_tables(table.to(device), 10))
    assert pairs.tolist() == [[[3, 1], [2, 4]], [[3, 1], [2, 4]], [[4, 0], [0, 6]]]
    torch.testing.assert_close(expected[2], torch.tensor([[1.6, 2.4], [2.4, 3.6]], dtype=torch.float64))


def test_strides(device):
    table = counts_of(4, 5, 3).to(device)
    expected = pair_tables(table, 50)
    for layout in (table.mT.contiguous().mT, torch.stack([table, table], -1)[..., 0]):
        for one, other in zip(pair_tables(layout, 50), expected, strict=True):
            assert torch.equal(one, other)


def test_arguments_that_do_not_fit_are_named(device):
    with pytest.raises(TypeError, match=r"table must be float64, got torch.int64; convert with"):
        pair_tables(torch.ones(2, 3, 4, dtype=torch.int64, device=device), 9)
    with pytest.raises(ValueError, match=r"table must be \(K1, K2, C\), got shape \(1, 2, 3, 4\)"):
        pair_tables(torch.ones(1, 2, 3, 4, dtype=torch.float64, device=device), 9)
