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
