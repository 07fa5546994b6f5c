"""Evidence and entropy of labels under Dirichlet priors of a grid of concentrations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.dirichlet_information import dirichlet_information as reference_dirichlet_information
from ..special import digamma, log_gamma, rising, stirling, stirling_slope

__all__ = ["dirichlet_information"]

BLOCK = 256
NUM_WARPS = 4
MAX_PARTS = 8
"""Of the cells of a table."""


@jit(do_not_specialize=["num_cells", "num_classes", "num_tables", "cells_of_part", "num_parts"])
def _dirichlet_information(
    counts_ptr,
    base_ptr,
    per_cell_ptr,
    grid_ptr,
    parts_ptr,
    num_cells: tl.int32,
    num_classes: tl.int32,
    num_tables: tl.int32,
    cells_of_part: tl.int32,
    num_parts: tl.int32,
    BLOCK: tl.constexpr,
):
    """The three sums over a part of the cells of one table, with one concentration."""
    part = tl.program_id(0) % num_parts
    table = (tl.program_id(0) // num_parts % num_tables).to(tl.int64)
    concentration = tl.program_id(0) // (num_parts * num_tables)
    number = tl.arange(0, BLOCK)
    a = tl.zeros((1,), tl.float64) + tl.load(grid_ptr + concentration)
    log_gamma_a = log_gamma(a)
    counts_ptr += table * num_cells * num_classes
    base_ptr += table * num_cells * num_classes
    per_cell_ptr += table * num_cells
    begin = part * cells_of_part
    end = tl.minimum(begin + cells_of_part, num_cells)

    evidence, entropy, share = (
        tl.zeros((BLOCK,), tl.float64),
        tl.zeros((BLOCK,), tl.float64),
        tl.zeros((BLOCK,), tl.float64),
    )
    for start in range(begin, end, BLOCK):
        cell = start + number
        inside = cell < end
        samples = tl.load(per_cell_ptr + cell, inside, other=0.0)
        whole = samples + a
        evidence += tl.where(inside, log_gamma_a - log_gamma(whole), 0.0)
        entropy += samples * digamma(whole + 1.0)
        share += samples / whole * a
    for start in range(begin * num_classes, end * num_classes, BLOCK):
        place = start + number
        inside = place < end * num_classes
        count = tl.load(counts_ptr + place, inside, other=0.0)
        weight = a * tl.load(base_ptr + place, inside, other=1.0)
        samples = tl.load(per_cell_ptr + place // num_classes, inside, other=0.0)
        posterior = count + weight
        # Log gamma of z and digamma of z + 1, of z = count + weight, share what they are moved up by.
        product, slope = rising(posterior + 1.0)
        moved = posterior < 7.0
        high = tl.where(moved, posterior + 9.0, posterior + 1.0)
        log_high = tl.log(high)
        moved_by = tl.where(moved, slope / tl.where(moved, product, 1.0), 0.0)
        entropy -= samples / (samples + a) * posterior * (stirling_slope(high, log_high) - moved_by)
        # Log gamma of z is that of z + 1 less log z.
        lost = tl.log(tl.where(moved, product, 1.0) * tl.maximum(posterior, 1e-300))
        seen = stirling(high, log_high) - lost - log_gamma(tl.maximum(weight, 1e-300))
        evidence += tl.where(inside & (count > 0), seen, 0.0)
    place = (concentration * num_tables + table) * num_parts + part
    size = tl.num_programs(0)
    tl.store(parts_ptr + place, tl.sum(evidence, 0))
    tl.store(parts_ptr + size + place, tl.sum(entropy, 0))
    tl.store(parts_ptr + 2 * size + place, tl.sum(share, 0))


def _launch_dirichlet_information(counts: Tensor, base: Tensor, grid: Tensor) -> Tensor:
    (num_tables, num_cells, num_classes), number = counts.shape, len(grid)
    if not counts.numel() or not number:
        return reference_dirichlet_information(counts, base, grid)
    # A function of the shape of a table alone: the order of the sums must not depend on the batch.
    cells_of_part = -(-num_cells // min(MAX_PARTS, -(-num_cells * num_classes // BLOCK)))
    num_parts = -(-num_cells // cells_of_part)
    parts = counts.new_empty(3, number, num_tables, num_parts)
    _dirichlet_information[(number * num_tables * num_parts,)](
        aligned(counts),
        aligned(base),
        counts.sum(-1),
        aligned(grid),
        parts,
        num_cells,
        num_classes,
        num_tables,
        cells_of_part,
        num_parts,
        BLOCK=BLOCK,
        **options(NUM_WARPS),
    )
    return parts.sum(-1)


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = dict.fromkeys(("counts_ptr", "base_ptr", "per_cell_ptr", "grid_ptr", "parts_ptr"), "*fp64")
    types |= dict.fromkeys(("num_cells", "num_classes", "num_tables", "cells_of_part", "num_parts"), "i32")
    return [Variant(_dirichlet_information, types, {"BLOCK": BLOCK}, NUM_WARPS)]


@custom_op(add_op_namespace_prefix("dirichlet_information"), mutates_args=())
def _dirichlet_information_op(counts: Tensor, base: Tensor, grid: Tensor) -> Tensor:
    function = _launch_dirichlet_information if runs_kernels(counts) else reference_dirichlet_information
    return function(counts, base, grid)


@_dirichlet_information_op.register_fake
def _(counts: Tensor, base: Tensor, grid: Tensor) -> Tensor:
    return counts.new_empty(3, len(grid), len(counts))


def dirichlet_information(counts: Tensor, base: Tensor, grid: Tensor) -> Tensor:
    """What samples tell about labels whose distribution has a prior, p(y | x) ~ Dirichlet(a base(y | x)).

    Args:
        counts: (B, X, C) float64 samples of each cell x and label.
        base: (B, X, C) float64, the mean of the prior.
        grid: (G,) float64, the concentrations a, above 0.

    Returns:
        (3, G, B) float64: the logarithm of the likelihood of the counts; the posterior mean of H(Y | X) in nats, times
        the samples; and the samples times the share that the prior has in their posteriors.

    Raises:
        TypeError: for arguments that are not float64.
        ValueError: for shapes that do not fit.
    """
    given = (counts, base, grid)
    if any(x.dtype != torch.float64 for x in given):
        dtypes = ", ".join(str(x.dtype) for x in given)
        raise TypeError(f"counts, base and grid must be float64, got {dtypes}; convert with .double()")
    if counts.ndim != 3 or counts.shape != base.shape or grid.ndim != 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in given)
        raise ValueError(f"counts and base must be (B, X, C) and grid (G,), got shapes {shapes}")
    function = (
        reference_dirichlet_information if skips_dispatch(counts, base, grid) else _dirichlet_information_op
    )
    return function(counts, base, grid)
