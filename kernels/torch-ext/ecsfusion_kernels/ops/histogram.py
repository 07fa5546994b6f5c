"""Joint tables of counts from cluster indices and labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, jit, options, runs_kernels, tl, with_unaligned
from ..reference.histogram import histogram as reference_histogram

__all__ = ["histogram"]

# Samples per block. 8 per thread hide the latency of the loads, and 20 000 samples still fill 20 multiprocessors.
BLOCK = 1024


@jit(do_not_specialize=["num_samples", "num_blocks", "num_first", "num_second", "num_classes"])
def _histogram(
    first_ptr,
    second_ptr,
    labels_ptr,
    counts_ptr,
    num_samples: tl.int64,
    num_blocks: tl.int32,
    num_first: tl.int64,
    num_second: tl.int64,
    num_classes: tl.int64,
    BLOCK: tl.constexpr,
):
    """counts[problem, first, second, label] += 1, one block of samples of one problem.

    Integer sums do not depend on their order, so atomics are reproducible.
    """
    problem = (tl.program_id(0) // num_blocks).to(tl.int64)
    sample = (tl.program_id(0) % num_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = sample < num_samples
    first = tl.load(first_ptr + problem * num_samples + sample, inside, other=-1)
    second = tl.load(second_ptr + problem * num_samples + sample, inside, other=-1)
    label = tl.load(labels_ptr + problem * num_samples + sample, inside, other=-1)
    counted = (first >= 0) & (first < num_first) & (second >= 0) & (second < num_second)
    counted = counted & (label >= 0) & (label < num_classes)
    cell = ((problem * num_first + first) * num_second + second) * num_classes + label
    tl.atomic_add(counts_ptr + cell, tl.full([BLOCK], 1, tl.int32), counted, sem="relaxed")


def _launch_histogram(
    first: Tensor, second: Tensor, labels: Tensor, num_first: int, num_second: int, num_classes: int
) -> Tensor:
    indices = torch.broadcast_tensors(first, second, labels)
    batch, num_samples = indices[0].shape[:-1], indices[0].shape[-1]
    first, second, labels = (index.to(torch.int64).contiguous() for index in indices)
    shape = (*batch, num_first, num_second, num_classes)
    counts = torch.zeros(shape, dtype=torch.int32, device=first.device)
    if first.numel() and counts.numel():
        num_blocks = -(-num_samples // BLOCK)
        grid = (batch.numel() * num_blocks,)
        sizes = (num_samples, num_blocks, num_first, num_second, num_classes)
        _histogram[grid](first, second, labels, counts, *sizes, BLOCK=BLOCK, **options(4))
    return counts


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = dict.fromkeys(("first_ptr", "second_ptr", "labels_ptr"), "*i64")
    types |= {"counts_ptr": "*i32", "num_samples": "i64", "num_blocks": "i32"}
    types |= dict.fromkeys(("num_first", "num_second", "num_classes"), "i64")
    variant = Variant(_histogram, types, {"BLOCK": BLOCK}, num_warps=4)
    return with_unaligned(variant, ("first_ptr", "second_ptr", "labels_ptr"))


@custom_op(add_op_namespace_prefix("histogram"), mutates_args=())
def histogram(
    first: Tensor, second: Tensor, labels: Tensor, num_first: int, num_second: int, num_classes: int
) -> Tensor:
    """Count how often (first, second, label) occur together, for a batch of problems at once.

        counts[b, i, j, y] = #{n : first[b, n] = i, second[b, n] = j, labels[b, n] = y}

    A sample with an index outside of its range is not counted; the sum of the table is then below N.

    Args:
        first: (..., N) integers in [0, num_first).
        second: (..., N) integers in [0, num_second), broadcast against `first`.
        labels: (..., N) integers in [0, num_classes), broadcast likewise.
        num_first: K1.
        num_second: K2.
        num_classes: C.

    Returns:
        (..., num_first, num_second, num_classes) int32.
    """
    function = _launch_histogram if runs_kernels(labels) else reference_histogram
    return function(first, second, labels, num_first, num_second, num_classes)


@histogram.register_fake
def _(
    first: Tensor, second: Tensor, labels: Tensor, num_first: int, num_second: int, num_classes: int
) -> Tensor:
    batch = torch.broadcast_shapes(first.shape, second.shape, labels.shape)[:-1]
    return first.new_empty((*batch, num_first, num_second, num_classes), dtype=torch.int32)
