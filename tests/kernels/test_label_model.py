"""The model without three-way interaction: its kernels against the reference, and what it promises."""

import math

import pytest
import torch
from ecsfusion_kernels import label_model, reference


def counts_of(*shape, mean=3.0):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.poisson(2 * mean * torch.rand(shape, generator=generator), generator=generator).double()


def noise_of(*bits):
    return torch.tensor(bits, dtype=torch.float64)


# Every tile, full and not, several blocks of classes, sparse tables, and tables that no tile holds.
@pytest.mark.parametrize(
    ("shape", "mean"),
    [
        ((1, 1, 1, 1), 3.0),
        ((2, 3, 5, 7), 3.0),
        ((2, 17, 16, 33), 0.2),
        ((1, 20, 20, 6), 1.0),
        ((1, 33, 5, 3), 3.0),
        ((1, 66, 5, 2), 3.0),
    ],
)
def test_the_kernels_fit_the_model_of_their_reference(device, shape, mean):
    counts, noise = counts_of(*shape, mean=mean), noise_of(0.02, 0.0)
    counts[0, 0, 0, 0] += 1
    expected = reference.label_model(counts, noise, 3)
    found = label_model(counts.to(device), noise.to(device), 3).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-6)
    seen = counts.sum(-1) > 0
    torch.testing.assert_close(found.sum(-1)[seen], torch.ones(int(seen.sum()), dtype=torch.float64))
    assert not found[~seen].any()


def test_without_noise_the_pair_tables_are_kept_and_with_much_of_it_nothing_is_told(device):
    counts = counts_of(2, 4, 5, 3)
    pairs = counts.sum(-1, keepdim=True)
    kept = pairs * label_model(counts.to(device), noise_of(0.0, 0.0).to(device), 100).cpu()
    for dim in (1, 2):
        torch.testing.assert_close(kept.sum(dim), counts.sum(dim), rtol=1e-4, atol=1e-4)
    nothing = label_model(counts.to(device), noise_of(9.0, 9.0).to(device), 30).cpu()
    labels = counts.sum((1, 2)) / counts.sum((1, 2, 3))[:, None]
    torch.testing.assert_close(nothing, labels[:, None, None].expand_as(counts), rtol=1e-4, atol=1e-6)


def test_the_noise_is_taken_from_the_information_of_its_pair(device):
    counts = counts_of(1, 6, 1, 4, mean=20.0)

    def bits(table):
        p = table / table.sum()
        outer = p.sum(-1, keepdim=True) * p.sum((1, 2), keepdim=True)
        return float((torch.special.xlogy(p, p) - torch.special.xlogy(p, outer)).sum()) / math.log(2)

    before = bits(counts)
    model = label_model(counts.to(device), noise_of(before / 2, 9.0).to(device)).cpu()
    assert bits(counts.sum(-1, keepdim=True) * model) == pytest.approx(before / 2, rel=0.05)


def test_strides_and_nothing(device):
    counts, noise = counts_of(2, 4, 5, 3).to(device), noise_of(0.1, 0.2).to(device)
    expected = label_model(counts, noise, 2)
    for layout in (counts.mT.contiguous().mT, torch.stack([counts, counts], -1)[..., 0]):
        assert torch.equal(label_model(layout, torch.stack([noise, noise], -1)[:, 0], 2), expected)
    assert torch.equal(label_model(counts[1:], noise, 2), expected[1:])
    assert label_model(counts[:0], noise).shape == (0, 4, 5, 3)


def test_arguments_that_do_not_fit_are_named(device):
    counts, noise = counts_of(1, 2, 3, 4).to(device), noise_of(0.0, 0.0).to(device)
    with pytest.raises(TypeError, match=r"must be float64, got torch.float32 and torch.float64; convert"):
        label_model(counts.float(), noise)
    for wrong in ((counts[0], noise), (counts, noise[:1])):
        with pytest.raises(ValueError, match=r"counts must be \(B, K1, K2, C\) and noise \(2,\), got"):
            label_model(*wrong)
