"""The union information of each row, by the factors of the solver."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.broja import LN2
from ..reference.pointwise_union import LEAST
from ..reference.pointwise_union import pointwise_union as reference_pointwise_union

__all__ = ["pointwise_union"]

ROWS, CLASSES = 32, 16
CONSTANTS = {"LN2": LN2, "LEAST": LEAST, "ROWS": ROWS, "CLASSES": CLASSES}


@jit(do_not_specialize=["num_problems", "num_rows", "num_clusters", "num_classes", "num_blocks"])
def _pointwise_union(
    posteriors_ptr,
    clusters_ptr,
    factor1_ptr,
    factor2_ptr,
    prior_ptr,
    labels_ptr,
    at_label_ptr,
    expected_ptr,
    num_problems: tl.int32,
    num_rows: tl.int32,
    num_clusters: tl.int32,
    num_classes: tl.int32,
    num_blocks: tl.int32,
    LN2: tl.constexpr,
    LEAST: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Log2 A(k1, y) + log2 B(k2, y) - log2 p(y) at the label, and its sum with the posteriors of each side."""
    problem = (tl.program_id(0) // num_blocks).to(tl.int64)
    row = (tl.program_id(0) % num_blocks) * ROWS + tl.arange(0, ROWS)
    inside = row < num_rows
    here = problem * num_rows + row
    there = (problem + num_problems) * num_rows + row
    cluster1 = problem * num_clusters + tl.load(clusters_ptr + here, inside, other=0)
    cluster2 = problem * num_clusters + tl.load(clusters_ptr + there, inside, other=0)
    label = tl.load(labels_ptr + row, inside, other=0)
    at_label, expected = tl.zeros((ROWS,), tl.float64), tl.zeros((ROWS,), tl.float64)
    for start in range(0, num_classes, CLASSES):
        classes = start + tl.arange(0, CLASSES)
        within = inside[:, None] & (classes < num_classes)[None, :]
        prior = tl.load(prior_ptr + classes, classes < num_classes, other=1.0)
        log_prior = tl.log(tl.maximum(prior, LEAST)) / LN2
        place = classes[None, :]
        factor1 = tl.load(factor1_ptr + cluster1[:, None] * num_classes + place, within, other=1.0)
        factor2 = tl.load(factor2_ptr + cluster2[:, None] * num_classes + place, within, other=1.0)
        log_a = tl.log(tl.maximum(factor1, LEAST)) / LN2
        log_b = tl.log(tl.maximum(factor2, LEAST)) / LN2
        first = tl.load(posteriors_ptr + here[:, None] * num_classes + place, within, other=0.0)
        second = tl.load(posteriors_ptr + there[:, None] * num_classes + place, within, other=0.0)
        expected += tl.sum(first * (log_a - log_prior[None, :]) + second * log_b, 1)
        is_label = place == label[:, None]
        at_label += tl.sum(tl.where(is_label, log_a + log_b - log_prior[None, :], 0.0), 1)
    tl.store(at_label_ptr + here, at_label, inside)
    tl.store(expected_ptr + here, expected, inside)


def _launch_pointwise_union(
    posteriors: Tensor, clusters: Tensor, factor1: Tensor, factor2: Tensor, prior: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    num_clusters, num_classes = factor1.shape[1:]
    num_problems, num_rows = posteriors.shape[0] // 2, posteriors.shape[1]
    at_label, expected = (posteriors.new_empty(num_problems, num_rows) for _ in range(2))
    if num_problems and num_rows:
        given = [aligned(tensor) for tensor in (posteriors, clusters, factor1, factor2, prior, labels)]
        num_blocks = -(-num_rows // ROWS)
        sizes = (num_problems, num_rows, num_clusters, num_classes, num_blocks)
        _pointwise_union[(num_problems * num_blocks,)](
            *given, at_label, expected, *sizes, **CONSTANTS, **options(4)
        )
    return at_label, expected


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    names = ("posteriors", "factor1", "factor2", "prior", "at_label", "expected")
    types = {f"{name}_ptr": "*fp64" for name in names} | {"clusters_ptr": "*i64", "labels_ptr": "*i64"}
    sizes = ("num_problems", "num_rows", "num_clusters", "num_classes", "num_blocks")
    types |= dict.fromkeys(sizes, "i32")
    return [Variant(_pointwise_union, types, CONSTANTS, num_warps=4)]


@custom_op(add_op_namespace_prefix("pointwise_union"), mutates_args=())
def _pointwise_union_op(
    posteriors: Tensor, clusters: Tensor, factor1: Tensor, factor2: Tensor, prior: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    function = _launch_pointwise_union if runs_kernels(posteriors) else reference_pointwise_union
    return function(posteriors, clusters, factor1, factor2, prior, labels)


@_pointwise_union_op.register_fake
def _(
    posteriors: Tensor, clusters: Tensor, factor1: Tensor, factor2: Tensor, prior: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    shape = posteriors.shape[0] // 2, posteriors.shape[1]
    return posteriors.new_empty(shape), posteriors.new_empty(shape)


def pointwise_union(
    posteriors: Tensor, clusters: Tensor, factor1: Tensor, factor2: Tensor, prior: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The union information of each row, log2 Q(y | clusters) / p(y), from what `broja` found for its clusters.

    Args:
        posteriors: (2 B, N, C) float64, of the first sides of B pairs and then of the second ones.
        clusters: (2 B, N) int64, below K.
        factor1: A of each pair, (B, K, C) float64; Q(y | k1, k2) is A(k1, y) B(k2, y) wherever it has mass.
        factor2: B of each pair, the same.
        prior: p(y), (C,) float64.
        labels: (N,) int64.

    Returns:
        (B, N) float64 in bits, twice: at the label of the row, and averaged over its posteriors, log p(y) over those
        of the first side and each factor over those of its own.

    Raises:
        TypeError: the posteriors are not float64.
    """
    if posteriors.dtype != torch.float64:
        raise TypeError(f"posteriors must be float64, got {posteriors.dtype}; convert with .double()")
    function = reference_pointwise_union if skips_dispatch(posteriors, factor1) else _pointwise_union_op
    return function(posteriors, clusters, factor1, factor2, prior, labels)
