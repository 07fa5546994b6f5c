"""The hash of rows: the kernel's bits are those of the reference."""

import pytest
import torch
from ecsfusion_kernels import hash_rows, reference


def rows_of(number, dimension, dtype=torch.float32):
    return torch.randn(number, dimension, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((70, 3), torch.float32), ((9, 40), torch.bfloat16), ((0, 3), torch.float64)]
)
@pytest.mark.parametrize("has_keys", [False, True])
def test_the_kernel_has_the_bits_of_its_reference(device, shape, dtype, has_keys):
    rows, columns = rows_of(*shape, dtype), 5 * torch.arange(shape[1])
    keys = torch.arange(shape[0]) * 2**50 - 7 if has_keys else None
    expected = reference.hash_rows(rows, columns, 3, keys)
    found = hash_rows(rows.to(device), columns.to(device), 3, None if keys is None else keys.to(device)).cpu()
    assert torch.equal(found, expected)
    assert len(found.unique()) == len(rows)


@pytest.mark.parametrize("bits", [0, 40, 63])
def test_all_columns_and_mixed_bits(device, bits):
    rows = rows_of(300, 40).to(device)
    found = hash_rows(rows, None, 3, bits=bits)
    assert torch.equal(found.cpu(), reference.hash_rows(rows.cpu(), torch.arange(40), 3, bits=bits))
    assert torch.equal(found, hash_rows(rows, torch.arange(40).to(device), 3, bits=bits))
    if bits:
        assert int(found.min()) >= 0
        assert int(found.max()) < 2**bits
        # Each bit is set in about half of the rows.
        of_bit = torch.stack([(found >> k) & 1 for k in range(bits)]).double().mean(1)
        assert bool(((of_bit > 0.3) & (of_bit < 0.7)).all())


def test_equal_values_have_equal_keys(device):
    rows = rows_of(4, 3)
    rows[1], rows[2] = rows[0], -rows[0]
    rows[0, 1], rows[1, 1], rows[2, 1] = 0.0, -0.0, torch.nan
    columns = torch.arange(3).to(device)
    found = hash_rows(rows.to(device), columns, 0)
    assert found[0] == found[1]
    assert len(found.unique()) == 3
    assert torch.equal(hash_rows(rows.double().mT.contiguous().mT.to(device), columns, 0), found)
    assert not torch.equal(hash_rows(rows.to(device), columns, 1), found)


def test_columns_that_do_not_fit_are_named(device):
    with pytest.raises(ValueError, match=r"columns must be \(d,\) .* got \(2,\) for \(4, 3\)"):
        hash_rows(rows_of(4, 3).to(device), torch.arange(2).to(device), 0)
