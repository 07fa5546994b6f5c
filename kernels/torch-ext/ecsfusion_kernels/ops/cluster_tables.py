"""Tables of clusters and label, and of half as many clusters: one program a problem."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.broja import LN2
from ..reference.cluster_tables import ROUNDS, half_of
from ..reference.cluster_tables import cluster_tables as reference_cluster_tables
from ..reference.match_prior import TINY

__all__ = ["cluster_tables"]

TILES = ((32, 16, 4), (64, 32, 8))
"""The most clusters and classes of each compilation, which stay in registers, and its warps; larger tables are those of
the reference."""


@jit
def _x_log_x(x):
    """X log x of numbers that are not negative, 0 for 0, and NaN for NaN."""
    return tl.where(x > 0, x * tl.log(tl.where(x > 0, x, 1.0)), x * 0.0)


@jit
def _information(table, LN2):
    """I(K; Y) in bits of a table (K, C)."""
    entropies = tl.sum(_x_log_x(tl.sum(table, 1)), 0) + tl.sum(_x_log_x(tl.sum(table, 0)), 0)
    return (tl.sum(tl.sum(_x_log_x(table), 1), 0) - entropies) / LN2


@jit(do_not_specialize=["num_problems", "num_clusters", "num_classes", "half"])
def _cluster_tables(
    sums_ptr,
    tables_ptr,
    bits_ptr,
    num_problems: tl.int32,
    num_clusters: tl.int32,
    num_classes: tl.int32,
    half: tl.int32,
    LN2: tl.constexpr,
    TINY: tl.constexpr,
    ROUNDS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """T = sums scaled to the class shares of the first problem; then clusters join the nearest of the first half."""
    problem = tl.program_id(0).to(tl.int64)
    cluster, label = tl.arange(0, CLUSTERS), tl.arange(0, CLASSES)
    place = cluster[:, None] * num_classes + label[None, :]
    inside = (cluster < num_clusters)[:, None] & (label < num_classes)[None, :]
    size = num_clusters * num_classes
    least = tl.full((CLASSES,), TINY, tl.float64)
    smallest, prior, share = (
        tl.full((CLASSES,), 1.0, tl.float64),
        tl.zeros((CLASSES,), tl.float64),
        tl.zeros((CLASSES,), tl.float64),
    )
    other_ptr = sums_ptr
    for other in range(num_problems):
        found = tl.sum(tl.load(other_ptr + place, inside, other=0.0), 0)
        other_ptr += size
        smallest = tl.minimum(smallest, found)
        prior = tl.where(other == 0, found, prior)
        share = tl.where(other == problem, found, share)
    # A class that some problem has not.
    prior = tl.where(smallest > 0, prior, 0.0)
    scale = prior / tl.maximum(share, least) / tl.sum(prior, 0)
    table = tl.load(sums_ptr + problem * size + place, inside, other=0.0) * scale[None, :]
    mass = tl.sum(table, 1)
    roots = tl.sqrt(table / tl.maximum(mass, tl.full((CLUSTERS,), TINY, tl.float64))[:, None])
    fine_ptr, halved_ptr = tables_ptr + 2 * problem * size, tables_ptr + (2 * problem + 1) * size
    tl.store(fine_ptr + place, table, inside)
    tl.store(halved_ptr + place, tl.zeros((CLUSTERS, CLASSES), tl.float64), inside)
    for turn in tl.static_range(ROUNDS):
        tl.debug_barrier()
        closest = tl.full((CLUSTERS,), -1.0, tl.float64)
        nearest = tl.zeros((CLUSTERS,), tl.int32)
        for center in range(half):
            source_ptr = fine_ptr if turn == 0 else halved_ptr
            row = tl.load(source_ptr + center * num_classes + label, label < num_classes, other=0.0)
            root = tl.sqrt(row / tl.maximum(tl.zeros((CLASSES,), tl.float64) + tl.sum(row, 0), least))
            affinity = tl.sum(roots * root[None, :], 1)
            nearest = tl.where(affinity > closest, center, nearest)
            closest = tl.maximum(closest, affinity)
        if turn == 0:
            nearest = tl.where(cluster < half, cluster, nearest)
        tl.debug_barrier()
        for center in range(half):
            joined = tl.sum(tl.where((nearest == center)[:, None], table, 0.0), 0)
            tl.store(halved_ptr + center * num_classes + label, joined, label < num_classes)
    tl.debug_barrier()
    halved = tl.load(halved_ptr + place, inside, other=0.0)
    tl.store(bits_ptr + 2 * problem, _information(table, LN2))
    tl.store(bits_ptr + 2 * problem + 1, _information(halved, LN2))


def configuration(num_clusters: int, num_classes: int) -> tuple[dict[str, int], int] | None:
    """The tile for so many clusters and classes, and its warps; None where none is as large."""
    for clusters, classes, num_warps in TILES:
        if num_clusters <= clusters and num_classes <= classes:
            return {"CLUSTERS": clusters, "CLASSES": classes}, num_warps
    return None


CONSTANTS = {"LN2": LN2, "TINY": TINY, "ROUNDS": ROUNDS}


def _launch_cluster_tables(sums: Tensor) -> tuple[Tensor, Tensor]:
    num_problems, num_clusters, num_classes = sums.shape
    tile = configuration(num_clusters, num_classes)
    if tile is None or not sums.numel():
        return reference_cluster_tables(sums)
    constants, num_warps = tile
    tables, bits = _results(sums)
    sizes = (num_problems, num_clusters, num_classes, half_of(num_clusters))
    _cluster_tables[(num_problems,)](
        aligned(sums), tables, bits, *sizes, **CONSTANTS, **constants, **options(num_warps)
    )
    return tables, bits


def _results(sums: Tensor) -> tuple[Tensor, Tensor]:
    num_problems, num_clusters, num_classes = sums.shape
    return sums.new_empty(num_problems, 2, num_clusters, num_classes), sums.new_empty(num_problems, 2)


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = dict.fromkeys(("sums_ptr", "tables_ptr", "bits_ptr"), "*fp64")
    types |= dict.fromkeys(("num_problems", "num_clusters", "num_classes", "half"), "i32")
    tiles = (configuration(clusters, classes) for clusters, classes, _ in TILES)
    return [
        Variant(_cluster_tables, types, CONSTANTS | tile[0], tile[1]) for tile in tiles if tile is not None
    ]


@custom_op(add_op_namespace_prefix("cluster_tables"), mutates_args=())
def _cluster_tables_op(sums: Tensor) -> tuple[Tensor, Tensor]:
    function = _launch_cluster_tables if runs_kernels(sums) else reference_cluster_tables
    return function(sums.contiguous())


@_cluster_tables_op.register_fake
def _(sums: Tensor) -> tuple[Tensor, Tensor]:
    return _results(sums)


def cluster_tables(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Joint tables of cluster and label of sum 1, all with the same share of each class, and coarser ones of them.

    Only tables with the same shares are marginals of one distribution: each class has the share that it has in the
    first problem, and none where some problem is without it. The coarser tables have max(K / 2, 2) clusters: those of
    the first half, which the others join by the distance of Hellinger of their posteriors, and which are found anew
    from what joined them, three times. On a GPU a problem of up to 64 clusters and 32 classes is one program. The
    result has no gradient.

    Args:
        sums: (B, K, C) float64, of the posteriors of each cluster.

    Returns:
        The tables (B, 2, K, C) float64, the coarser ones second and with zeros in the place of clusters that they have
        not, and the mutual information I(K; Y) of each, (B, 2) float64 in bits.

    Raises:
        TypeError: the sums are not float64.
        ValueError: they have not three dimensions, or no cluster or class.
    """
    if sums.dtype != torch.float64:
        raise TypeError(f"sums must be float64, got {sums.dtype}; convert with .double()")
    if sums.ndim != 3 or not sums.shape[1] or not sums.shape[2]:
        raise ValueError(f"sums must be (B, K, C) with K and C at least 1, got shape {tuple(sums.shape)}")
    function = reference_cluster_tables if skips_dispatch(sums) else _cluster_tables_op
    return function(sums)
