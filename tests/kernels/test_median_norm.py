"""The median of positive numbers: the kernel against the reference, and what is left out."""

import importlib

import pytest
import torch
from ecsfusion_kernels import median_norm, reference


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).double().exp()


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 63), (3, 64), (2, 131)])
def test_the_kernel_finds_the_number_of_its_reference(device, shape):
    norms = numbers(*shape)
    expected = norms.sort(-1).values[:, (shape[1] - 1) // 2]
    assert torch.equal(reference.median_norm(norms), expected)
    assert torch.equal(median_norm(norms.to(device)).cpu(), expected)


def test_ties_and_numbers_that_do_not_count(device):
    nan, inf = torch.nan, torch.inf
    norms = torch.tensor(
        [[2, 2, 2, 1, 3], [nan, 0, -1, 5, 7], [nan, 0, 0, -2, -inf], [inf, inf, 1, 0, 0]], dtype=torch.float64
    )
    for found in (median_norm(norms.to(device)).cpu(), reference.median_norm(norms)):
        assert found.tolist() == [2, 5, 1, inf]


def test_many_numbers_are_sorted_and_strides(device, monkeypatch):
    norms = numbers(2, 70).to(device)
    expected = median_norm(norms)
    assert torch.equal(median_norm(norms.mT.contiguous().mT), expected)
    monkeypatch.setattr(importlib.import_module("ecsfusion_kernels.ops.median_norm"), "MAX_NUMBERS", 60)
    assert torch.equal(median_norm(norms), expected)


def test_arguments_that_do_not_fit_are_named(device):
    with pytest.raises(TypeError, match=r"norms must be float64, got torch.float32; convert with"):
        median_norm(torch.ones(2, 3, device=device))
    for shape in ((3,), (2, 0)):
        with pytest.raises(ValueError, match=r"norms must be \(B, N\) with N at least 1, got shape"):
            median_norm(torch.ones(shape, dtype=torch.float64, device=device))
