"""Posteriors with the prior as their mean: the kernel against the reference, and what the scaling promises."""

import pytest
import torch
from ecsfusion_kernels import match_prior, reference


def posteriors(problems, rows, classes, sharpness=2.0):
    """Posteriors (B, N, C), and the prior that they do not have."""
    generator = torch.Generator().manual_seed(problems + rows + classes)
    scores = sharpness * torch.randn(problems, rows, classes, generator=generator, dtype=torch.float64)
    share = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.2
    return scores.softmax(-1), share / share.sum()


# 600 rows of 3 classes are more than a tile has.
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 600, 3), (3, 7, 17), (1, 9, 140)])
@pytest.mark.parametrize("sharpness", [2.0, 300.0])
def test_the_kernel_scales_as_its_reference(device, shape, sharpness):
    given = posteriors(*shape, sharpness)
    expected = reference.match_prior(*given, 0.0, 4)
    found = match_prior(*(x.to(device) for x in given), 0.0, 4).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_the_mean_is_the_prior_and_rows_keep_their_sum(device):
    given = posteriors(2, 50, 4)
    found = match_prior(*(x.to(device) for x in given)).cpu()
    torch.testing.assert_close(found.mean(1), given[1].expand(2, -1), rtol=3e-4, atol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 50, dtype=torch.float64))
    assert not torch.allclose(given[0].mean(1), given[1], rtol=1e-2), "there must be something to scale"


def test_a_problem_ends_where_its_mean_is_near(device):
    """One problem needs no rescaling, and keeps its bits beside one that needs some."""
    rows, prior = posteriors(2, 50, 4)
    rows[0] = prior
    found = match_prior(rows.to(device), prior.to(device)).cpu()
    torch.testing.assert_close(found[0], rows[0], rtol=1e-12, atol=0)
    alone = reference.match_prior(rows[1:], prior)
    torch.testing.assert_close(found[1:], alone, rtol=1e-10, atol=1e-14)


def test_classes_that_no_row_or_no_prior_has(device):
    rows, prior = posteriors(1, 30, 5)
    rows[..., 1] = 0
    prior[2] = 0
    expected = reference.match_prior(rows, prior, 0.0, 6)
    found = match_prior(rows.to(device), prior.to(device), 0.0, 6).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    assert not found[..., 1:3].any()


@pytest.mark.parametrize("classes", [3, 20])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_seen_in_all_rows_of_its_problem(device, classes, value):
    """Hidden in one place, it would leave rows that look like posteriors."""
    rows, prior = posteriors(2, 30, classes)
    expected = reference.match_prior(rows[1:], prior)
    rows[0, 7, 1] = value
    found = match_prior(rows.to(device), prior.to(device)).cpu()
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1:], expected, rtol=1e-10, atol=1e-14)
    prior[2] = torch.nan
    assert match_prior(rows.to(device), prior.to(device)).isnan().all()


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (1, 2, 1100)])
def test_nothing_and_more_classes_than_a_tile_has(device, shape):
    given = posteriors(*shape)
    found = match_prior(*(x.to(device) for x in given), 0.0, 2).cpu()
    torch.testing.assert_close(found, reference.match_prior(*given, 0.0, 2))
    assert found.shape == shape


def test_layout_place_and_leading_dimensions_change_no_bit(device):
    rows, prior = (x.to(device) for x in posteriors(2, 20, 3))
    expected = match_prior(rows, prior)
    strided = rows.mT.contiguous().mT
    assert torch.equal(match_prior(strided, torch.stack([prior] * 2)[1]), expected)
    assert torch.equal(match_prior(rows.unsqueeze(0), prior)[0], expected)
    assert torch.equal(match_prior(rows[1], prior), match_prior(rows[1:], prior)[0])


def test_arguments_that_do_not_fit_are_named(device):
    rows, prior = (x.to(device) for x in posteriors(1, 9, 3))
    with pytest.raises(TypeError, match=r"must be float64, got torch.float32 .* convert with .double"):
        match_prior(rows.float(), prior)
    with pytest.raises(
        ValueError, match=r"prior must be \(C,\) with the C of posteriors \(1, 9, 3\), got \(2,\)"
    ):
        match_prior(rows, prior[:2])
