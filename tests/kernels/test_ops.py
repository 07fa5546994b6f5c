"""What an op returns is what its fake says, whatever the layout of the arguments: by references and by kernels."""

import pytest
import torch
from ecsfusion_kernels import language, nearest, uniform
from torch._subclasses.fake_tensor import FakeTensorMode

GENERATOR = torch.Generator().manual_seed(0)


def real(*shape, dtype=torch.float32):
    return torch.rand(shape, generator=GENERATOR).to(dtype)


def whole(*shape):
    return torch.randint(3, shape, generator=GENERATOR)


# The arguments of each op; of tensors in a list the layout is changed, and what a function returns fits the first one.
CASES = {
    "uniform": ([whole(4, 6)], 3),
    "poisson": ([50 * real(4, 6)], 2, 0),
    "histogram": ([whole(2, 30), whole(2, 30), whole(2, 30)], 3, 3, 3),
    "project": ([real(20, 9)], real(9, 4), real(4), torch.tensor(0.5)),
    "project_nearest": ([real(20, 9)], real(9, 4), real(4), torch.tensor(0.5), real(3, 4)),
    "project_nearest of many centers": ([real(20, 9)], real(9, 4), real(4), torch.tensor(0.5), real(70, 4)),
    "principal_directions": ([real(2, 20, 9) - 0.5], 3),
    "seed": ([real(2, 30, 5)], 2, 0),
    "nearest": ([real(2, 30, 5), real(2, 3, 5)],),
    "lloyd": ([real(2, 30, 5), real(2, 3, 5)], 1, 1e-3),
    "lloyd without iterations": ([real(2, 30, 5), real(2, 3, 5)], 0, 1e-3),
    "broja": (
        [real(2, 1, 3, 4, dtype=torch.float64) / 12, real(2, 1, 5, 4, dtype=torch.float64) / 20],
        0.1,
        5,
    ),
    "broja of the reference": ([real(2, 3, 4) / 12, real(2, 5, 4) / 20], 1e-6, 5),
    "pool_weights": ([real(2, 3, 20, 3)], whole(20), real(3).log(), None, None, 7, 1),
    "pool_weights of sets": (
        [real(2, 1, 20, 3)],
        whole(20),
        real(3).log(),
        torch.arange(20),
        torch.tensor([0, 7, 20]),
        4096,
        1,
    ),
    "gather_posteriors": ([real(2, 9, 3)], whole(9)),
    "pool_posteriors": (
        [real(2, 3, 9, 4)],
        lambda logits: real(2, len(logits), 3, dtype=torch.float64),
        whole(9) // 2,
        real(4, dtype=torch.float64),
    ),
    "match_prior": ([real(2, 8, 3, dtype=torch.float64)], real(3, dtype=torch.float64), 0.0, 2),
    "hash_rows": ([real(20, 9)], torch.arange(9), 3, None, 0),
    "lloyd_centers": ([real(2, 30, 5), real(2, 3, 5)], 1, 1e-3),
    "lloyd_inertia": ([real(2, 30, 5), real(2, 3, 5)], 1, 1e-3),
    "table_sums": ([real(2, 3, 4, 2, dtype=torch.float64).abs()],),
    "pair_tables": ([real(3, 4, 2, dtype=torch.float64).abs()], 9),
    "label_model": ([real(2, 3, 4, 2, dtype=torch.float64).abs()], torch.tensor([0.1, 0.2]).double(), 2),
    "dirichlet_information": (
        [*real(2, 2, 5, 3, dtype=torch.float64).abs()],
        torch.tensor([0.1, 10.0], dtype=torch.float64),
    ),
    "median_norm": ([real(3, 9, dtype=torch.float64)],),
    "pair_noise": ([real(3, 4, 15, dtype=torch.float64)],),
    "scaled_rows": (
        [real(9, 5)],
        lambda rows: torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64),
        torch.tensor(0.5, dtype=torch.float64),
    ),
    "group_squares": ([real(2, 9, dtype=torch.float64)], torch.arange(9) // 2),
    "pointwise_union": (
        [real(4, 9, 3, dtype=torch.float64), whole(4, 9), *real(2, 2, 3, 3, dtype=torch.float64)],
        real(3, dtype=torch.float64),
        whole(9),
    ),
    "row_information": ([real(2, 9, 4, dtype=torch.float64)], whole(9), real(4, dtype=torch.float64)),
    "cluster_tables": ([real(4, 6, 5, dtype=torch.float64).exp()],),
    "groups_of_rows": ([whole(4, 9)[0], whole(4, 9)[1]],),
    "loglinear": ([real(2, 3, 4) / 12, real(2, 3, 5) / 15, real(2, 4, 5) / 20], 1),
}
LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT if x.ndim > 1 else x,
    "columns first": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "with gaps": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded": lambda x: x[:1].expand(x.shape),
    "empty": lambda x: x[:0],
    "large": lambda x: x.repeat(300, *[1] * (x.ndim - 1)),
}


def arguments(name, layout, device):
    lists, *others = CASES[name]
    changed = [LAYOUTS[layout](x.to(device)) for x in lists]
    assert layout != "with gaps" or not changed[0].is_contiguous()
    others = [x(changed[0]) if callable(x) else x for x in others]
    return [*changed, *(x.to(device) if isinstance(x, torch.Tensor) else x for x in others)]


def layouts(result):
    """Shape, strides, dtype and device type of each tensor; strides of an empty one say nothing."""
    parts = result if isinstance(result, (tuple, list)) else (result,)
    return [(x.shape, x.stride() if x.numel() else (), x.dtype, x.device.type) for x in parts]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_a_fake_has_the_strides_that_the_op_returns(device, name, layout):
    if language.INTERPRETED and name == "principal_directions" and layout != "empty":
        pytest.skip("the interpreter takes four seconds, and the layout ends at its first product")
    if language.INTERPRETED and layout == "large":
        pytest.skip("the interpreter takes minutes")
    op = getattr(torch.ops.ecsfusion_kernels, name.split()[0])
    given = arguments(name, layout, device)
    expected = layouts(op(*given))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in given]
        assert layouts(op(*fakes)) == expected
    if not language.INTERPRETED:
        # Runs the op several times.
        torch.library.opcheck(op, tuple(given), test_utils=("test_schema", "test_faketensor"))


def test_every_op_is_among_them():
    names = {name.split()[0] for name in CASES}
    registered = {
        name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if "ecsfusion_kernels::" in name
    }
    assert names == registered


@pytest.mark.parametrize("name", ["uniform", "nearest"])
def test_more_than_two_billion_values(device, large, name):
    """Places beyond 2^31 need 64 bits."""
    if device.type != "cuda" or torch.cuda.get_device_properties(device).total_memory < 60 * 2**30:
        pytest.skip("needs a GPU of 60 GB")
    if name == "uniform":
        counter = torch.arange(2**31 + 1029, device=device)
        assert torch.equal(uniform(counter, 3)[-2000:], uniform(counter[-2000:].clone(), 3))
    else:
        # So many that alone they are read by the same compilation: another one need not have equal bits.
        last = 200_003
        points = torch.zeros(1, 2**28 + 129, 8, device=device)
        points[:, -last:] = real(1, last, 8).to(device)
        centers = real(1, 5, 8).to(device)
        found, expected = nearest(points, centers), nearest(points[:, -last:].clone(), centers)
        assert all(torch.equal(one[:, -last:], other) for one, other in zip(found, expected, strict=True))
