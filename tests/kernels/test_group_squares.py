"""Squared sums of groups: the kernel against the reference, and by hand."""

import pytest
import torch
from ecsfusion_kernels import group_squares, reference


def rows_of(problems, number):
    return torch.randn(problems, number, generator=torch.Generator().manual_seed(number), dtype=torch.float64)


# 1 300 rows are more than a tile has, and their groups of three more than that of the second loop, but for one row.
@pytest.mark.parametrize(
    ("problems", "number", "size"), [(1, 1, 1), (2, 70, 4), (1, 1300, 3), (1, 1300, 1), (1, 30, 30)]
)
def test_the_kernel_has_the_sums_of_its_reference(device, problems, number, size):
    rows, group = rows_of(problems, number), torch.arange(number) // size
    found = group_squares(rows.to(device), group.to(device)).cpu()
    torch.testing.assert_close(found, reference.group_squares(rows, group), rtol=1e-10, atol=1e-10)


def test_a_group_counts_as_one(device):
    """Deviations of -1, 0 and 1 in two groups: (-1 + 0)^2 + 1^2."""
    rows, group = torch.tensor([[4.0, 5.0, 6.0]], dtype=torch.float64), torch.tensor([0, 0, 1])
    assert group_squares(rows.to(device), group.to(device)).tolist() == [2.0]


def test_no_rows_strides_and_other_dtypes(device):
    rows, group = rows_of(2, 20).to(device), (torch.arange(20) // 2).to(device)
    expected = group_squares(rows, group)
    assert torch.equal(group_squares(rows.mT.contiguous().mT, torch.stack([group] * 2, 1)[:, 0]), expected)
    assert group_squares(rows[:0], group).shape == (0,)
    assert not group_squares(rows[:, :0], group[:0]).any()
    with pytest.raises(TypeError, match=r"rows must be float64, got torch.float32; convert with .double"):
        group_squares(rows.float(), group)
