"""What the launchers ask of Triton, without a launch: grids that a GPU takes, and compilations that are checked."""

import functools
import math
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from ecsfusion_kernels import grid_barrier, language, ops
from ecsfusion_kernels.launches import launches as launches_of
from ecsfusion_kernels.ops import (
    broja,
    cluster_tables,
    dirichlet_information,
    gather_posteriors,
    group_squares,
    groups_of_rows,
    hash_rows,
    histogram,
    kmeans,
    label_model,
    lloyd_centers,
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
    principal,
    project,
    project_nearest,
    random,
    row_information,
    scaled_rows,
    seed,
    table_sums,
)

from ecsfusion.pid import clusters
from ecsfusion.pid.head_posteriors import head_pids
from ecsfusion.pid.options import EstimatorOptions

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

if language.triton is None:
    pytest.skip("Triton exists for Linux only", allow_module_level=True)

from launches_with_values import launches_with_values

MAX_GRID = (2**31 - 1, 65_535, 65_535)
MANY = 70_000


@pytest.fixture
def launches(monkeypatch):
    """The launches that would be made: kernel, arguments by name, and grid."""
    found = []

    def run(kernel, *args, grid, warmup, **constants):
        found.append((kernel, dict(zip(kernel.arg_names, args, strict=False)) | constants, grid))

    monkeypatch.setattr(type(random._uniform), "run", run)
    monkeypatch.setattr(language, "INTERPRETED", True)
    return found


def of(*shape, dtype=torch.float32, device="meta"):
    return torch.ones(shape, dtype=dtype, device=device)


def whole(*shape):
    return of(*shape, dtype=torch.int64)


# Tensors without values: only shapes count.
LARGE = {
    "k-means of many problems": lambda: kmeans._launch_lloyd(of(MANY, 70, 3), of(MANY, 4, 3), 1, 1e-3),
    "k-means of many points": lambda: kmeans._launch_lloyd(of(1, 2**33, 8), of(1, 20, 8), 1, 1e-3),
    "k-means of many parts": lambda: kmeans._launch_lloyd(of(1, 64, 19_200), of(1, 19_200, 19_200), 1, 1e-3),
    "k-means of many points and parts": lambda: kmeans._launch_lloyd(of(9, 2**27, 8), of(9, 300, 8), 1, 1e-3),
    "seed of many problems": lambda: seed._launch_seed(of(MANY, 70, 3), 4, 0),
    "seed of many points": lambda: seed._launch_seed(of(3, 2**33, 3), 4, 0),
    "histogram of many tables": lambda: histogram._launch_histogram(
        *(whole(MANY, 2000) for _ in range(3)), 3, 3, 2
    ),
    "uniform": lambda: random._launch_uniform(whole(2**40), 0),
    "poisson": lambda: poisson._launch_poisson(of(2**30, dtype=torch.float64), 256, 0),
    "principal": lambda: principal._launch_orthonormalize(of(MANY, 9, 16), False),
    "project_nearest": lambda: project_nearest._launch_project_nearest(
        of(2**33, 8), of(8, 5), of(5), of().double(), of(64, 5)
    ),
    "gather_posteriors": lambda: gather_posteriors._launch_gather_posteriors(
        of(MANY, 2**26, 3), whole(20_000)
    ),
    "pool_posteriors": lambda: pool_posteriors._launch_pool_posteriors(
        of(MANY, 3, 20_000, 3), of(2, MANY, 3), whole(20_000), of(3)
    ),
    "match_prior": lambda: match_prior._launch_match_prior(of(MANY, 3, 4).double(), of(4).double(), 0.0, 3),
    "hash_rows": lambda: hash_rows._launch_hash_rows(of(2**23, 3), None, 0, None, 40),
    "lloyd_centers": lambda: lloyd_centers._launch_lloyd_centers(of(MANY, 9, 3), of(MANY, 4, 3), 2, 1e-3),
    "group_squares": lambda: group_squares._launch_group_squares(of(MANY, 3).double(), whole(3)),
    "pointwise_union": lambda: pointwise_union._launch_pointwise_union(
        of(2 * MANY, 9, 3), whole(2 * MANY, 9), of(MANY, 4, 3), of(MANY, 4, 3), of(3), whole(9)
    ),
    "row_information": lambda: row_information._launch_row_information(
        of(MANY, 20_000, 3).double(), whole(20_000), of(3).double()
    ),
    "cluster_tables": lambda: cluster_tables._launch_cluster_tables(of(MANY, 64, 32).double()),
    "groups_of_rows": lambda: groups_of_rows._launch_groups_of_rows(whole(2**30), whole(2**30)),
    "median_norm": lambda: median_norm._launch_median_norm(of(MANY, 9000).double()),
    "pair_noise": lambda: pair_noise._launch_pair_noise(of(MANY, 3, 15).double()),
    "scaled_rows": lambda: scaled_rows._launch_scaled_rows(of(2**30, 64), of(2**30).double(), of().double()),
    "table_sums": lambda: table_sums._launch_table_sums(of(MANY, 3, 4, 2).double()),
    "pair_tables": lambda: pair_tables._launch_pair_tables(of(3, 4, 2).double(), MANY),
    "label_model": lambda: label_model._launch_label_model(of(MANY, 3, 4, 2).double(), of(2).double(), 3),
    "dirichlet_information": lambda: dirichlet_information._launch_dirichlet_information(
        of(MANY, 900, 2).double(), of(MANY, 900, 2).double(), of(13).double()
    ),
    "pool_weights": lambda: pool_weights._launch_pool_weights(
        of(MANY, 2, 9, 3), whole(9), of(3), None, None, 4096, 3
    ),
    "broja": lambda: broja._launch_broja(of(MANY, 3, 4).double(), of(MANY, 5, 4).double(), 1e-3, 10),
    "loglinear": lambda: loglinear._launch_loglinear(of(MANY, 3, 5), of(MANY, 3, 4), of(MANY, 5, 4), 3),
}


@pytest.mark.parametrize("name", LARGE)
def test_no_axis_of_a_grid_is_too_long(launches, name):
    LARGE[name]()
    assert launches
    for _, _, grid in launches:
        assert all(1 <= size <= most for size, most in zip(grid, MAX_GRID, strict=False))


def test_a_probe_by_heads_is_few_launches():
    """Two modalities and a joint head, with intervals; each estimate of weights and each scaling is one launch."""
    heads = [of(20_000, 10) for _ in range(3)]
    found = launches_of(head_pids, {"a": heads[0], "b": heads[1]}, heads[2], whole(20_000), [("a", "b")])
    kernels = Counter(launch.name for launch in found if launch.kernel is not None)
    assert kernels == {
        "_hash_rows": 3,
        "_groups_of_rows": 1,
        "_gather_posteriors": 1,
        "_pool_weights": 1,
        "_pool_posteriors": 1,
        "_match_prior": 2,
        "_row_information": 1,
        "_lloyd_centers": 1,
        "_assign": 1,
        "_cluster_tables": 1,
        "_marginals": 1,
        "_broja": 1,
        "_certify": 1,
        "_pointwise_union": 1,
        "_group_squares": 1,
    }
    assert len(found) <= 80


def test_a_probe_by_clusters_is_few_launches():
    """Two modalities, 32 permutation and 50 bootstrap replicates; all tables are solved together."""
    named = {name: of(20_000, 768, dtype=torch.bfloat16) for name in "ab"}
    options = EstimatorOptions("clusters", 20, 8, True, permutations=32, bootstrap=50)
    found = launches_of(clusters._estimate, named, whole(20_000), whole(8192), 20, 10, options)
    kernels = Counter(launch.name for launch in found if launch.kernel is not None)
    assert kernels == {
        "_median_norm": 1,
        "_scaled_rows": 2,
        "_directions": 1,
        "_split": 4,
        "_project": 2,
        "_project_nearest": 2,
        "_seed": 1,
        "_lloyd_centers": 1,
        "_histogram": 1,
        "_pair_tables": 1,
        "_pair_noise": 1,
        "_poisson": 3,
        "_table_sums": 3,
        "_shrink_pairs": 2,
        "_loglinear": 2,
        "_labels_given": 2,
        "_dirichlet_information": 1,
        "_marginals": 1,
        "_broja": 1,
        "_certify": 1,
    }
    assert len(found) <= 80


def test_conversions_inside_a_launcher_are_counted():
    """They are copies, which PyTorch hands over under another name there."""
    table = of(2, 9, dtype=torch.float32)
    names = [launch.name for launch in launches_of(poisson.poisson, table, 3, 0)]
    assert names == ["torch._to_copy", "_poisson"]


def test_launches_of_a_call_that_reads_values():
    """What the host reads is there, and ops of the kernel package are what their launchers start."""
    seen = []

    def estimate(rows):
        doubled = rows * 2
        doubled += torch.tensor([1.0], device=rows.device)
        seen.append(doubled.device.type)
        if bool(doubled.sum() > 10):
            doubled = doubled.exp()
        seen.append(doubled[0, 0].item())
        labels = nearest.nearest(doubled[None], torch.ones(1, 2, 3, device=rows.device))[0]
        seen.append(labels.cpu().tolist())
        torch.arange(3, device="cpu").exp()

    found = launches_with_values(estimate, torch.full((4, 3), 2.0))
    assert seen == ["meta", pytest.approx(math.exp(5)), [[0] * 4]]
    names = [
        "mul",
        "tensor",
        "add_",
        "sum",
        "gt",
        "_local_scalar_dense",
        "exp",
        "_local_scalar_dense",
        "ones",
    ]
    assert [launch.name for launch in found] == [*(f"torch.{n}" for n in names), "_assign", "torch._to_copy"]


def matched(classes, problems):
    match_prior._launch_match_prior(of(problems, 100_000, classes).double(), of(classes).double(), 0.0, 3)


def clustered(points, problems):
    lloyd_centers._launch_lloyd_centers(of(problems, points, 10), of(problems, 20, 10), 2, 1e-3)


@pytest.mark.parametrize(
    "launch",
    [functools.partial(matched, classes) for classes in (10, 100, 1000)]
    + [functools.partial(clustered, points) for points in (2000, 4096)],
)
@pytest.mark.parametrize("problems", [1, 3, 40, 132, 133, MANY])
def test_programs_that_wait_for_each_other_are_all_resident(launches, monkeypatch, problems, launch):
    monkeypatch.setattr(language, "INTERPRETED", False)
    launch(problems)
    ((_, arguments, (blocks,)),) = launches
    assert blocks == problems * arguments["num_programs"]
    assert arguments["launch_cooperative_grid"] == (arguments["num_programs"] > 1) == (problems <= 66)
    assert blocks <= grid_barrier.MULTIPROCESSORS or problems > 132


@pytest.mark.parametrize("pools", [1, 3, 40, 132, 133, MANY])
def test_programs_of_few_warps_are_two_on_a_multiprocessor(launches, monkeypatch, pools):
    monkeypatch.setattr(language, "INTERPRETED", False)
    pool_weights._launch_pool_weights(of(pools, 2, 5000, 10), whole(5000), of(10), None, None, 4096, 3)
    ((_, arguments, (blocks,)),) = launches
    assert blocks == pools * arguments["num_programs"]
    assert arguments["launch_cooperative_grid"] == (arguments["num_programs"] > 1) == (pools <= 132)
    assert blocks <= 2 * grid_barrier.MULTIPROCESSORS or pools > 264


def test_every_part_of_k_means_has_a_block(launches):
    LARGE["k-means of many parts"]()
    parts = 19_200 // 64 * (19_200 // 32)
    assert [grid for kernel, _, grid in launches if kernel is kmeans._update] == [(parts,)] * 2


@pytest.mark.parametrize(("number", "kernel"), [(2**31 - 1, "_sum_runs"), (2**31, "_update")])
def test_labels_are_sorted_where_torch_can_sort_as_many(launches, number, kernel):
    """On a GPU it sorts at most 2^31 - 1 numbers."""
    kmeans._launch_lloyd(of(1, number, 8), of(1, 300, 8), 1, 1e-3)
    assert getattr(kmeans, kernel) in [launched for launched, *_ in launches]


def shifted(x):
    """The same values one element later in memory: contiguous, and not at a multiple of 16 bytes."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype)
    memory[1:] = x.flatten()
    found = memory[1:].view(x.shape)
    assert found.data_ptr() % 16
    return found


def points(width):
    return torch.ones(4, 70, width)


@pytest.mark.parametrize(
    ("given", "kernel"),
    [
        (points(4), nearest._assign_by_thread),
        (points(8), nearest._assign_by_thread),
        (points(8)[:1].expand(3, -1, -1), nearest._assign_by_thread),
        (points(16)[..., 4:12], nearest._assign_by_thread),
        (points(8)[:, :69], nearest._assign),
        (points(12), nearest._assign),
        (points(11)[..., 3:], nearest._assign),
        (points(16)[..., ::2], nearest._assign),
        (shifted(points(8)), nearest._assign),
    ],
)
def test_many_points_of_4_or_8_numbers_side_by_side_are_compared_by_threads(
    launches, monkeypatch, given, kernel
):
    monkeypatch.setattr(nearest, "MIN_POINTS_BY_THREAD", 70)
    nearest.nearest(given, torch.ones(len(given), 5, given.shape[2]))
    ((launched, arguments, _),) = launches
    assert launched is kernel
    assert arguments["point_stride"] == given.stride(1)
    assert arguments["problem_stride"] == given.stride(0)


VARIANTS = [variant for module in ops.modules() for variant in module.variants()]

# What a user may give, and whose memory may begin anywhere.
GIVEN = {
    "uniform": lambda to: random.uniform(to(torch.arange(9)), 0),
    "poisson": lambda to: poisson.poisson(to(of(9, dtype=torch.float64, device="cpu")), 2, 0),
    "histogram": lambda to: histogram.histogram(*(to(torch.arange(9)) for _ in range(3)), 3, 3, 3),
    **{
        f"{name} {width}": lambda to, call=call, width=width: call(
            to(points(width)), to(points(width)[:, :5])
        )
        for width in (8, 16, 40)
        for name, call in (("nearest", nearest.nearest), ("seed", lambda x, _: seed.seed(x, 3)))
    },
    **{
        f"{name} {dtype} {width}": lambda to, name=name, call=call, dtype=dtype, width=width: call(
            to(points(width)[0].to(dtype)),
            to(points(width)[0, :width, :5]),
            to(points(5)[0, 0]),
            to(of(dtype=torch.float64, device="cpu")),
            *([to(points(5)[0, :3])] if name == "project_nearest" else []),
        )
        for name, call in (("project", project.project), ("project_nearest", project_nearest.project_nearest))
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for width in (8, 9)
    },
    "hash_rows": lambda to: hash_rows.hash_rows(to(points(3)[0]), to(torch.arange(3)), 0),
    "pool_weights": lambda to: pool_weights.pool_weights(
        to(points(3)[None]), to(torch.arange(70) % 3), to(of(3, device="cpu"))
    ),
    **{
        f"gather_posteriors {dtype}": lambda to, dtype=dtype: gather_posteriors.gather_posteriors(
            to(points(3).to(dtype)), to(torch.arange(70))
        )
        for dtype in (torch.float16, torch.float32, torch.float64)
    },
    "pool_posteriors": lambda to: pool_posteriors.pool_posteriors(
        to(points(3)[None]),
        to(of(2, 1, 4, dtype=torch.float64, device="cpu")),
        to(torch.arange(70) % 2),
        to(of(3, dtype=torch.float64, device="cpu")),
    ),
    "match_prior": lambda to: match_prior.match_prior(
        to(points(3).double()), to(of(3, dtype=torch.float64, device="cpu"))
    ),
    "row_information": lambda to: row_information.row_information(
        to(points(3).double()), to(torch.arange(70) % 3), to(of(3, dtype=torch.float64, device="cpu"))
    ),
    "cluster_tables": lambda to: cluster_tables.cluster_tables(to(points(3)[:, :20].double())),
    "median_norm": lambda to: median_norm.median_norm(to(points(3)[..., 0].double())),
    "pair_noise": lambda to: pair_noise.pair_noise(to(points(15).double())),
    "scaled_rows": lambda to: scaled_rows.scaled_rows(
        to(points(3)[0]), to(points(3)[0, :, 0].double()), to(of(dtype=torch.float64, device="cpu"))
    ),
    "table_sums": lambda to: table_sums.table_sums(to(points(3)[:, :20].double())),
    "pair_tables": lambda to: pair_tables.pair_tables(to(points(3)[:, :30].double()), 9),
    "label_model": lambda to: label_model.label_model(
        to(points(3)[None, :, :30].double()), to(of(2, dtype=torch.float64, device="cpu")), 1
    ),
    "dirichlet_information": lambda to: dirichlet_information.dirichlet_information(
        to(points(3).double()), to(points(3).double()), to(of(2, dtype=torch.float64, device="cpu"))
    ),
    "lloyd_centers": lambda to: lloyd_centers.lloyd_centers(to(points(8)), to(points(8)[:, :5]), 2),
    "lloyd": lambda to: kmeans.lloyd(to(points(8)), to(points(8)[:, :5]), max_iterations=2),
}


@pytest.mark.parametrize("place", [torch.clone, shifted])
@pytest.mark.parametrize("name", GIVEN)
def test_the_check_compiles_what_unaligned_arguments_ask_for(launches, name, place):
    GIVEN[name](place)
    assert launches
    for kernel, arguments, _ in launches:
        tensors = {key: value for key, value in arguments.items() if isinstance(value, torch.Tensor)}
        specialized = {parameter.name for parameter in kernel.params if not parameter.do_not_specialize}
        unaligned = {key for key, value in tensors.items() if value.data_ptr() % 16} & specialized
        assert unaligned in [
            set(variant.unaligned)
            for variant in VARIANTS
            if variant.kernel is kernel
            and all(arguments[key] == value for key, value in variant.constants.items())
        ]
