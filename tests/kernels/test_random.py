"""The hash is the same number for number on every device."""

import pytest
import torch
from ecsfusion_kernels import reference, uniform


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0, 2), (1023,), (1024,), (3, 1025)])
@pytest.mark.parametrize("seed", [0, 7, -1, 2**31, 2**63 - 1])
def test_uniform_equals_its_reference(device, shape, seed):
    counter = torch.randint(0, 2**62, shape)
    expected = reference.uniform(counter, seed)
    assert torch.equal(uniform(counter.to(device), seed).cpu(), expected)


def test_uniform_of_a_transposed_counter(device):
    counter = torch.arange(12).reshape(3, 4)
    assert torch.equal(uniform(counter.to(device).T, 1).cpu(), reference.uniform(counter, 1).T)


def test_uniform_is_a_well_formed_op(device):
    counter = torch.arange(100, device=device)
    torch.library.opcheck(torch.ops.ecsfusion_kernels.uniform, (counter, 3))
    compiled = torch.compile(lambda x: uniform(x, 3) * 2, fullgraph=True, backend="eager")
    assert torch.equal(compiled(counter), uniform(counter, 3) * 2)


def test_the_largest_number_is_below_one(device):
    """The first counter whose hash ends in 24 ones; four or so of the first 2^26 do."""
    counter = torch.tensor([12_439_120])
    assert float(reference.uniform(counter, 0)) == 1 - 2**-24 < 1
    assert float(uniform(counter.to(device), 0)) == 1 - 2**-24
