"""Triton where it is installed, the choice between kernel and reference, and the variants of a kernel.

An op of a kernel file runs its kernels on CUDA tensors (and on CPU tensors in Triton's interpreter,
`TRITON_INTERPRET=1`, for tests) and the plain PyTorch reference everywhere else.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    # macOS, Windows, CPU-only installations.
    triton = tl = None

INTERPRETED = triton is not None and os.environ.get("TRITON_INTERPRET") == "1"
MIN_CAPABILITY = (8, 0)


class Variant(NamedTuple):
    """One compilation that a launcher can ask for; `compile_check` compiles them all.

    Attributes:
        kernel: the function under `@jit`.
        types: the Triton type of each run-time argument: "*bf16", "i64", "fp32".
        constants: the value of each `tl.constexpr` argument.
        num_warps: as in a launch.
        num_stages: as in a launch.
        unaligned: pointers and specialized integers that are not divisible by 16; all others are.
    """

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 1
    unaligned: tuple[str, ...] = ()


def jit(function: Callable[..., Any] | None = None, *, do_not_specialize: Sequence[str] = ()) -> Any:
    """`triton.jit`; the function itself where there is no Triton (it is never called there).

    Args:
        function: the kernel; None for use as `@jit(do_not_specialize=[...])`.
        do_not_specialize: arguments for whose value nothing is compiled anew. Triton compiles a kernel once more for
            integers, and addresses, that are divisible by 16. That pays for strides, since loads are then wide, but
            would compile it twice for different numbers of samples, and for where a few numbers lie.
    """
    if function is None:
        return functools.partial(jit, do_not_specialize=do_not_specialize)
    if triton is None:
        return function
    kernel = triton.jit(function, do_not_specialize=list(do_not_specialize))
    kernel.run = functools.partial(_launch, kernel)
    return kernel


def _launch(kernel: Any, *args: Any, **kwargs: Any) -> Any:
    """Launch on the device of the first argument, a tensor; Triton takes the current one, wherever the tensors are."""
    with torch.cuda.device_of(args[0]):
        return type(kernel).run(kernel, *args, **kwargs)


def with_unaligned(variant: Variant, pointers: tuple[str, ...]) -> list[Variant]:
    """A variant with aligned pointers and, if there are any, with those unaligned whose tensors may begin anywhere.

    Of several such tensors either all or none are taken to be unaligned: every set would be too many compilations.
    """
    return [variant, variant._replace(unaligned=pointers)] if pointers else [variant]


def options(num_warps: int, num_stages: int = 1) -> dict[str, Any]:
    """The compiler options of a kernel, both for a launch and for `compile_check`."""
    # A product and a sum get one rounding. Said here because Triton 3.10 changes its default.
    return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}


def runs_kernels(tensor: Tensor) -> bool:
    """Whether functions of this tensor run as kernels; warns once per GPU that cannot run them."""
    if INTERPRETED:
        return True
    if not tensor.is_cuda:
        return False
    return _capable(tensor.device.index or 0)


def skips_dispatch(*tensors: Tensor) -> bool:
    """Whether a function of these tensors may call its reference without going through its op.

    So it is for plain tensors on the CPU that nothing traces. The first call of any op imports the compiler, which
    takes seconds, and every call a tenth of a millisecond.
    """
    if INTERPRETED or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return all(type(t) is Tensor and t.device.type == "cpu" and not t.requires_grad for t in tensors)


@functools.cache
def _capable(device: int) -> bool:
    reason = ""
    if triton is None:
        reason = "Triton is not installed (pip install triton)"
    elif torch.version.hip is not None:
        reason = "this GPU is not one of NVIDIA's"
    elif torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        capability = ".".join(str(part) for part in torch.cuda.get_device_capability(device))
        reason = f"cuda:{device} has compute capability {capability}, the kernels need 8.0"
    if reason:
        warnings.warn(f"{reason}: ecsfusion runs in plain PyTorch on this GPU, more slowly", stacklevel=4)
    return not reason


def padded(size: int, minimum: int = 16) -> int:
    """The smallest power of two that is at least `size` and `minimum`: the side of a tile."""
    return max(minimum, 1 << max(size - 1, 0).bit_length())


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, contiguous, and from a multiple of 16 bytes: elsewhere it is sooner copied than compiled for."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def signed(value: int) -> int:
    """The signed number with the bits of an unsigned 32-bit number; Triton passes it as i32 whatever its value."""
    return value - (1 << 32) if value >= 1 << 31 else value
