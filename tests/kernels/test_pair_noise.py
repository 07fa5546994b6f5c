"""What chance adds to the information of pairs: the kernel against the reference, and by hand."""

import math

import pytest
import torch
from ecsfusion_kernels import pair_noise, reference


def sums_of(pairs, replicates, rows, columns):
    generator = torch.Generator().manual_seed(replicates)
    tables = torch.poisson(2 * torch.rand(pairs, 1 + replicates, rows, columns, 1, generator=generator))
    return reference.table_sums(tables.double())[2]


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (3, 16, 5, 4), (3, 130, 7, 3)])
def test_the_kernel_finds_the_bits_of_its_reference(device, shape):
    sums = sums_of(*shape)
    # Some replicates without samples.
    sums[0, -1] = 0.0
    torch.testing.assert_close(
        pair_noise(sums.to(device)).cpu(), reference.pair_noise(sums), rtol=1e-12, atol=1e-14
    )


def test_by_hand(device):
    """Two replicates of one bit and of none, all of whose four cells are occupied, and a table of a diagonal."""
    table = torch.tensor([[8.0, 0.0], [0.0, 8.0]])
    tables = torch.stack([table, table + 1e-9, torch.ones(2, 2)]).double()[None, ..., None]
    sums = reference.table_sums(tables)[2]
    # The freedom of the diagonal is 2 - 2 - 2 + 1: none is left.
    assert pair_noise(sums.to(device)).tolist() == [0.0]
    full = torch.cat([sums[:, 1:2], sums[:, 1:]], 1)
    assert float(pair_noise(full.to(device))) == pytest.approx(0.5, abs=1e-6)
    # Three rows and columns that are full have four times the freedom, of which no more than the whole counts.
    full[0, 0, 12], full[0, 0, 8:10] = 9.0, 3.0
    assert float(pair_noise(full.to(device))) == pytest.approx(0.5, abs=1e-6)
    assert math.isfinite(float(pair_noise(torch.zeros_like(full).to(device))))


def test_strides_and_nothing(device):
    sums = sums_of(3, 5, 4, 3).to(device)
    expected = pair_noise(sums)
    assert torch.equal(pair_noise(torch.stack([sums, sums], -1)[..., 0]), expected)
    assert torch.equal(pair_noise(sums[1:2]), expected[1:2])
    assert pair_noise(sums[:0]).shape == (0,)


def test_arguments_that_do_not_fit_are_named(device):
    sums = sums_of(3, 5, 4, 3).to(device)
    with pytest.raises(TypeError, match=r"sums must be float64, got torch.float32; convert with"):
        pair_noise(sums.float())
    for wrong in (sums[:, :1], sums[..., :9], sums[0]):
        with pytest.raises(ValueError, match=r"sums must be \(P, 1 \+ R, 15\) with R at least 1, got"):
            pair_noise(wrong)
