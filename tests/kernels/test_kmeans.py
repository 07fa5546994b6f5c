"""Seeding and Lloyd's iterations against the reference and against definitions."""

import pytest
import torch
from ecsfusion_kernels import lloyd, nearest, reference, seed
from ecsfusion_kernels.ops import kmeans
from ecsfusion_kernels.ops import nearest as nearest_module


@pytest.fixture(autouse=True, params=["few points", "many points", "many points and parts"])
def number_of_points(request, monkeypatch):
    """Few points go the ways of many as well."""
    if request.param == "many points":
        monkeypatch.setattr(nearest_module, "MIN_POINTS_BY_THREAD", 0)
    if request.param == "many points and parts":
        for name in ("MIN_CLUSTERS_TO_SORT", "MIN_SUMS_TO_SORT", "MIN_POINTS_TO_SORT"):
            monkeypatch.setattr(kmeans, name, 0)
        monkeypatch.setattr(kmeans, "POINTS_OF_PIECE", 16)


def make(*shape, random_seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(random_seed))


def layouts(points):
    """The same points in other memory."""
    batch, number, dimension = points.shape
    wide = torch.full((batch, number, dimension + 3), torch.nan)
    wide[..., 1 : dimension + 1] = points
    return {
        "contiguous": points,
        "transposed": points.mT.contiguous().mT,
        "columns of wider rows": wide[..., 1 : dimension + 1],
        "every second row": points.repeat_interleave(2, 1)[:, ::2],
    }


@pytest.mark.parametrize("layout", ["transposed", "columns of wider rows", "every second row"])
def test_strides_change_nothing(device, layout):
    # Blobs far from one another, since for other strides another program may be compiled, which rounds in its own way.
    blob = torch.arange(70) % 5
    centers = 20 * make(2, 5, 8, random_seed=1)
    points = centers[:, blob] + make(2, 70, 8)
    other = layouts(points)[layout]
    # A tensor that is moved loses its gaps.
    other = torch.empty_strided(other.shape, other.stride(), device=device).copy_(other)
    points, centers = points.to(device), centers.to(device)
    found = [(nearest(p, centers), seed(p, 4, 1), lloyd(p, centers, 3)) for p in (points, other)]
    # Squared distances are differences of squared lengths, and those are sums of products with about 22 bits.
    rounded = 2.0**-21 * float(points.square().sum((-2, -1)).max())
    for a, b in zip(*found, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=rounded if x.is_floating_point() else 0)


def assert_clustering(found, points):
    """What every clustering must be, whichever way it was found.

    A squared distance is a difference of squared lengths, of products with about 22 bits; of more dimensions, tensor
    cores cut off what they add more often.
    """
    labels, sizes = found.labels.cpu(), found.sizes.cpu()
    for b in range(len(points)):
        assert torch.equal(torch.bincount(labels[b][labels[b] >= 0], minlength=sizes.shape[1]), sizes[b])
    exact = (
        points - found.centers.cpu().gather(1, labels.clamp_min(0).unsqueeze(-1).expand_as(points))
    ).double()
    exact = exact.square().sum(-1).masked_fill(labels < 0, 0.0).sum(-1)
    lengths = points.double().square().sum((-2, -1))
    rounding = 2.0**-26 * max(points.shape[-1], 32)
    assert bool(((found.inertia.cpu().double() - exact).abs() <= 1e-5 * exact + rounding * lengths).all())


@pytest.mark.parametrize(
    ("number", "clusters", "dimension"),
    [(1, 2, 1), (200, 3, 8), (129, 5, 17), (150, 66, 5), (140, 4, 70), (140, 4, 72)],
)
def test_lloyd_equals_its_reference(device, number, clusters, dimension):
    """Well separated blobs, so that rounding decides no label."""
    blob = torch.arange(number) % clusters
    points = 20 * make(2, clusters, dimension, random_seed=2)[:, blob] + make(
        2, number, dimension, random_seed=3
    )
    start = points[:, :clusters] if number >= clusters else make(2, clusters, dimension)
    found = lloyd(points.to(device), start.to(device), 4)
    expected = reference.lloyd(points, start, 4)
    assert_clustering(found, points)
    torch.testing.assert_close(found.centers.cpu(), expected.centers, rtol=1e-5, atol=1e-4)
    assert torch.equal(found.labels.cpu(), expected.labels)
    assert torch.equal(found.sizes.cpu(), expected.sizes)
    torch.testing.assert_close(found.inertia.cpu(), expected.inertia, rtol=1e-3, atol=1e-3)


def test_points_left_out_and_empty_clusters(device):
    points = make(1, 200, 6)
    points[0, 10, 3], points[0, 199, 0] = torch.nan, torch.inf
    start = torch.cat([points[:, :3], torch.full((1, 1, 6), 90.0)], 1)
    found, kept = lloyd(points.to(device), start.to(device)), points[:, torch.isfinite(points[0]).all(-1)]
    assert int(found.sizes.sum()) == 198
    assert int(found.sizes[0, 3]) == 0
    assert torch.equal(found.centers[0, 3].cpu(), start[0, 3])
    expected = reference.lloyd(kept, start)
    torch.testing.assert_close(found.inertia.cpu(), expected.inertia, rtol=1e-2, atol=1e-3)
    assert torch.isfinite(found.centers).all()


@pytest.mark.parametrize("dimension", [7, 8])
def test_a_problem_does_not_depend_on_its_batch(device, dimension):
    """One problem settles at once, the others go on: each as if it were alone, bit by bit."""
    points = make(3, 130, dimension)
    points[1] = points[1, :1]
    start = points[:, :4].contiguous()
    together = lloyd(points.to(device), start.to(device), 5, 0.0)
    for b in range(3):
        alone = lloyd(points[b : b + 1].to(device), start[b : b + 1].to(device), 5, 0.0)
        for x, y in zip(together, alone, strict=True):
            assert torch.equal(x[b : b + 1], y)


@pytest.mark.parametrize("dimension", [7, 8])
def test_problems_that_share_their_points(device, dimension):
    """The bits are those of copied points, and one problem goes on when the other has ended, before all iterations."""
    points = make(1, 200, dimension)
    starts = torch.cat([points[:, :5], 3 * points[:, :5]])
    shared = points.to(device).expand(2, -1, -1)
    found = lloyd(shared, starts.to(device), 9, 0.02)
    for x, y in zip(found, lloyd(shared.contiguous(), starts.to(device), 9, 0.02), strict=True):
        assert torch.equal(x, y)
    last = []
    for b in range(2):
        centers = [reference.lloyd(points, starts[b : b + 1], n, 0.0).centers[0] for n in range(10)]
        equal = [torch.allclose(found.centers[b].cpu(), each, rtol=1e-5, atol=1e-5) for each in centers]
        assert equal.count(True) == 1
        last.append(equal.index(True))
    assert last[0] != last[1]


@pytest.mark.parametrize("dimension", [8, 9])
def test_runs_are_equal_bit_by_bit(device, large, dimension):
    points = make(2, 300_000 if large else 300, dimension).to(device)
    first, second = (lloyd(points, seed(points, 20 if large else 5, 3), 5 if large else 2) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert_clustering(first, points.cpu())


@pytest.mark.parametrize("dimension", [3, 4])
def test_no_iterations_and_no_points(device, dimension):
    points = make(1, 20, dimension).to(device)
    start = make(1, 4, dimension, random_seed=1).to(device)
    found = lloyd(points, start, 0)
    assert torch.equal(found.centers, start)
    assert torch.equal(found.labels, nearest(points, start)[0])
    empty = lloyd(points[:, :0], start)
    assert torch.equal(empty.centers, start)
    assert empty.labels.shape == (1, 0)
    assert not empty.sizes.any()
    assert nearest(points[:0], start[:0])[0].shape == (0, 20)
    assert seed(points[:0], 4).shape == (0, 4, dimension)


def test_what_is_wrong_is_said(device):
    points, centers = torch.zeros(1, 5, 3, device=device), torch.zeros(1, 2, 3, device=device)
    with pytest.raises(TypeError, match=r"points must be float32, got torch.float64"):
        nearest(points.double(), centers)
    with pytest.raises(ValueError, match="centers must be"):
        lloyd(points, centers[..., :2])
    with pytest.raises(ValueError, match="no rows"):
        seed(points[:, :0], 2)


def test_ops_are_well_formed(device):
    ops = torch.ops.ecsfusion_kernels
    points = make(2, 20, 3).to(device)
    start = seed(points, 4)
    torch.library.opcheck(ops.seed, (points, 4, 0))
    torch.library.opcheck(ops.nearest, (points, start))
    torch.library.opcheck(ops.lloyd, (points, start, 2, 1e-3))

    def whole(points):
        return lloyd(points, seed(points, 4), 2)

    compiled = torch.compile(whole, fullgraph=True, backend="eager")(points)
    assert all(torch.equal(x, y) for x, y in zip(compiled, whole(points), strict=True))


def test_nothing_waits_and_a_graph_replays(device):
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    points = make(1, 20_000, 8).to(device).expand(3, -1, -1)

    def whole():
        return lloyd(points, seed(points, 20, 1), 10)

    expected = whole()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = whole()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(x, y) for x, y in zip(again, expected, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = whole()
    for _ in range(2):
        graph.replay()
        assert all(torch.equal(x, y) for x, y in zip(captured, expected, strict=True))


@pytest.mark.parametrize("dimension", [8, 16])
def test_more_numbers_than_32_bits_count(device, large, dimension):
    if not large:
        pytest.skip("needs a GPU")
    number = (1 << 31) // dimension + 5000
    points = torch.randn(1, number, dimension, device=device)
    start = points[:, -20:].contiguous()
    found = lloyd(points, start, 1)
    assert int(found.sizes.sum()) == number
    assert torch.isfinite(seed(points, 2)).all()
