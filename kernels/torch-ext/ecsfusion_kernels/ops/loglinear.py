"""Iterative proportional fitting of the model without three-way interaction, one program a table."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..factors import configuration, configurations, coupled, factored, padded_to, tile_at
from ..language import Variant, jit, options, runs_kernels, tl
from ..reference.loglinear import loglinear as reference_loglinear

__all__ = ["loglinear"]


@jit(do_not_specialize=["num1", "num2", "num_classes", "sweeps"])
def _loglinear(
    p12_ptr,
    q1_ptr,
    q2_ptr,
    a_ptr,
    b_ptr,
    r_ptr,
    num1: tl.int32,
    num2: tl.int32,
    num_classes: tl.int32,
    sweeps: tl.int32,
    r_stride: tl.int32,
    factor_stride: tl.int32,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """R = p12 / (A B^T);  A = q1 / (R B);  B = q2 / (R^T A): in turn, and R once more; 0 where none can hold it."""
    table = tl.program_id(0).to(tl.int64)
    p12_ptr, r_ptr = p12_ptr + table * num1 * r_stride, r_ptr + table * num1 * r_stride
    q1_ptr, a_ptr = q1_ptr + table * num1 * factor_stride, a_ptr + table * num1 * factor_stride
    q2_ptr, b_ptr = q2_ptr + table * num2 * factor_stride, b_ptr + table * num2 * factor_stride

    for sweep in range(sweeps + 1):
        for row in range(0, num1, TILE):
            for column in range(0, num2, TILE):
                w = factored(a_ptr, b_ptr, row, column, num_classes, factor_stride, TILE, CLASSES)
                p12 = tl.load(tile_at(p12_ptr, row, column, r_stride, 1, TILE, TILE))
                tl.store(tile_at(r_ptr, row, column, r_stride, 1, TILE, TILE), p12 / tl.maximum(w, 1e-30))
        tl.debug_barrier()
        if sweep < sweeps:
            for row in range(0, num1, TILE):
                for label in range(0, num_classes, CLASSES):
                    rb = coupled(r_ptr, b_ptr, row, label, num2, r_stride, 1, factor_stride, TILE, CLASSES)
                    q1 = tl.load(tile_at(q1_ptr, row, label, factor_stride, 1, TILE, CLASSES))
                    a = tl.where(rb > 1e-30, q1 / tl.maximum(rb, 1e-30), 0.0)
                    tl.store(tile_at(a_ptr, row, label, factor_stride, 1, TILE, CLASSES), a)
            tl.debug_barrier()
            for column in range(0, num2, TILE):
                for label in range(0, num_classes, CLASSES):
                    ra = coupled(r_ptr, a_ptr, column, label, num1, 1, r_stride, factor_stride, TILE, CLASSES)
                    q2 = tl.load(tile_at(q2_ptr, column, label, factor_stride, 1, TILE, CLASSES))
                    b = tl.where(ra > 1e-30, q2 / tl.maximum(ra, 1e-30), 0.0)
                    tl.store(tile_at(b_ptr, column, label, factor_stride, 1, TILE, CLASSES), b)
            tl.debug_barrier()


def _launch_loglinear(p12: Tensor, first: Tensor, second: Tensor, sweeps: int) -> Tensor:
    (num_tables, num1, num2), num_classes = p12.shape, first.shape[2]
    constants, num_warps = configuration(num1, num2, num_classes)
    tile, class_block = constants["TILE"], constants["CLASSES"]
    pairs = padded_to(p12.float(), tile, tile)
    q1, q2 = padded_to(first.float(), tile, class_block), padded_to(second.float(), tile, class_block)
    a, b = q1.clone(), q2 / q2.sum(1, keepdim=True).clamp_min(1e-30)
    r = torch.empty_like(pairs)
    if r.numel() and q1.numel():
        sizes = (*r.shape[1:], q1.shape[2])
        strides = (r.shape[2], q1.shape[2])
        _loglinear[(num_tables,)](
            pairs, q1, q2, a, b, r, *sizes, sweeps, *strides, **constants, **options(num_warps)
        )
    r, a, b = r[:, :num1, :num2], a[:, :num1, :num_classes], b[:, :num2, :num_classes]
    return (r.unsqueeze(3) * a.unsqueeze(2) * b.unsqueeze(1)).to(p12.dtype).contiguous()


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    pointers = dict.fromkeys(("p12_ptr", "q1_ptr", "q2_ptr", "a_ptr", "b_ptr", "r_ptr"), "*fp32")
    sizes = dict.fromkeys(("num1", "num2", "num_classes", "sweeps", "r_stride", "factor_stride"), "i32")
    types = {**pointers, **sizes}
    return [Variant(_loglinear, types, constants, warps) for constants, warps in configurations()]


@custom_op(add_op_namespace_prefix("loglinear"), mutates_args=())
def loglinear(p12: Tensor, first: Tensor, second: Tensor, sweeps: int = 30) -> Tensor:
    """Tables without three-way interaction, R(x1, x2) A(x1, y) B(x2, y), with the pair tables given.

    R = p12 / (A B^T), A = first / (R B), B = second / (R^T A), in turn and R once more. Rows, columns and classes
    without mass stay without.

    Args:
        p12: p(x1, x2), (B, K1, K2), floating point, each table of sum 1.
        first: p(x1, y), (B, K1, C), of the same dtype and device.
        second: p(x2, y), (B, K2, C).
        sweeps: how often each pair table is fitted.

    Returns:
        (B, K1, K2, C), in the dtype of `p12`; the kernel computes in float32, which moves the information of the
        tables by about 1e-6 bits.
    """
    solve = _launch_loglinear if runs_kernels(p12) else reference_loglinear
    return solve(p12, first, second, sweeps)


@loglinear.register_fake
def _(p12: Tensor, first: Tensor, second: Tensor, sweeps: int = 30) -> Tensor:
    return p12.new_empty(*p12.shape, first.shape[2])
