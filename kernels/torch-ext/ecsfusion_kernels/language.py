"""Triton where it is installed, which functions run as kernels, and what a kernel's variant is.

A kernel file has three parts: the kernels, the launcher, the registration as a custom op. The op runs the kernels on
CUDA tensors (and on CPU tensors in Triton's interpreter, `TRITON_INTERPRET=1`, for tests) and the plain PyTorch
reference everywhere else.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS, Windows, CPU-only installations
    triton = tl = None

try:  # written by kernel-builder: every published build has a namespace of its own, so that two can be loaded
    from ._ops import add_op_namespace_prefix
except ImportError:

    def add_op_namespace_prefix(name: str) -> str:
        return f"ecsfusion_kernels::{name}"


NAMESPACE = add_op_namespace_prefix("").removesuffix("::")
INTERPRETED = triton is not None and os.environ.get("TRITON_INTERPRET") == "1"
MIN_CAPABILITY = (8, 0)


class Variant(NamedTuple):
    """One compilation that a launcher can ask for; `compile_check` compiles them all."""

    kernel: Any  # the function under @jit
    types: dict[str, str]  # Triton type of each run-time argument: "*bf16", "i64", "fp32"
    constants: dict[str, Any]  # value of each tl.constexpr argument
    num_warps: int
    num_stages: int = 1
    unaligned: tuple[str, ...] = ()  # pointers and strides that are not divisible by 16; all others are


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, or the function as it is where there is no Triton (it is never called there).

    Whole numbers that are annotated with their type are not specialized on their value (every N would be compiled
    twice), but for strides: loads are wide where those are divisible by 16.
    """
    if triton is None:
        return function
    annotations = function.__annotations__.items()
    plain = [
        name for name, type_ in annotations if type_ in ("tl.int32", "tl.int64") and "stride" not in name
    ]
    return triton.jit(function, do_not_specialize=plain)


def options(num_warps: int, num_stages: int = 1) -> dict[str, Any]:
    """How a kernel is compiled, for a launch and for `compile_check` alike."""
    # Products and sums are fused into one rounding; Triton 3.10 changes its default.
    return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}


def runs_kernels(tensor: Tensor) -> bool:
    """Whether functions of this tensor run as kernels; warns once where a GPU is there that cannot."""
    if INTERPRETED:
        return True
    if not tensor.is_cuda:
        return False
    return _capable(tensor.device.index or 0)


@functools.cache
def _capable(device: int) -> bool:
    reason = ""
    if triton is None:
        reason = "Triton is not installed (pip install triton)"
    elif torch.version.hip is not None:
        reason = "this GPU is not one of NVIDIA's"
    elif torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        found = ".".join(str(part) for part in torch.cuda.get_device_capability(device))
        reason = f"cuda:{device} has compute capability {found}, the kernels need 8.0"
    if reason:
        warnings.warn(f"{reason}: ecsfusion runs in plain PyTorch on this GPU, more slowly", stacklevel=4)
    return not reason


def padded(size: int, least: int = 16) -> int:
    """The smallest power of two that is at least `size` and `least`: the side of a tile."""
    return max(least, 1 << max(size - 1, 0).bit_length())


def signed(value: int) -> int:
    """An unsigned 32-bit number as the signed one of the same bits, which Triton always passes as i32."""
    return value - (1 << 32) if value >= 1 << 31 else value
