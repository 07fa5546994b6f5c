"""Iterative proportional fitting of the model without three-way interaction, one program a table."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from . import reference
from .factors import at, configuration, configurations, coupled, factored, padded_to
from .language import NAMESPACE, Variant, jit, options, runs_kernels, tl


@jit
def _loglinear(
    p12_ptr,
    q1_ptr,
    q2_ptr,
    a_ptr,
    b_ptr,
    r_ptr,
    num1: tl.int32,
    num2: tl.int32,
    classes: tl.int32,
    sweeps: tl.int32,
    stride_r: tl.int32,
    stride_a: tl.int32,
    TILE: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """R = p12 / (A B^T);  A = q1 / (R B);  B = q2 / (R^T A): in turn, and R once more; 0 where none can hold it."""
    table = tl.program_id(0).to(tl.int64)
    p12_ptr, r_ptr = p12_ptr + table * num1 * stride_r, r_ptr + table * num1 * stride_r
    q1_ptr, a_ptr = q1_ptr + table * num1 * stride_a, a_ptr + table * num1 * stride_a
    q2_ptr, b_ptr = q2_ptr + table * num2 * stride_a, b_ptr + table * num2 * stride_a

    for sweep in range(sweeps + 1):
        for row in range(0, num1, TILE):
            for column in range(0, num2, TILE):
                w = factored(a_ptr, b_ptr, row, column, classes, stride_a, TILE, CLASSES)
                p12 = tl.load(at(p12_ptr, row, column, stride_r, 1, TILE, TILE))
                tl.store(at(r_ptr, row, column, stride_r, 1, TILE, TILE), p12 / tl.maximum(w, 1e-30))
        tl.debug_barrier()
        if sweep < sweeps:
            for row in range(0, num1, TILE):
                for label in range(0, classes, CLASSES):
                    rb = coupled(r_ptr, b_ptr, row, label, num2, stride_r, 1, stride_a, TILE, CLASSES)
                    q1 = tl.load(at(q1_ptr, row, label, stride_a, 1, TILE, CLASSES))
                    a = tl.where(rb > 1e-30, q1 / tl.maximum(rb, 1e-30), 0.0)
                    tl.store(at(a_ptr, row, label, stride_a, 1, TILE, CLASSES), a)
            tl.debug_barrier()
            for column in range(0, num2, TILE):
                for label in range(0, classes, CLASSES):
                    ra = coupled(r_ptr, a_ptr, column, label, num1, 1, stride_r, stride_a, TILE, CLASSES)
                    q2 = tl.load(at(q2_ptr, column, label, stride_a, 1, TILE, CLASSES))
                    b = tl.where(ra > 1e-30, q2 / tl.maximum(ra, 1e-30), 0.0)
                    tl.store(at(b_ptr, column, label, stride_a, 1, TILE, CLASSES), b)
            tl.debug_barrier()


def _launch_loglinear(p12: Tensor, first: Tensor, second: Tensor, sweeps: int) -> Tensor:
    (count, num1, num2), num_classes = p12.shape, first.shape[2]
    constants, num_warps = configuration(num1, num2, num_classes)
    tile, classes = constants["TILE"], constants["CLASSES"]
    pairs = padded_to(p12.float(), tile, tile)
    q1, q2 = padded_to(first.float(), tile, classes), padded_to(second.float(), tile, classes)
    a, b = q1.clone(), q2 / q2.sum(1, keepdim=True).clamp_min(1e-30)
    r = torch.empty_like(pairs)
    if r.numel() and q1.numel():
        sizes = (*r.shape[1:], q1.shape[2])
        strides = (r.shape[2], q1.shape[2])
        _loglinear[(count,)](
            pairs, q1, q2, a, b, r, *sizes, sweeps, *strides, **constants, **options(num_warps)
        )
    r, a, b = r[:, :num1, :num2], a[:, :num1, :num_classes], b[:, :num2, :num_classes]
    return (r.unsqueeze(3) * a.unsqueeze(2) * b.unsqueeze(1)).to(p12.dtype)


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    pointers = dict.fromkeys(("p12_ptr", "q1_ptr", "q2_ptr", "a_ptr", "b_ptr", "r_ptr"), "*fp32")
    sizes = dict.fromkeys(("num1", "num2", "classes", "sweeps", "stride_r", "stride_a"), "i32")
    types = {**pointers, **sizes}
    return [Variant(_loglinear, types, constants, warps) for constants, warps in configurations()]


@custom_op(f"{NAMESPACE}::loglinear", mutates_args=())
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
    solve = _launch_loglinear if runs_kernels(p12) else reference.loglinear
    return solve(p12, first, second, sweeps)


@loglinear.register_fake
def _(p12: Tensor, first: Tensor, second: Tensor, sweeps: int = 30) -> Tensor:
    return p12.new_empty(*p12.shape, first.shape[2])
