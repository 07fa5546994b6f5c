"""The nearest center against float64 and against the reference."""

import pytest
import torch
from ecsfusion_kernels import nearest, reference
from ecsfusion_kernels.ops import nearest as nearest_module


@pytest.fixture(autouse=True, params=["few points", "many points"])
def number_of_points(request, monkeypatch):
    """Few points go the way of many as well."""
    if request.param == "many points":
        monkeypatch.setattr(nearest_module, "MIN_POINTS_BY_THREAD", 0)


def make(*shape, random_seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(random_seed))


def assert_nearest(labels, distance, points, centers):
    """Labels and distances against float64, where labels may differ only among centers that are equally near."""
    exact = torch.cdist(points.double(), centers.double()).square()
    tolerance = 1e-5 * (
        points.double().square().sum(-1) + centers.double().square().sum(-1).amax(-1, keepdim=True)
    )
    assert labels.dtype == torch.int64
    assert bool(((labels >= 0) & (labels < centers.shape[1])).all())
    chosen = exact.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    assert bool((chosen - exact.amin(-1) <= tolerance).all())
    assert bool(((distance.double() - chosen).abs() <= tolerance).all())


@pytest.mark.parametrize(
    ("number", "clusters", "dimension"),
    [
        (1, 1, 1),
        (17, 2, 3),
        (1, 3, 8),
        (1025, 1, 4),
        (1030, 5, 4),
        (129, 20, 8),
        (130, 70, 8),
        (127, 32, 16),
        (257, 31, 9),
        (65, 33, 16),
        (130, 70, 40),
        (66, 20, 68),
        (63, 256, 128),
        (40, 64, 128),
        (70, 300, 16),
        (65, 70, 132),
    ],
)
def test_nearest_against_float64(device, number, clusters, dimension):
    points, centers = make(2, number, dimension), make(2, clusters, dimension, random_seed=1)
    labels, distance = nearest(points.to(device), centers.to(device))
    assert_nearest(labels.cpu(), distance.cpu(), points, centers)


@pytest.mark.parametrize("dimension", [4, 5, 40, 132])
def test_the_first_of_equal_centres_wins(device, dimension):
    """In a tile of centers, and of several tiles that are compared one after the other."""
    # Whole numbers: no product is rounded.
    points = torch.randint(-9, 9, (1, 40, dimension), generator=torch.Generator().manual_seed(0)).float()
    for clusters in (8, 140):
        centers = points[:, :1].expand(1, clusters, dimension)
        assert not nearest(points.to(device), centers.to(device))[0].any()


@pytest.mark.parametrize("dimension", [5, 8, 64, 132])
def test_no_distance_is_negative(device, dimension):
    """Of points that are centers rounding leaves as often too little as too much."""
    points = make(1, 70, dimension).add(3).to(device)
    labels, distance = nearest(points, points)
    assert torch.equal(labels[0].cpu(), torch.arange(70))
    assert (distance >= 0).all()


@pytest.mark.parametrize("dimension", [5, 8, 64, 128])
def test_points_and_centres_that_are_not_finite(device, dimension):
    points, centers = make(1, 130, dimension), make(1, 40, dimension, random_seed=1)
    points[0, 3, 2], points[0, 77, 4], points[0, 129, 0] = torch.nan, torch.inf, 1e25
    centers[0, 7, 1], centers[0, 0, 0] = torch.nan, -torch.inf
    for kept in (slice(None, 20), slice(None)):
        labels, distance = nearest(points.to(device), centers[:, kept].to(device))
        expected, _ = reference.nearest(points, centers[:, kept])
        assert torch.equal(labels.cpu(), expected)
        assert torch.nonzero(labels[0] < 0).flatten().tolist() == [3, 77, 129]
        assert torch.equal(distance.isnan(), labels < 0)
        assert not ((labels == 7) | (labels == 0)).any()


@pytest.mark.parametrize("dimension", [8, 16, 40, 128, 132])
def test_points_of_any_size_among_centres_of_any_size(device, dimension):
    """Each as exact as its own length allows: neither a far center nor a large point beside it costs it digits."""
    sizes = torch.logspace(-12, 12, 70)[None, :, None]
    points, centers = make(1, 70, dimension) * sizes, make(1, 70, dimension, random_seed=1) * sizes
    points[0, 5], centers[0, 9] = 0, 0
    points[0, :, 1] *= 1e-4
    labels, distance = (found.cpu() for found in nearest(points.to(device), centers.to(device)))
    exact = torch.cdist(points.double(), centers.double()).square()
    chosen = exact.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    length = points.double().square().sum(-1)
    # The nearest center is not longer than twice the point, or about 0 is the nearest.
    tolerance = 1e-5 * length + 1e-30
    assert bool((chosen - exact.amin(-1) <= tolerance).all())
    assert bool(((distance.double() - chosen).abs() <= tolerance).all())


@pytest.mark.parametrize("dimension", [8, 16])
def test_more_numbers_than_32_bits_count(device, large, dimension):
    if not large:
        pytest.skip("needs a GPU")
    number = (1 << 31) // dimension + 5000
    points = torch.randn(1, number, dimension, device=device)
    centers = points[:, -20:].contiguous()
    labels, distance = nearest(points, centers)
    for part in (slice(0, 1000), slice(number - 1000, number)):
        assert_nearest(labels[:, part].cpu(), distance[:, part].cpu(), points[:, part].cpu(), centers.cpu())
