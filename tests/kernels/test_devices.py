"""The ops give the same numbers whatever the current device, autocast and the flags of the caller are."""

import contextlib

import pytest
import torch
from ecsfusion_kernels import (
    broja,
    cluster_tables,
    dirichlet_information,
    gather_posteriors,
    group_squares,
    groups_of_rows,
    hash_rows,
    histogram,
    label_model,
    lloyd,
    lloyd_centers,
    lloyd_inertia,
    loglinear,
    match_prior,
    median_norm,
    nearest,
    pair_noise,
    pair_tables,
    pointwise_union,
    poisson,
    pool_posteriors,
    pool_weights,
    principal_directions,
    project,
    project_nearest,
    row_information,
    scaled_rows,
    seed,
    table_sums,
    uniform,
)

from ecsfusion import fast_pid

GENERATOR = torch.Generator().manual_seed(0)
POINTS = torch.randn(2, 70, 9, generator=GENERATOR)
TABLES = torch.rand(2, 3, 4, 2, generator=GENERATOR, dtype=torch.float64)
TABLES = TABLES / TABLES.sum((1, 2, 3), keepdim=True)
CELLS = torch.randint(3, (3, 70), generator=GENERATOR)

OPS = {
    "principal_directions": lambda to: principal_directions(to(POINTS[:1, :30]), 3),
    "project": lambda to: project(to(POINTS[0]), to(POINTS[1, :9, :4]), to(POINTS[0, 0, :4]), 0.5),
    "project float64": lambda to: project(
        to(POINTS[0].double()), to(POINTS[1, :9, :4]), to(POINTS[0, 0, :4])
    ),
    **{
        f"project_nearest {clusters} {dtype}": lambda to, clusters=clusters, dtype=dtype: project_nearest(
            to(POINTS[0].to(dtype)),
            to(POINTS[1, :9, :4]),
            to(POINTS[0, 0, :4]),
            0.5,
            to(POINTS[1, :clusters, 4:8]),
        )
        for clusters in (5, 70)
        for dtype in (torch.float32, torch.float64)
    },
    "seed": lambda to: seed(to(POINTS), 4),
    "nearest": lambda to: nearest(to(POINTS), to(POINTS[:, :5])),
    "lloyd": lambda to: lloyd(to(POINTS), to(POINTS[:, :5]), max_iterations=3),
    "histogram": lambda to: histogram(*to(CELLS), 3, 3, 3),
    "broja": lambda to: broja(to(TABLES.sum(2)), to(TABLES.sum(1)), tolerance=1e-2),
    "broja of the reference": lambda to: broja(to(TABLES.sum(2)), to(TABLES.sum(1)), tolerance=5e-6),
    "loglinear": lambda to: loglinear(*(to(TABLES.sum(dim)) for dim in (3, 2, 1)), 3),
    "pool_weights": lambda to: pool_weights(
        to(POINTS.view(2, 2, 35, 9)), to(CELLS[0, :35]), to(POINTS[0, 0])
    ),
    "gather_posteriors": lambda to: gather_posteriors(to(POINTS), to(CELLS[0])),
    "pool_posteriors": lambda to: pool_posteriors(
        to(POINTS.view(2, 2, 35, 9)), to(TABLES[0, :2, :2]), to(CELLS[0, :35] // 2), to(POINTS[0, 0].double())
    ),
    "match_prior": lambda to: match_prior(to(TABLES[0].flatten(0, 1)), to(TABLES[0, 0, 0])),
    "hash_rows": lambda to: hash_rows(to(POINTS[0]), to(CELLS[0, :9]), 1),
    "lloyd_centers": lambda to: lloyd_centers(to(POINTS), to(POINTS[:, :5]), max_iterations=3),
    "lloyd_inertia": lambda to: lloyd_inertia(to(POINTS), to(POINTS[:, :5]), max_iterations=3),
    "median_norm": lambda to: median_norm(to(TABLES.flatten(1))),
    "pair_noise": lambda to: pair_noise(to(TABLES.flatten()[:45].view(1, 3, 15))),
    "scaled_rows": lambda to: scaled_rows(
        to(POINTS[0, :9]), to(TABLES.flatten()[:9]), to(TABLES[0, 0, 0, 0])
    ),
    "table_sums": lambda to: table_sums(to(TABLES)),
    "pair_tables": lambda to: pair_tables(to(TABLES[0]), 9),
    "label_model": lambda to: label_model(to(TABLES), to(TABLES[0, 0, :2, 0]), 3),
    "dirichlet_information": lambda to: dirichlet_information(
        to(TABLES[0]), to(TABLES[1]), to(TABLES[0, 0, :, 0])
    ),
    "group_squares": lambda to: group_squares(to(POINTS[0].double().mT), to(torch.arange(70) // 3)),
    "pointwise_union": lambda to: pointwise_union(
        to(TABLES[0].expand(2, 3, 4, 2)[..., 0]),
        to(CELLS[:2, :3]),
        to(TABLES[:1, ..., 0]),
        to(TABLES[1:, ..., 0]),
        to(TABLES[0, 0, :, 0]),
        to(CELLS[0, :3]),
    ),
    "row_information": lambda to: row_information(
        to(TABLES[0].flatten(0, 1)[None]),
        to(CELLS[0, :12] // 2),
        to(TABLES[0, 0, 0]),
    ),
    "cluster_tables": lambda to: cluster_tables(to(TABLES[0])),
    "groups_of_rows": lambda to: groups_of_rows(to(torch.arange(70) // 3), to(CELLS[0])),
    "poisson": lambda to: poisson(to(50 * TABLES), 2, 0),
    "uniform": lambda to: uniform(to(CELLS), 0),
}


def parts(result):
    """The tensors of a result on the CPU."""
    return [part.cpu() for part in (result if isinstance(result, tuple) else (result,))]


def assert_same_bits(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@contextlib.contextmanager
def reduced_precision(device):
    """Autocast, TF32 and deterministic mode, as a training run may ask for them."""
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        with torch.autocast(device.type, torch.bfloat16):
            yield
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", OPS)
def test_a_setting_of_the_caller_changes_no_bit(device, monkeypatch, name):
    # cuBLAS asks for it in deterministic mode.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    expected = parts(OPS[name](lambda x: x.to(device)))
    with reduced_precision(device):
        found = parts(OPS[name](lambda x: x.to(device)))
    assert_same_bits(found, expected)


@pytest.mark.filterwarnings("ignore:.*samples are few")
@pytest.mark.parametrize(("method", "tolerance"), [("posteriors", 1e-3), ("clusters", 1e-6)])
def test_a_setting_of_the_caller_changes_no_estimate(device, large, monkeypatch, method, tolerance):
    if not large:
        pytest.skip("the interpreter takes a minute; tests/test_precision.py has the same on the CPU")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    labels = torch.randint(3, (3000,), generator=GENERATOR)
    rows = [
        torch.nn.functional.one_hot(labels, 3).float() + torch.randn(3000, 3, generator=GENERATOR)
        for _ in range(2)
    ]
    # Wide enough for a product in TF32 to lose bits.
    named = {
        str(m): torch.cat([x, torch.randn(3000, 125, generator=GENERATOR)], 1) for m, x in enumerate(rows)
    }
    named, labels = {name: x.to(device) for name, x in named.items()}, labels.to(device)
    expected = fast_pid(named, labels, method=method)
    with reduced_precision(device):
        found = fast_pid(named, labels, method=method)
    for atom in ("redundancy", "unique", "synergy", "joint_mutual_information"):
        torch.testing.assert_close(getattr(found, atom), getattr(expected, atom), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", OPS)
def test_the_current_device_changes_no_bit(device, name):
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs: one is the current device, the other has the tensors")
    expected = parts(OPS[name](lambda x: x.to("cuda:0")))
    with torch.cuda.device(0):
        on_other = OPS[name](lambda x: x.to("cuda:1"))
        assert torch.cuda.current_device() == 0
    assert {part.device.index for part in (on_other if isinstance(on_other, tuple) else (on_other,))} == {1}
    assert_same_bits(parts(on_other), expected)
