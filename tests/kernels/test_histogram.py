"""Counts are exact, whatever the indices are."""

import pytest
import torch
from ecsfusion_kernels import histogram, reference


def indices(shape, size):
    """Indices of which some are outside of 0 .. size - 1."""
    return torch.randint(-1, size + 1, shape)


@pytest.mark.parametrize("shape", [(0,), (1,), (1023,), (2, 1025), (2, 3, 17), (0, 5)])
@pytest.mark.parametrize("sizes", [(2, 3, 1), (20, 17, 10)])
def test_histogram_equals_its_reference(device, shape, sizes):
    parts = [indices(shape, size) for size in sizes]
    found = histogram(*(part.to(device) for part in parts), *sizes).cpu()
    assert torch.equal(found, reference.histogram(*parts, *sizes))
    inside = torch.stack([(part >= 0) & (part < size) for part, size in zip(parts, sizes, strict=True)]).all(
        0
    )
    assert torch.equal(found.sum((-3, -2, -1)), inside.sum(-1))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_histogram_broadcasts_and_takes_any_strides(device, dtype):
    first = torch.randint(0, 5, (50, 3), dtype=dtype).T
    second = torch.randint(0, 4, (50,), dtype=dtype)
    labels = torch.randint(0, 3, (2, 1, 100), dtype=dtype)[..., ::2]
    found = histogram(first.to(device), second.to(device), labels.to(device), 5, 4, 3).cpu()
    assert found.shape == (2, 3, 5, 4, 3)
    assert torch.equal(found, reference.histogram(first, second, labels, 5, 4, 3))


def test_indices_far_outside_touch_no_memory(device):
    far = torch.tensor([2**62, -(2**62), 2**40, 1], device=device)
    near = torch.zeros(4, dtype=torch.int64, device=device)
    assert histogram(far, near, near, 2, 2, 2).sum() == 1
    assert histogram(near, far, near, 2, 2, 2).sum() == 1
    assert histogram(near, near, far, 2, 2, 2)[0, 0, 1] == 1


def test_histogram_is_a_well_formed_op(device):
    first, second, labels = (torch.randint(0, 4, (2, 100), device=device) for _ in range(3))
    torch.library.opcheck(torch.ops.ecsfusion_kernels.histogram, (first, second, labels, 4, 4, 4))
    compiled = torch.compile(lambda *parts: histogram(*parts, 4, 4, 4) + 1, fullgraph=True, backend="eager")
    assert torch.equal(compiled(first, second, labels), histogram(first, second, labels, 4, 4, 4) + 1)
