"""k-means++ seeding: the reference's points, on every device."""

import pytest
import torch
from ecsfusion_kernels import reference, seed


def make(*shape, random_seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(random_seed))


@pytest.mark.parametrize(
    ("number", "clusters", "dimension", "key"),
    [(1, 3, 2, 0), (1025, 4, 17, -5), (600, 9, 8, 0), (70, 3, 40, 0), (70, 3, 40, -5), (9000, 3, 3, -5)],
)
def test_seed_draws_the_points_of_the_reference(device, number, clusters, dimension, key):
    """9000 points are too many for one block: every center is a launch."""
    points = make(1, number, dimension).expand(2, -1, -1)
    found = seed(points.to(device), clusters, key).cpu()
    assert torch.equal(found, reference.seed(points, clusters, key))


def test_seed_repeats_the_first_point_and_leaves_out_what_is_not_finite(device):
    points = torch.tensor([[2.0, 3.0]]).repeat(50, 1).unsqueeze(0)
    assert torch.equal(seed(points.to(device), 3).cpu(), points[:, :3])
    points = make(1, 60, 3)
    points[0, ::2, 1] = torch.nan
    points[0, 1::4, 0] = torch.inf
    found = seed(points.to(device), 15).cpu()
    assert torch.isfinite(found).all()
    assert len(found[0].unique(dim=0)) == 15
    assert torch.equal(found, reference.seed(points, 15))


@pytest.mark.parametrize("clusters", [0, -1])
def test_less_than_one_center_is_refused(device, clusters):
    with pytest.raises(ValueError, match=f"num_clusters must be at least 1, got {clusters}"):
        seed(make(1, 5, 2).to(device), clusters)
