"""Tables of clusters and label: the kernel against the reference and float64, and by hand."""

import math

import pytest
import torch
from ecsfusion_kernels import cluster_tables, reference


def sums_of(problems, clusters, classes, sharpness=2.0):
    generator = torch.Generator().manual_seed(clusters + classes)
    scores = sharpness * torch.randn(problems, clusters, classes, generator=generator, dtype=torch.float64)
    sizes = torch.rand(problems, clusters, 1, generator=generator, dtype=torch.float64)
    return 50 * sizes * scores.softmax(-1)


def information(table):
    outer = table.sum(-1, keepdim=True) * table.sum(-2, keepdim=True)
    return (torch.xlogy(table, table) - torch.xlogy(table, outer)).sum((-2, -1)) / math.log(2)


# Both tiles, full and not, and tables that no tile holds.
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 2, 3), (2, 24, 10), (3, 33, 5), (2, 64, 32), (2, 65, 4), (2, 6, 40)]
)
def test_the_kernel_makes_the_tables_of_its_reference(device, shape):
    sums = sums_of(*shape)
    tables, bits = (x.cpu() for x in cluster_tables(sums.to(device)))
    expected = reference.cluster_tables(sums)
    torch.testing.assert_close(tables, expected[0], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(bits, expected[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bits, information(tables), rtol=1e-10, atol=1e-12)
    # All have the shares of the first, the coarser ones no more than half of the clusters, and nothing is lost.
    share = sums[0].sum(0) / sums[0].sum()
    torch.testing.assert_close(tables.sum(2), share.expand(shape[0], 2, -1), rtol=1e-12, atol=1e-15)
    half = max(shape[1] // 2, min(2, shape[1]))
    assert not tables[:, 1, half:].any()
    assert (bits[:, 1] <= bits[:, 0] + 1e-12).all()


def test_by_hand(device):
    """Four clusters of two classes: the last two are like the second and the first, and join them."""
    sums = torch.tensor([[[9, 1], [2, 8], [1, 9], [8, 2]]], dtype=torch.float64)
    tables, bits = (x.cpu()[0] for x in cluster_tables(sums.to(device)))
    torch.testing.assert_close(tables[0], sums[0] / 40)
    torch.testing.assert_close(tables[1], torch.tensor([[17, 3], [3, 17], [0, 0], [0, 0]]).double() / 40)
    entropy = -(0.15 * math.log2(0.15) + 0.85 * math.log2(0.85))
    assert float(bits[1]) == pytest.approx(1 - entropy, abs=1e-12)


def test_of_equally_near_clusters_the_first_is_joined(device):
    """The first two are alike, and all that are like them join the first, the second itself included."""
    sums = torch.tensor([[[4, 0], [2, 0], [0, 3], [0, 1], [1, 0], [2, 0]]], dtype=torch.float64)
    tables, _ = (x.cpu()[0] for x in cluster_tables(sums.to(device)))
    assert (13 * tables[1]).round(decimals=9).tolist() == [[9, 0], [0, 0], [0, 4], [0, 0], [0, 0], [0, 0]]


def test_a_cluster_that_started_between_two_others_is_found_anew(device):
    """The first stands between all; what joins it moves it, and the second round deals the others anew."""
    posteriors = torch.tensor([0.45, 0.05, 0.4, 0.3, 0.99, 0.98], dtype=torch.float64)
    sizes = torch.tensor([1, 1, 1, 1, 30, 30], dtype=torch.float64)
    sums = torch.stack([posteriors * sizes, (1 - posteriors) * sizes], -1)
    # Six clusters have three centers; the third, too, starts between.
    tables, _ = (x.cpu() for x in cluster_tables(sums[None].to(device)))
    halved = tables[0, 1, :3]
    shares = (halved[:, 0] / halved.sum(1)).sort().values
    # The large clusters took a center to themselves.
    torch.testing.assert_close(shares[-1], torch.tensor(0.985, dtype=torch.float64), rtol=0, atol=1e-12)


def test_classes_that_a_problem_has_not(device):
    """A class without mass in some problem is left out of all, and empty clusters change nothing."""
    sums = sums_of(2, 6, 4)
    sums[1, :, 2] = 0
    sums[:, 5] = 0
    tables, bits = (x.cpu() for x in cluster_tables(sums.to(device)))
    assert not tables[..., 2].any()
    assert not tables[:, :, 5].any()
    kept = cluster_tables(sums[:, :5][..., [0, 1, 3]].contiguous().to(device))
    torch.testing.assert_close(
        tables[:, 0][:, :5][..., [0, 1, 3]], kept[0].cpu()[:, 0], rtol=1e-12, atol=1e-15
    )
    torch.testing.assert_close(bits[:, 0], kept[1].cpu()[:, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tables.sum((2, 3)), torch.ones(2, 2, dtype=torch.float64))


def test_strides_and_nothing(device):
    sums = sums_of(3, 7, 5).to(device)
    expected = cluster_tables(sums)
    for layout in (sums.mT.contiguous().mT, torch.stack([sums, sums], -1)[..., 0]):
        for one, other in zip(cluster_tables(layout), expected, strict=True):
            assert torch.equal(one, other)
    tables, bits = cluster_tables(sums[:0])
    assert tables.shape == (0, 2, 7, 5)
    assert bits.shape == (0, 2)


def test_what_is_no_number_stays_none(device):
    """The problem with a NaN has no information; the one before it has its own."""
    sums = sums_of(2, 6, 4)
    sums[1, 2] = torch.nan
    _, bits = (x.cpu() for x in cluster_tables(sums.to(device)))
    assert bits[1].isnan().all()


def test_arguments_that_do_not_fit_are_named(device):
    with pytest.raises(TypeError, match=r"sums must be float64, got torch.float32; convert with"):
        cluster_tables(torch.ones(1, 2, 3, device=device))
    for shape in ((2, 3), (2, 0, 3), (2, 3, 0)):
        with pytest.raises(
            ValueError, match=rf"sums must be \(B, K, C\).*at least 1, got shape \({shape[0]}, "
        ):
            cluster_tables(torch.ones(shape, dtype=torch.float64, device=device))
