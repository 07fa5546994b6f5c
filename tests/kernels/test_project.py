"""The projection against its reference in float64, at the borders of tiles and of the dtypes."""

import pytest
import torch
from ecsfusion_kernels import project, reference

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def make(*shape, dtype=torch.float32, random_seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(random_seed)).to(dtype)


def assert_projected(found, rows, basis, offset, radius):
    """Within float32 rounding: of the sum over a column of the basis, whatever the scale of the rows."""
    expected = reference.project(rows.double(), basis.double(), offset.double(), radius)
    scale = basis.double().square().sum(0).sqrt() + offset.abs()
    assert found.dtype == torch.float32
    error = (found.cpu().double() - expected).abs() / scale
    assert float(error.max()) < 4e-7, "more than float32 rounding"


# One column more than a block holds: a block has 128 columns, of which each of the terms takes its share.
ONE_MORE = {torch.bfloat16: 43, torch.float16: 65, torch.float32: 129}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("number", "size", "columns", "radius"),
    [
        (1, 1, 1, 0.0),
        (17, 15, 2, 0.0),
        (17, 15, 2, 3.0),
        (129, 64, 8, 3.0),
        (127, 136, 9, 0.0),
        (65, 100, 11, 3.0),
        (3, 40, 17, 0.0),
        (33, 65, ONE_MORE, 3.0),
    ],
)
def test_project_against_float64(device, dtype, number, size, columns, radius):
    columns = columns[dtype] if isinstance(columns, dict) else columns
    rows, basis, offset = make(number, size, dtype=dtype), make(size, columns, random_seed=1), make(columns)
    found = project(rows.to(device), basis.to(device), offset.to(device), radius)
    assert_projected(found, rows, basis, offset, radius)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("radius", [0.0, 1.0, 1e20, 1e-25])
def test_rows_of_any_finite_size(device, dtype, radius):
    """Rows whose squares leave float32 stand beside ordinary ones."""
    rows = make(40, 24, dtype=dtype)
    # The interpreter reads bfloat16 numbers below the normal ones wrongly; a GPU does not.
    small = 1e-35 if device.type == "cpu" else 1e-38
    rows[3], rows[4], rows[5] = rows[3].clamp(-3, 3) * 1e38, rows[4] * small, 0
    rows[6], rows[7] = torch.finfo(dtype).max, torch.finfo(dtype).tiny
    basis, offset = make(24, 8, random_seed=1), make(8)
    found = project(rows.to(device), basis.to(device), offset.to(device), radius)
    assert_projected(found, rows, basis, offset, radius)


def test_a_basis_with_large_and_small_columns(device):
    """float16 holds neither 1e6 nor 1e-9; its terms are scaled column by column."""
    basis = make(70, 5, random_seed=1) * torch.tensor([1e6, 1.0, 1e-9, 0.0, 1e30])
    for dtype in DTYPES:
        rows = make(20, 70, dtype=dtype)
        found = project(rows.to(device), basis.to(device), torch.zeros(5, device=device))
        expected = reference.project(rows.double(), basis.double(), torch.zeros(5), 0.0)
        scale = basis.double().square().sum(0).sqrt().clamp_min(1e-300)
        assert float(((found.cpu().double() - expected).abs() / scale).max()) < 4e-7


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_not_finite_become_nan_and_touch_no_other(device, dtype):
    rows = make(130, 20, dtype=dtype)
    basis, offset = make(20, 4, random_seed=1), make(4)
    clean = project(rows.to(device), basis.to(device), offset.to(device), 1.0).cpu()
    rows[2, 3], rows[64, 0], rows[129, 19] = torch.nan, torch.inf, -torch.inf
    found = project(rows.to(device), basis.to(device), offset.to(device), 1.0).cpu()
    bad = [2, 64, 129]
    assert found[bad].isnan().all()
    good = [i for i in range(130) if i not in bad]
    assert torch.equal(found[good], clean[good])


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_change_nothing(device, dtype):
    rows, basis, offset = make(70, 48, dtype=dtype), make(48, 8, random_seed=1), make(8)
    expected = project(rows.to(device), basis.to(device), offset.to(device), 0.5)
    wide = torch.full((70, 64), torch.nan, dtype=dtype, device=device)
    wide[:, 3:51] = rows.to(device)
    for other in (
        wide[:, 3:51],
        rows.to(device).T.contiguous().T,
        rows.to(device).repeat_interleave(2, 0)[::2],
    ):
        found = project(
            other, basis.to(device).T.contiguous().T, offset.to(device).repeat_interleave(2)[::2], 0.5
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    shared = project(rows[:1].to(device).expand(70, -1), basis.to(device), offset.to(device), 0.5)
    torch.testing.assert_close(shared, expected[:1].expand(70, -1), rtol=0, atol=1e-6)


def test_radius_as_a_tensor_and_no_rows(device):
    rows, basis, offset = make(5, 8).to(device), make(8, 3).to(device), make(3).to(device)
    radius = torch.tensor(0.7, dtype=torch.float64, device=device)
    assert torch.equal(project(rows, basis, offset, radius), project(rows, basis, offset, 0.7))
    assert project(rows[:0], basis, offset).shape == (0, 3)
    assert project(rows, basis[:, :0], offset[:0]).shape == (5, 0)


def test_what_is_wrong_is_said(device):
    rows, basis, offset = make(5, 8).to(device), make(8, 3).to(device), make(3).to(device)
    with pytest.raises(TypeError, match="embeddings must be floating point"):
        project(rows.long(), basis, offset)
    with pytest.raises(ValueError, match="same D"):
        project(rows[:, :7], basis, offset)
    with pytest.raises(ValueError, match="offset must be"):
        project(rows, basis, offset[:2])


def test_project_is_a_well_formed_op(device):
    rows, basis, offset = make(5, 8).to(device), make(8, 3).to(device), make(3).to(device)
    radius = torch.ones((), device=device)
    torch.library.opcheck(torch.ops.ecsfusion_kernels.project, (rows, basis, offset, radius))
    compiled = torch.compile(lambda x: project(x, basis, offset, 1.0) + 1, fullgraph=True, backend="eager")
    assert torch.equal(compiled(rows), project(rows, basis, offset, radius) + 1)


def test_nothing_waits_and_a_graph_replays(device):
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    rows, basis, offset = (
        make(20_000, 768, dtype=torch.bfloat16).to(device),
        make(768, 8).to(device),
        make(8).to(device),
    )
    radius = torch.ones((), dtype=torch.float64, device=device)
    expected = project(rows, basis, offset, radius)
    assert_projected(expected, *(x.cpu() for x in (rows, basis, offset)), 1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = project(rows, basis, offset, radius)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = project(rows, basis, offset, radius)
    graph.replay()
    assert torch.equal(captured, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "columns"), [(256, 8), (768, 8), (768, 30)])
def test_every_row_of_many_blocks_is_right_every_time(device, large, dtype, size, columns):
    """What blocks that run beside one another do to each other shows in few rows, and not in every call."""
    if not large:
        pytest.skip("needs a GPU")
    rows, basis, offset = make(20_000, size, dtype=dtype), make(size, columns), make(columns)
    expected = project(rows.to(device), basis.to(device), offset.to(device), 1.0)
    assert_projected(expected, rows, basis, offset, 1.0)
    for _ in range(20):
        assert torch.equal(project(rows.to(device), basis.to(device), offset.to(device), 1.0), expected)


def test_more_numbers_than_32_bits_count(device, large):
    if not large:
        pytest.skip("needs a GPU")
    number = (1 << 31) // 1024 + 300
    rows = torch.randn(number, 1024, dtype=torch.bfloat16, device=device)
    basis, offset = make(1024, 8).to(device), make(8).to(device)
    found = project(rows, basis, offset, 1.0)
    assert_projected(found[-400:], rows[-400:].cpu(), basis.cpu(), offset.cpu(), 1.0)
    assert torch.isfinite(found).all()
