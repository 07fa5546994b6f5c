"""Groups of rows: the kernel has the bits of its reference, and known answers."""

import pytest
import torch
from ecsfusion_kernels import groups_of_rows, ops, reference


# More rows than a tile has; pairs; nearly all distinct; a table of three categories.
@pytest.mark.parametrize(("number", "distinct"), [(1, 1), (40, 40), (1100, 500), (1100, 100_000), (1100, 3)])
def test_the_kernel_has_the_bits_of_its_reference(device, number, distinct):
    generator = torch.Generator().manual_seed(number + distinct)
    keys = torch.randint(distinct, (number,), generator=generator).sort().values << 20
    labels = torch.randint(7, (number,), generator=generator)
    labels = labels[(keys + labels).argsort()]
    found = groups_of_rows(keys.to(device), labels.to(device))
    for one, other in zip(found, reference.groups_of_rows(keys, labels), strict=True):
        assert torch.equal(one.cpu(), other)


def test_groups_by_class_and_size(device):
    keys, labels = torch.tensor([3, 3, 5, 9, 9, 9]), torch.tensor([1, 2, 0, 1, 1, 4])
    group, dealing, number = groups_of_rows(keys.to(device), labels.to(device))
    assert group.tolist() == [0, 0, 1, 2, 2, 2]
    assert dealing.tolist()[:3] == [(1 << 40) - 2, -1, (1 << 40) - 3]
    assert min(dealing.tolist()[3:]) > 1 << 59
    assert int(number) == 3


def test_no_rows_are_no_group_and_strides_change_no_bit(device):
    keys, labels = torch.arange(9).to(device), torch.zeros(9, dtype=torch.int64).to(device)
    group, dealing, number = groups_of_rows(keys[:0], labels[:0])
    assert (len(group), len(dealing), int(number)) == (0, 0, 0)
    strided = torch.stack([keys] * 2, 1)[:, 0], torch.stack([labels] * 2, 1)[:, 0]
    for one, other in zip(groups_of_rows(*strided), groups_of_rows(keys, labels), strict=True):
        assert torch.equal(one, other)


def test_a_product_beyond_32_bits_makes_no_table(device, monkeypatch):
    """Of 134 million groups, 16 rows for each are more than 2^31; here of four, by a larger number for each."""
    monkeypatch.setitem(ops.groups_of_rows.CONSTANTS, "MAX_COPIES", 1 << 30)
    keys, labels = torch.tensor([2, 3, 3, 5, 9, 9]), torch.zeros(6, dtype=torch.int64)
    group, _, number = groups_of_rows(keys.to(device), labels.to(device))
    assert group.tolist() == [0, 1, 1, 2, 3, 3]
    assert int(number) == 4
