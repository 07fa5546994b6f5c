"""Labels given two variables, as without three-way interaction: pair tables, their fit, and its classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..factors import configuration, configurations
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.broja import LN2
from ..reference.label_model import MIN_BITS, fitted_labels
from ..reference.label_model import label_model as reference_label_model
from .cluster_tables import _x_log_x
from .loglinear import _launch_loglinear, _loglinear

__all__ = ["label_model"]

MAX_SIDE = 64
"""Clusters of the largest tile; the pair tables of larger tables are those of the reference."""


@jit
def _share_left(joint, mass, classes, total, noise, LN2, MIN_BITS):
    """The square root of the share of I(X; Y) that is no noise, from the sums of n log n."""
    bits = (joint + _x_log_x(total) - mass - classes) / (total * LN2)
    return tl.sqrt(tl.minimum(tl.maximum(1.0 - noise / tl.maximum(bits, MIN_BITS), 0.0), 1.0))


@jit(do_not_specialize=["num1", "num2", "num_classes", "num_padded"])
def _shrink_pairs(
    counts_ptr,
    noise_ptr,
    p12_ptr,
    q1_ptr,
    q2_ptr,
    a_ptr,
    b_ptr,
    num1: tl.int32,
    num2: tl.int32,
    num_classes: tl.int32,
    num_padded: tl.int32,
    LN2: tl.constexpr,
    MIN_BITS: tl.constexpr,
    TILE: tl.constexpr,
):
    """p(x1, x2), and p(x1, y) and p(x2, y) mixed with independence; A = p(x1, y) and B = p(x2 | y)."""
    table = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, TILE), tl.arange(0, TILE)
    counts_ptr += table * num1 * num2 * num_classes
    p12_ptr += table * TILE * TILE
    q1_ptr += table * TILE * num_padded
    q2_ptr += table * TILE * num_padded
    a_ptr += table * TILE * num_padded
    b_ptr += table * TILE * num_padded
    inside = (row < num1)[:, None] & (column < num2)[None, :]
    cell = (row[:, None] * num2 + column[None, :]) * num_classes

    pairs = tl.zeros((TILE, TILE), tl.float64)
    mass1, rows = tl.zeros((TILE,), tl.float64), tl.zeros((TILE,), tl.float64)
    mass2, columns = tl.zeros((TILE,), tl.float64), tl.zeros((TILE,), tl.float64)
    classes = tl.zeros((1,), tl.float64)
    for label in range(num_classes):
        n = tl.load(counts_ptr + cell + label, inside, other=0.0)
        by_row, by_column = tl.sum(n, 1), tl.sum(n, 0)
        pairs += n
        mass1 += by_row
        mass2 += by_column
        rows += _x_log_x(by_row)
        columns += _x_log_x(by_column)
        classes += _x_log_x(tl.zeros((1,), tl.float64) + tl.sum(by_row, 0))
    # Of one number, so that the functions of it are those of tensors.
    total = tl.maximum(tl.zeros((1,), tl.float64) + tl.sum(mass1, 0), 1e-300)
    share1 = _share_left(
        tl.zeros((1,), tl.float64) + tl.sum(rows, 0),
        tl.sum(_x_log_x(mass1), 0),
        classes,
        total,
        tl.load(noise_ptr),
        LN2,
        MIN_BITS,
    )
    share2 = _share_left(
        tl.zeros((1,), tl.float64) + tl.sum(columns, 0),
        tl.sum(_x_log_x(mass2), 0),
        classes,
        total,
        tl.load(noise_ptr + 1),
        LN2,
        MIN_BITS,
    )
    tl.store(p12_ptr + row[:, None] * TILE + column[None, :], (pairs / total[:, None]).to(tl.float32))
    for label in range(num_padded):
        # A tensor, which the interpreter needs.
        there = inside & (row[:, None] * 0 + label < num_classes)
        n = tl.load(counts_ptr + cell + label, there, other=0.0)
        by_row, by_column = tl.sum(n, 1) / total, tl.sum(n, 0) / total
        mass = tl.sum(by_row, 0)
        independent1, independent2 = mass1 / total * mass, mass2 / total * mass
        q1 = (independent1 + share1 * (by_row - independent1)).to(tl.float32)
        q2 = (independent2 + share2 * (by_column - independent2)).to(tl.float32)
        tl.store(q1_ptr + row * num_padded + label, q1)
        tl.store(a_ptr + row * num_padded + label, q1)
        tl.store(q2_ptr + column * num_padded + label, q2)
        tl.store(b_ptr + column * num_padded + label, q2 / tl.maximum(tl.sum(q2, 0), 1e-30))


@jit(do_not_specialize=["num1", "num2", "num_classes", "num_padded"])
def _labels_given(
    p12_ptr,
    a_ptr,
    b_ptr,
    out_ptr,
    num1: tl.int32,
    num2: tl.int32,
    num_classes: tl.int32,
    num_padded: tl.int32,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """A(x1, y) B(x2, y) / sum over y, of one x1 and all x2; 0 where (x1, x2) does not occur."""
    table, row = (tl.program_id(0) // num1).to(tl.int64), tl.program_id(0) % num1
    column = tl.arange(0, TILE)
    a_ptr += (table * TILE + row) * num_padded
    b_ptr += table * TILE * num_padded
    out_ptr += (table * num1 + row) * num2 * num_classes
    occurs = tl.load(p12_ptr + (table * TILE + row) * TILE + column) > 0
    total = tl.zeros((TILE,), tl.float64)
    for first in range(0, num_padded, CLASSES):
        label = first + tl.arange(0, CLASSES)
        a = tl.load(a_ptr + label).to(tl.float64)
        b = tl.load(b_ptr + column[:, None] * num_padded + label[None, :]).to(tl.float64)
        total += tl.sum(a[None, :] * b, 1)
    for first in range(0, num_padded, CLASSES):
        label = first + tl.arange(0, CLASSES)
        a = tl.load(a_ptr + label).to(tl.float64)
        b = tl.load(b_ptr + column[:, None] * num_padded + label[None, :]).to(tl.float64)
        p = tl.where(occurs[:, None], a[None, :] * b / tl.maximum(total, 1e-300)[:, None], 0.0)
        stored = (column < num2)[:, None] & (label < num_classes)[None, :]
        tl.store(out_ptr + column[:, None] * num_classes + label[None, :], p, stored)


def _launch_label_model(counts: Tensor, noise: Tensor, sweeps: int) -> Tensor:
    num_tables, num1, num2, num_classes = counts.shape
    if max(num1, num2) > MAX_SIDE or not counts.numel():
        return fitted_labels(counts, noise, sweeps, _launch_loglinear)
    constants, num_warps = configuration(num1, num2, num_classes)
    tile, class_block = constants["TILE"], constants["CLASSES"]
    num_padded = -(-num_classes // class_block) * class_block
    p12 = torch.empty(num_tables, tile, tile, dtype=torch.float32, device=counts.device)
    q1, q2, a, b = (p12.new_empty(num_tables, tile, num_padded) for _ in range(4))
    sizes = (num1, num2, num_classes, num_padded)
    _shrink_pairs[(num_tables,)](
        aligned(counts),
        aligned(noise),
        p12,
        q1,
        q2,
        a,
        b,
        *sizes,
        LN2=LN2,
        MIN_BITS=MIN_BITS,
        TILE=tile,
        **options(_warps(tile)),
    )
    r = torch.empty_like(p12)
    _loglinear[(num_tables,)](
        p12,
        q1,
        q2,
        a,
        b,
        r,
        tile,
        tile,
        num_padded,
        sweeps,
        tile,
        num_padded,
        **constants,
        **options(num_warps),
    )
    out = torch.empty_like(counts, memory_format=torch.contiguous_format)
    _labels_given[(num_tables * num1,)](p12, a, b, out, *sizes, **constants, **options(4))
    return out


def _warps(tile: int) -> int:
    return 4 if tile < MAX_SIDE else 16


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for; the fit is that of `loglinear`."""
    sizes = dict.fromkeys(("num1", "num2", "num_classes", "num_padded"), "i32")
    pointers = dict.fromkeys(("counts_ptr", "noise_ptr"), "*fp64")
    pointers |= dict.fromkeys(("p12_ptr", "q1_ptr", "q2_ptr", "a_ptr", "b_ptr"), "*fp32")
    found = []
    for tile in (16, 32, MAX_SIDE):
        constants = {"LN2": LN2, "MIN_BITS": MIN_BITS, "TILE": tile}
        found.append(Variant(_shrink_pairs, pointers | sizes, constants, _warps(tile)))
    types = {"p12_ptr": "*fp32", "a_ptr": "*fp32", "b_ptr": "*fp32", "out_ptr": "*fp64", **sizes}
    return [*found, *(Variant(_labels_given, types, constants, 4) for constants, _ in configurations())]


@custom_op(add_op_namespace_prefix("label_model"), mutates_args=())
def _label_model_op(counts: Tensor, noise: Tensor, sweeps: int) -> Tensor:
    return (_launch_label_model if runs_kernels(counts) else reference_label_model)(counts, noise, sweeps)


@_label_model_op.register_fake
def _(counts: Tensor, noise: Tensor, sweeps: int) -> Tensor:
    return torch.empty_like(counts, memory_format=torch.contiguous_format)


def label_model(counts: Tensor, noise: Tensor, sweeps: int = 30) -> Tensor:
    """p(y | x1, x2) of the table without three-way interaction that has the pair tables of `counts`.

    p(x1, x2) is that of the sample; p(x1, y) and p(x2, y) are first mixed with independence until they have lost
    about `noise` bits of information. Iterative proportional fitting as in `loglinear`, in float32 on a GPU.

    Args:
        counts: (B, K1, K2, C) float64.
        noise: (2,) float64: the part of I(X_m; Y) in bits that is noise.
        sweeps: iterations of the fit.

    Returns:
        (B, K1, K2, C) float64; zeros where the pair tables leave no mass to (x1, x2).

    Raises:
        TypeError: the counts or the noise are not float64.
        ValueError: they have other shapes.
    """
    if counts.dtype != torch.float64 or noise.dtype != torch.float64:
        raise TypeError(
            f"counts and noise must be float64, got {counts.dtype} and {noise.dtype}; convert with .double()"
        )
    if counts.ndim != 4 or noise.shape != (2,):
        raise ValueError(
            f"counts must be (B, K1, K2, C) and noise (2,), got {tuple(counts.shape)} and {tuple(noise.shape)}"
        )
    function = reference_label_model if skips_dispatch(counts, noise) else _label_model_op
    return function(counts, noise, sweeps)
