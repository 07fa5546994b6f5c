"""Projecting rows and finding their nearest centers in one launch, against float64 and against the two kernels."""

import pytest
import torch
from ecsfusion_kernels import nearest, project, project_nearest, reference

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# The squared distances of `nearest` are off by so much of |x|^2; the larger of |x|^2 and |c|^2 is taken here.
ROUNDING = 2.0**-20


def make(*shape, dtype=torch.float32, random_seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(random_seed)).to(dtype)


def given(number, size, directions, clusters, dtype=torch.float32):
    """Rows, basis, offset and centers among the projected rows."""
    rows, basis = make(number, size, dtype=dtype), make(size, directions, random_seed=1)
    offset = make(directions, random_seed=2)
    centers = reference.project(make(clusters, size, random_seed=3), basis, offset, 1.0)
    return rows, basis, offset, centers


def on(device, *tensors):
    return [tensor.to(device) for tensor in tensors]


def two_kernels(rows, basis, offset, radius, centers):
    return nearest(project(rows, basis, offset, radius)[None], centers[None])[0][0]


def assert_as_near(labels, others, rows, basis, offset, radius, centers):
    """The same labels, but where the centers are equally near up to rounding."""
    points = reference.project(rows.double(), basis.double(), offset.double(), radius).double()
    exact = torch.cdist(points, centers.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    largest = torch.maximum(points.square().sum(1), centers.double().square().sum(1).max())
    assert labels.dtype == torch.int64
    assert labels.shape == others.shape == rows.shape[:1]
    distances = [exact.gather(1, found.cpu()[:, None])[:, 0] for found in (labels, others)]
    assert bool(((distances[0] - distances[1]).abs() <= ROUNDING * largest).all())
    assert bool((distances[0] - exact.amin(1) <= ROUNDING * largest).all())
    # Hardly any row lies so close to a border.
    assert float((labels.cpu() != others.cpu()).double().mean()) <= 0.01


# The last three have too many directions or centers for one program, of rows of some dtypes.
SHAPES = [
    (1, 1, 1, 1),
    (17, 15, 2, 3),
    (129, 64, 8, 20),
    (127, 136, 9, 33),
    (65, 100, 10, 64),
    (130, 65, 5, 32),
    (66, 72, 11, 20),
    (40, 40, 17, 20),
    (70, 24, 4, 65),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("number", "size", "directions", "clusters"), SHAPES)
def test_one_launch_finds_what_two_find(device, dtype, number, size, directions, clusters):
    radius = 0.0 if size % 2 else 3.0
    rows, basis, offset, centers = given(number, size, directions, clusters, dtype)
    arguments = (*on(device, rows, basis, offset), radius, centers.to(device))
    found, others = project_nearest(*arguments), two_kernels(*arguments)
    assert_as_near(found, others, rows, basis, offset, radius, centers)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_any_finite_size(device, dtype):
    """Rows whose squares leave float32 stand beside ordinary ones."""
    rows, basis, offset, centers = given(40, 24, 8, 20, dtype)
    if dtype != torch.float16:
        rows[3], rows[4] = rows[3].clamp(-3, 3) * 1e38, rows[4] * 1e-35
    rows[5], rows[6] = 0, torch.finfo(dtype).max
    arguments = (*on(device, rows, basis, offset), 1e20, centers.to(device))
    found, others = project_nearest(*arguments), two_kernels(*arguments)
    assert_as_near(found, others, rows, basis, offset, 1e20, centers)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clusters", [8, 40])
def test_the_first_of_equal_centers_wins(device, dtype, clusters):
    rows, basis, offset, centers = given(70, 30, 4, 1, dtype)
    arguments = (*on(device, rows, basis, offset), 1.0, centers.expand(clusters, -1).to(device))
    assert not project_nearest(*arguments).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clusters", [20, 40])
def test_rows_and_centers_that_are_not_finite(device, dtype, clusters):
    rows, basis, offset, centers = given(130, 20, 4, clusters, dtype)
    clean = project_nearest(*on(device, rows, basis, offset), 1.0, centers.to(device))
    rows[2, 3], rows[64, 0], rows[129, 19] = torch.nan, torch.inf, -torch.inf
    found = project_nearest(*on(device, rows, basis, offset), 1.0, centers.to(device))
    bad = torch.zeros(130, dtype=torch.bool, device=device)
    bad[[2, 64, 129]] = True
    assert torch.equal(found, torch.where(bad, -1, clean))
    # A center that is not finite is nearest to no row, unless there is no other.
    centers[0, 1], centers[7, 0] = torch.nan, -torch.inf
    found = project_nearest(*on(device, rows, basis, offset), 1.0, centers.to(device))
    others = two_kernels(*on(device, rows, basis, offset), 1.0, centers.to(device))
    assert torch.equal(found, others)
    assert not ((found == 0) | (found == 7)).any()
    centers[:, 2] = torch.inf
    found = project_nearest(*on(device, rows, basis, offset), 1.0, centers.to(device))
    assert torch.equal(found, torch.where(bad, -1, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_projected_rows_whose_squares_leave_float32(device, dtype):
    """They are left out, as `nearest` leaves out such points: none, some or all."""
    rows, basis, offset, centers = given(70, 20, 4, 20, dtype)
    for size in (1e15, 2e19, 1e25):
        arguments = (*on(device, rows, size * basis, offset), 1.0, centers.to(device))
        found = project_nearest(*arguments)
        points = project(*arguments[:4])
        assert torch.equal(found < 0, ~points.square().sum(1).isfinite())
        assert torch.equal(found, two_kernels(*arguments))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_change_nothing(device, dtype):
    rows, basis, offset, centers = given(70, 48, 8, 20, dtype)
    rows, basis, offset, centers = on(device, rows, basis, offset, centers)
    expected = project_nearest(rows, basis, offset, 0.5, centers)
    wide = torch.full((70, 64), torch.nan, dtype=dtype, device=device)
    wide[:, 3:51] = rows
    others = (basis.T.contiguous().T, offset.repeat_interleave(2)[::2], 0.5, centers.T.contiguous().T)
    for other in (wide[:, 3:51], rows.T.contiguous().T, rows.repeat_interleave(2, 0)[::2]):
        assert torch.equal(project_nearest(other, *others), expected)
    shared = project_nearest(rows[:1].expand(70, -1), *others)
    assert torch.equal(shared, expected[:1].expand(70))


def test_float64_rows_are_projected_in_float64(device):
    rows, basis, offset, centers = given(70, 48, 8, 20)
    arguments = (*on(device, rows.double(), basis, offset), 0.5, centers.to(device))
    assert torch.equal(project_nearest(*arguments), two_kernels(*arguments))


def test_radius_as_a_tensor_and_no_rows(device):
    rows, basis, offset, centers = on(device, *given(5, 8, 3, 4))
    radius = torch.tensor(0.7, dtype=torch.float64, device=device)
    expected = project_nearest(rows, basis, offset, 0.7, centers)
    assert torch.equal(project_nearest(rows, basis, offset, radius, centers), expected)
    for dtype in (torch.float32, torch.float64):
        found = project_nearest(rows[:0].to(dtype), basis, offset, radius, centers)
        assert (found.shape, found.dtype) == ((0,), torch.int64)


def test_what_is_wrong_is_said(device):
    rows, basis, offset, centers = on(device, *given(5, 8, 3, 4))
    with pytest.raises(TypeError, match="embeddings must be floating point"):
        project_nearest(rows.long(), basis, offset, 0.0, centers)
    with pytest.raises(ValueError, match="same D"):
        project_nearest(rows[:, :7], basis, offset, 0.0, centers)
    with pytest.raises(TypeError, match=r"centers must be float32.*float64"):
        project_nearest(rows, basis, offset, 0.0, centers.double())
    for wrong in (centers[:, :2], centers[:0], centers[None]):
        with pytest.raises(ValueError, match=r"centers must be \(K, 3\)"):
            project_nearest(rows, basis, offset, 0.0, wrong)
    with pytest.raises(ValueError, match="at least 1"):
        project_nearest(rows, basis[:, :0], offset[:0], 0.0, centers[:, :0])


def test_project_nearest_is_a_well_formed_op(device):
    rows, basis, offset, centers = on(device, *given(5, 8, 3, 4))
    radius = torch.ones((), device=device)
    torch.library.opcheck(torch.ops.ecsfusion_kernels.project_nearest, (rows, basis, offset, radius, centers))
    compiled = torch.compile(
        lambda x: project_nearest(x, basis, offset, 1.0, centers) + 1, fullgraph=True, backend="eager"
    )
    assert torch.equal(compiled(rows), project_nearest(rows, basis, offset, radius, centers) + 1)


def test_nothing_waits_and_a_graph_replays(device):
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    rows, basis, offset, centers = on(device, *given(20_000, 768, 8, 20, torch.bfloat16))
    radius = torch.ones((), dtype=torch.float64, device=device)
    expected = project_nearest(rows, basis, offset, radius, centers)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = project_nearest(rows, basis, offset, radius, centers)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = project_nearest(rows, basis, offset, radius, centers)
    captured.fill_(-2)
    graph.replay()
    assert torch.equal(captured, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "directions", "clusters"), [(256, 8, 20), (768, 10, 20), (768, 9, 64)])
def test_every_row_of_many_blocks_is_right_every_time(device, large, dtype, size, directions, clusters):
    """What blocks that run beside one another do to each other shows in few rows, and not in every call."""
    if not large:
        pytest.skip("needs a GPU")
    rows, basis, offset, centers = given(20_000, size, directions, clusters, dtype)
    arguments = (*on(device, rows, basis, offset), 1.0, centers.to(device))
    expected = project_nearest(*arguments)
    assert_as_near(expected, two_kernels(*arguments), rows, basis, offset, 1.0, centers)
    for _ in range(20):
        assert torch.equal(project_nearest(*arguments), expected)


def test_more_numbers_than_32_bits_count(device, large):
    if not large:
        pytest.skip("needs a GPU")
    number = (1 << 31) // 1024 + 300
    rows = torch.randn(number, 1024, dtype=torch.bfloat16, device=device)
    _, basis, offset, centers = on(device, *given(1, 1024, 8, 20))
    found = project_nearest(rows, basis, offset, 1.0, centers)
    assert bool((found >= 0).all())
    last = (rows[-400:], basis, offset, 1.0, centers)
    assert_as_near(
        found[-400:], two_kernels(*last), *(x.cpu() if isinstance(x, torch.Tensor) else x for x in last)
    )
