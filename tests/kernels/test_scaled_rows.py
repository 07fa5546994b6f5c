"""Rows scaled by their norms: the kernel against the reference, and numbers of every size."""

import pytest
import torch
from ecsfusion_kernels import reference, scaled_rows


def given(*shape, dtype=torch.float32):
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)
    return rows, torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (30, 70)])
def test_the_kernel_scales_as_its_reference(device, dtype, shape):
    rows, norms = given(*shape, dtype=dtype)
    radius = torch.tensor(0.7, dtype=torch.float64)
    found = scaled_rows(rows.to(device), norms.to(device), radius.to(device)).cpu()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, reference.scaled_rows(rows, norms, radius), rtol=1e-6, atol=1e-30)
    expected = rows.double() / (norms.square() + 0.49).sqrt()[:, None]
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-30)


def test_rows_of_any_size_and_rows_that_are_not_finite(device):
    largest = torch.finfo(torch.float32).max
    rows = torch.tensor([[largest, -largest], [0.0, 0.0], [1e-40, 0.0], [torch.nan, 1.0], [torch.inf, 1.0]])
    norms = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)
    radius = torch.tensor(1e-40, dtype=torch.float64)
    for found in (
        scaled_rows(rows.to(device), norms.to(device), radius.to(device)).cpu(),
        reference.scaled_rows(rows, norms, radius),
    ):
        torch.testing.assert_close(found[0], torch.tensor([0.5**0.5, -(0.5**0.5)]))
        assert found[1].tolist() == [0, 0]
        torch.testing.assert_close(found[2], torch.tensor([0.5**0.5, 0.0]), rtol=1e-4, atol=0)
        assert not found[3:].any()


def test_strides_and_nothing(device):
    rows, norms = (x.to(device) for x in given(9, 7))
    radius = torch.tensor(0.7, dtype=torch.float64, device=device)
    expected = scaled_rows(rows, norms, radius)
    for layout in (rows.mT.contiguous().mT, torch.stack([rows, rows], -1)[..., 0]):
        assert torch.equal(scaled_rows(layout, torch.stack([norms, norms], -1)[:, 0], radius), expected)
    assert scaled_rows(rows[:0], norms[:0], radius).shape == (0, 7)


def test_arguments_that_do_not_fit_are_named(device):
    rows, norms = (x.to(device) for x in given(9, 7))
    radius = torch.tensor(0.7, dtype=torch.float64, device=device)
    for wrong in ((rows.long(), norms, radius), (rows, norms.float(), radius), (rows, norms, radius.float())):
        with pytest.raises(TypeError, match=r"embeddings must be floating point, norms and radius float64"):
            scaled_rows(*wrong)
    for wrong in ((rows[0], norms, radius), (rows, norms[1:], radius), (rows, norms, radius[None])):
        with pytest.raises(
            ValueError, match=r"embeddings must be \(N, D\), norms \(N,\) and radius a number"
        ):
            scaled_rows(*wrong)
