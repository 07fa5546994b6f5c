"""What the model of the cost is asked: the launches of each kernel at the shapes of the benchmarks, and of a probe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .launches import Launch, launches
from .ops import (
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


def _of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def probe_kernels(N: int, D: int, d: int, K: int, C: int, permutations: int = 32, restarts: int = 4) -> None:
    """The kernels that a probe of two modalities by clusters starts, of N bfloat16 rows of D numbers and C classes.

    Between them `ecsfusion` starts several hundred small ops of PyTorch, which `benchmarks/bench_cost.py` counts.
    """
    sample, rows = min(N, 8192), _of(N, D, dtype=torch.bfloat16)
    basis, offset, radius = _of(D, d), _of(d), _double()
    random.uniform(_of(N, dtype=torch.int64), 0)
    radii = median_norm.median_norm(_double(2, sample))
    for of_modality in radii:
        scaled_rows.scaled_rows(rows[: min(N, 4096)], _double(min(N, 4096)), of_modality)
    principal.principal_directions(_of(2, min(N, 4096), D), d)
    for _ in range(2):
        project.project(rows[:sample], basis, offset, radius)
    problems = _of(2 * restarts, sample, d)
    lloyd_centers.lloyd_inertia(problems, seed.seed(problems, K))
    for _ in range(2):
        project_nearest.project_nearest(rows, basis, offset, radius, _of(K, d))
    index = _of(1, N, dtype=torch.int64)
    counts = histogram.histogram(index, index, index, K, K, C)
    table = counts.double()
    first, second, _ = table_sums.table_sums(table)
    broja.broja(first, second, tolerance=1e-3)
    # What is drawn with independent pairs and without interaction, and the models of the latter.
    _, expected = pair_tables.pair_tables(table[0], N)
    poisson.poisson(expected, permutations, 0)
    table_sums.table_sums(_double(3, 1 + permutations, *expected.shape[1:], 1))
    pair_noise.pair_noise(_double(3, 1 + permutations, 15))
    label_model.label_model(table, _double(2))
    drawn = poisson.poisson(table[0], permutations, 0)
    table_sums.table_sums(torch.cat([table, table, drawn]))
    tables = torch.cat([table, drawn])
    prior = label_model.label_model(tables, _double(2)).flatten(1, 2)
    dirichlet_information.dirichlet_information(tables.flatten(1, 2), prior, _double(13))


def head_probe_kernels(N: int, C: int, K: int = 24) -> None:
    """The kernels that a probe by two heads and a joint one starts, of N rows and C classes, in K clusters.

    Between them `ecsfusion` starts about fifty small ops of PyTorch (`benchmarks/count_launches.py`).
    """
    for _ in range(3):
        hash_rows.hash_rows(_of(N, C), _integers(C), 0)
    groups_of_rows.groups_of_rows(_integers(N), _integers(N))
    gather_posteriors.gather_posteriors(_of(3, N, C), _integers(N))
    pool_weights.pool_weights(_of(6, 3, -(-N // 6), C), _integers(-(-N // 6)), _of(C))
    pool_posteriors.pool_posteriors(_of(3, 3, N, C), _double(2, 3, 3), _integers(N), _double(C))
    for _ in range(2):
        match_prior.match_prior(_double(3, N, C), _double(C))
    lloyd_centers.lloyd_centers(_of(2, min(N, 2000), C), _of(2, K, C), 6)
    factors = _double(1, K, C), _double(1, K, C)
    broja.broja(*factors, tolerance=1e-3)
    cluster_tables.cluster_tables(_double(2, K, C))
    pointwise_union.pointwise_union(_double(2, N, C), _integers(2, N), *factors, _double(C), _integers(N))
    row_information.row_information(_double(3, N, C), _integers(N), _double(C))
    group_squares.group_squares(_double(12, N), _integers(N))


def _kernels(found: list[Launch]) -> list[Launch]:
    return [launch for launch in found if launch.kernel is not None]


def _project(N: int, D: int, d: int, dtype: str) -> list[Launch]:
    rows = _of(N, D, dtype=getattr(torch, dtype))
    return launches(project.project, rows, _of(D, d), _of(d), _double())


def _project_nearest(N: int, D: int, d: int, K: int, dtype: str) -> list[Launch]:
    rows = _of(N, D, dtype=getattr(torch, dtype))
    return launches(project_nearest.project_nearest, rows, _of(D, d), _of(d), _double(), _of(K, d))


def _nearest(N: int, K: int, d: int) -> list[Launch]:
    return launches(nearest.nearest, _of(1, N, d), _of(1, K, d))


def _seed(N: int, K: int, d: int) -> list[Launch]:
    return launches(seed.seed, _of(1, N, d), K)


def _step(N: int, K: int, d: int) -> list[Launch]:
    """An iteration: the first half of the kernels of k-means, which end as they began."""
    kernels = _kernels(launches(kmeans.lloyd, _of(1, N, d), _of(1, K, d), 1))
    return kernels[: len(kernels) // 2]


def _histogram(N: int, K: int, C: int) -> list[Launch]:
    return launches(histogram.histogram, *(_of(N, dtype=torch.int64) for _ in range(3)), K, K, C)


def _solver(tables: int, K: int, C: int) -> list[Launch]:
    marginal = _of(tables, K, C, dtype=torch.float64)
    return launches(broja.broja, marginal, marginal, 1e-3)


def _integers(*shape: int) -> Tensor:
    return _of(*shape, dtype=torch.int64)


def _double(*shape: int) -> Tensor:
    return _of(*shape, dtype=torch.float64)


def _pool_weights(B: int, K: int, N: int, C: int) -> list[Launch]:
    return launches(pool_weights.pool_weights, _of(B, K, N, C), _integers(N), _of(C))


def _gather_posteriors(M: int, N: int, C: int) -> list[Launch]:
    return launches(gather_posteriors.gather_posteriors, _of(M, N, C), _integers(N))


def _pool_posteriors(B: int, K: int, N: int, C: int) -> list[Launch]:
    given = _of(B, K, N, C), _double(2, B, K), _integers(N), _double(C)
    return launches(pool_posteriors.pool_posteriors, *given)


def _match_prior(B: int, N: int, C: int) -> list[Launch]:
    return launches(match_prior.match_prior, _double(B, N, C), _double(C))


def _lloyd_centers(B: int, N: int, K: int, d: int) -> list[Launch]:
    return launches(lloyd_centers.lloyd_centers, _of(B, N, d), _of(B, K, d), 6)


def _hash_rows(N: int, D: int) -> list[Launch]:
    return launches(hash_rows.hash_rows, _of(N, D), _integers(D), 0)


def _group_squares(B: int, N: int) -> list[Launch]:
    return launches(group_squares.group_squares, _double(B, N), _integers(N))


def _groups_of_rows(N: int) -> list[Launch]:
    return launches(groups_of_rows.groups_of_rows, _integers(N), _integers(N))


def _pointwise_union(B: int, N: int, K: int, C: int) -> list[Launch]:
    factors = _double(B, K, C), _double(B, K, C)
    given = _double(2 * B, N, C), _integers(2 * B, N), *factors, _double(C), _integers(N)
    return launches(pointwise_union.pointwise_union, *given)


def _row_information(Q: int, N: int, C: int) -> list[Launch]:
    return launches(row_information.row_information, _double(Q, N, C), _integers(N), _double(C))


def _cluster_tables(B: int, K: int, C: int) -> list[Launch]:
    return launches(cluster_tables.cluster_tables, _double(B, K, C))


def _table_sums(B: int, K: int, C: int) -> list[Launch]:
    return launches(table_sums.table_sums, _double(B, K, K, C))


def _pair_tables(K: int, C: int) -> list[Launch]:
    return launches(pair_tables.pair_tables, _double(K, K, C), 1)


def _label_model(B: int, K: int, C: int) -> list[Launch]:
    return launches(label_model.label_model, _double(B, K, K, C), _double(2))


def _dirichlet_information(B: int, X: int, C: int, G: int) -> list[Launch]:
    given = _double(B, X, C), _double(B, X, C), _double(G)
    return launches(dirichlet_information.dirichlet_information, *given)


Shape = dict[str, Any]
COUNTED: dict[str, Callable[..., list[Launch]]] = {
    "project": _project,
    "project nearest": _project_nearest,
    "directions": lambda B, n, D, d: launches(principal.principal_directions, _of(B, n, D), d),
    "nearest": _nearest,
    "seed": _seed,
    "kmeans step": _step,
    "histogram": _histogram,
    "solver": _solver,
    "pool weights": _pool_weights,
    "gather posteriors": _gather_posteriors,
    "pool posteriors": _pool_posteriors,
    "match prior": _match_prior,
    "lloyd centers": _lloyd_centers,
    "hash rows": _hash_rows,
    "group squares": _group_squares,
    "groups of rows": _groups_of_rows,
    "pointwise union": _pointwise_union,
    "row information": _row_information,
    "cluster tables": _cluster_tables,
    "median norm": lambda B, N: launches(median_norm.median_norm, _double(B, N)),
    "scaled rows": lambda N, D: launches(
        scaled_rows.scaled_rows, _of(N, D, dtype=torch.bfloat16), _double(N), _double()
    ),
    "pair noise": lambda R: launches(pair_noise.pair_noise, _double(3, 1 + R, 15)),
    "table sums": _table_sums,
    "pair tables": _pair_tables,
    "label model": _label_model,
    "dirichlet information": _dirichlet_information,
    "probe kernels": lambda **shape: _kernels(launches(probe_kernels, **shape)),
    "head probe kernels": lambda **shape: _kernels(launches(head_probe_kernels, **shape)),
}
"""The launches of each line of benchmarks/results/kernels.jsonl, from its shape, and of the probe."""
MILLION = 1_000_000
CASES: list[tuple[str, Shape]] = [
    ("project", {"N": 20_000, "D": 768, "d": 8, "dtype": "bfloat16"}),
    ("project", {"N": MILLION, "D": 768, "d": 8, "dtype": "bfloat16"}),
    ("project nearest", {"N": MILLION, "D": 128, "d": 8, "K": 20, "dtype": "bfloat16"}),
    ("project nearest", {"N": 20_000, "D": 768, "d": 8, "K": 20, "dtype": "bfloat16"}),
    ("project nearest", {"N": MILLION, "D": 768, "d": 8, "K": 20, "dtype": "bfloat16"}),
    ("nearest", {"N": 20_000, "K": 20, "d": 8}),
    ("nearest", {"N": MILLION, "K": 20, "d": 8}),
    ("nearest", {"N": MILLION, "K": 256, "d": 8}),
    ("seed", {"N": 20_000, "K": 20, "d": 8}),
    ("seed", {"N": MILLION, "K": 20, "d": 8}),
    ("kmeans step", {"N": MILLION, "K": 20, "d": 8}),
    ("kmeans step", {"N": MILLION, "K": 256, "d": 32}),
    ("kmeans step", {"N": MILLION, "K": 256, "d": 128}),
    ("histogram", {"N": MILLION, "K": 20, "C": 10}),
    ("solver", {"tables": 1, "K": 20, "C": 10}),
    ("solver", {"tables": 1024, "K": 20, "C": 6}),
    # Of a probe by the heads of two modalities and a joint one.
    ("pool weights", {"B": 6, "K": 3, "N": 3334, "C": 10}),
    ("gather posteriors", {"M": 3, "N": 20_000, "C": 10}),
    ("pool posteriors", {"B": 3, "K": 3, "N": 20_000, "C": 10}),
    ("match prior", {"B": 3, "N": 20_000, "C": 10}),
    ("lloyd centers", {"B": 2, "N": 2000, "K": 24, "d": 10}),
    ("hash rows", {"N": 20_000, "D": 10}),
    ("group squares", {"B": 12, "N": 20_000}),
    ("groups of rows", {"N": 20_000}),
    ("pointwise union", {"B": 1, "N": 20_000, "K": 24, "C": 10}),
    ("row information", {"Q": 3, "N": 20_000, "C": 10}),
    ("cluster tables", {"B": 2, "K": 24, "C": 10}),
    ("head probe kernels", {"N": 20_000, "C": 10}),
    # Of a probe by clusters, with 32 permutation replicates.
    ("directions", {"B": 2, "n": 4096, "D": 768, "d": 8}),
    ("directions", {"B": 9, "n": 4096, "D": 768, "d": 8}),
    ("median norm", {"B": 2, "N": 8192}),
    ("scaled rows", {"N": 4096, "D": 768}),
    ("pair noise", {"R": 32}),
    ("table sums", {"B": 51, "K": 20, "C": 10}),
    ("pair tables", {"K": 20, "C": 10}),
    ("label model", {"B": 33, "K": 20, "C": 10}),
    ("dirichlet information", {"B": 33, "X": 400, "C": 10, "G": 13}),
    ("probe kernels", {"N": 20_000, "D": 768, "d": 8, "K": 20, "C": 10}),
]
