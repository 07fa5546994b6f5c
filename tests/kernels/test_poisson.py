"""Poisson numbers: the same on every device, and of the law of Poisson."""

import pytest
import torch
from ecsfusion_kernels import poisson, reference


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5, 17), (300,)])
@pytest.mark.parametrize("replicates", [0, 1, 3])
def test_poisson_equals_its_reference(device, shape, replicates):
    expected = torch.rand(shape, dtype=torch.float64).pow(3) * 40
    found = poisson(expected.to(device), replicates, 5)
    assert found.dtype == torch.float64
    # exp and log round differently between devices: a number may be one more or less, hardly ever.
    difference = (found.cpu() - reference.poisson(expected, replicates, 5)).abs()
    assert difference.sum() <= 1


def test_expectations_of_every_size(device):
    expected = torch.tensor([0.0, 1e-300, 1e-9, 15.999999, 16.0, 1e4, 1e9], device=device)
    found = poisson(expected, 500, 1).cpu()
    expected = expected.double().cpu()
    assert torch.equal(found[:, :2], torch.zeros(500, 2, dtype=torch.float64))
    off = (found.mean(0) - expected) / (expected.clamp_min(1e-3) / 500).sqrt()
    assert float(off.abs().max()) < 5
    spread = found[:, 3:].var(0) / expected[3:]
    assert bool(((spread > 0.7) & (spread < 1.4)).all())


def test_poisson_of_a_transposed_float32_table(device):
    expected = torch.rand(7, 5) * 30
    assert torch.equal(poisson(expected.to(device).T, 4, 2).cpu(), reference.poisson(expected.T, 4, 2))


def test_poisson_is_a_well_formed_op(device):
    expected = torch.rand(5, 6, device=device) * 30
    torch.library.opcheck(torch.ops.ecsfusion_kernels.poisson, (expected, 4, 3))
    compiled = torch.compile(lambda x: poisson(x, 4, 3) + 1, fullgraph=True, backend="eager")
    assert torch.equal(compiled(expected), poisson(expected, 4, 3) + 1)
