"""Posteriors of rows in another order: the kernel against the reference, and what extreme logits give."""

import math

import pytest
import torch
from ecsfusion_kernels import gather_posteriors, reference

INFINITE = math.inf
LARGEST = torch.finfo(torch.float64).max


def arguments(heads, rows, classes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    logits = 5 * torch.randn(heads, rows, classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randperm(rows, generator=generator)


# More rows than a block has, and more classes than a tile; the largest logit is in any of the tiles.
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 150, 3), (2, 20, 16), (2, 37, 70), (1, 3, 2051)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_kernel_has_the_posteriors_of_its_reference(device, shape, dtype):
    given = arguments(*shape, dtype)
    found = gather_posteriors(*(x.to(device) for x in given)).cpu()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, reference.gather_posteriors(*given), rtol=1e-13, atol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:2], dtype=torch.float64))


@pytest.mark.parametrize("heads", [1, 3])
def test_the_logarithms_of_posteriors_give_them_back_in_the_order(device, heads):
    posteriors = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], dtype=torch.float64)
    order = torch.tensor([1, 0])
    found = gather_posteriors(posteriors.log().expand(heads, 2, 3).to(device), order.to(device)).cpu()
    torch.testing.assert_close(found, posteriors[order].expand(heads, 2, 3), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("padding", [0, 40])
def test_what_is_no_number_or_infinite(device, dtype, padding):
    """By hand, and in the first or another tile of classes."""
    nan = math.nan
    rows = {
        (nan, 0.0): (0.5, 0.5),
        (nan, nan): (0.5, 0.5),
        (INFINITE, 3.0): (1.0, 0.0),
        (-INFINITE, 3.0): (0.0, 1.0),
        (INFINITE, INFINITE): (0.5, 0.5),
        (INFINITE, -INFINITE): (1.0, 0.0),
        (-INFINITE, INFINITE): (0.0, 1.0),
    }
    logits = torch.full((1, len(rows), padding + 2), -INFINITE)
    logits[0, :, padding // 2] = torch.tensor([row[0] for row in rows])
    logits[0, :, -1] = torch.tensor([row[1] for row in rows])
    order = torch.arange(len(rows))
    found = gather_posteriors(logits.to(device, dtype), order.to(device)).cpu()
    expected = torch.tensor(list(rows.values()), dtype=torch.float64)
    assert torch.equal(found[0][:, [padding // 2, -1]], expected)
    assert torch.equal(found.sum(-1), torch.ones_like(found[..., 0]))


def test_classes_that_no_head_knows_are_equal(device):
    """All infinite, so that every exponent is of a difference of the largest numbers."""
    for logit in (-INFINITE, INFINITE, -LARGEST, LARGEST):
        logits = torch.full((1, 2, 20), logit, dtype=torch.float64)
        found = gather_posteriors(logits.to(device), torch.arange(2).to(device)).cpu()
        torch.testing.assert_close(found, torch.full_like(found, 1 / 20), rtol=1e-15, atol=0)


def test_some_rows_again_strides_nothing_and_other_dtypes(device):
    logits, order = (x.to(device) for x in arguments(2, 40, 5))
    expected = gather_posteriors(logits, order)
    some = torch.tensor([7, 7, 39], device=device)
    assert torch.equal(gather_posteriors(logits, some), gather_posteriors(logits, order.sort()[0])[:, some])
    strided = logits.mT.contiguous().mT, torch.stack([order] * 2, 1)[:, 0]
    assert torch.equal(gather_posteriors(*strided), expected)
    shared = gather_posteriors(logits[:1].expand(2, -1, -1), order)
    assert torch.equal(shared, expected[:1].expand(2, -1, -1))
    assert gather_posteriors(logits[:0], order).shape == (0, 40, 5)
    assert gather_posteriors(logits[..., :0], order).shape == (2, 40, 0)
    assert gather_posteriors(logits[:, :0], order[:0]).shape == (2, 0, 5)
    with pytest.raises(TypeError, match=r"logits must be floating-point numbers, got torch.int64; convert"):
        gather_posteriors(logits.long(), order)
