"""The launches of a call, without a device: its tensors have shapes and no values (`device="meta"`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import language
from .ops import broja, modules, nearest, random


def _broja(p1y: Tensor, p2y: Tensor, tolerance: float, max_iterations: int) -> Any:
    p1, p2 = (p.to(torch.float64).reshape(-1, *p.shape[-2:]) for p in (p1y, p2y))
    solution = broja._launch_broja(p1, p2, tolerance, max_iterations)
    return tuple(part.reshape(p1y.shape[:-2] + part.shape[1:]) for part in solution)


def _nearest(points: Tensor, centers: Tensor) -> Any:
    labels = torch.empty(points.shape[:2], dtype=torch.int64, device=points.device)
    distance = torch.empty(points.shape[:2], dtype=torch.float32, device=points.device)
    nearest._launch_assign(points, centers.contiguous(), labels, distance, None)
    return labels, distance


# Ops whose launcher has another name or other arguments than the op.
LAUNCHERS: dict[str, Callable[..., Any]] = {"broja": _broja, "nearest": _nearest}


def launcher_of(name: str) -> Callable[..., Any]:
    """What an op of this package does on a GPU: `_launch_NAME` of its file, or what `LAUNCHERS` has.

    Raises:
        ValueError: there is neither.
    """
    for module in modules():
        if launch := LAUNCHERS.get(name) or getattr(module, f"_launch_{name}", None):
            return cast("Callable[..., Any]", launch)
    raise ValueError(
        f"the op {name} has no launcher; call it _launch_{name}, with the arguments of the op, or add it to LAUNCHERS"
    )


# Ops of PyTorch that start nothing on a device and are no views by their schema.
ALLOCATIONS = ("empty", "new_empty", "_unsafe_view", "lift", "broadcast_tensors")


class Launch(NamedTuple):
    """One launch.

    Attributes:
        name: of the kernel, or of PyTorch's op.
        bytes: of memory that the tensors of the launch have; each is moved at least once.
        kernel: the function under `@jit`; None for an op of PyTorch.
        arguments: of the kernel, by name, with num_warps and num_stages; none of an op of PyTorch.
        blocks: of the grid; 0 for an op of PyTorch.
        place: the function that asked for it, "file.py: function"; an op of this package is its caller's.
    """

    name: str
    bytes: int
    kernel: Any
    arguments: dict[str, Any]
    blocks: int
    place: str = ""


def _place() -> str:
    """Where the launch that is being recorded was asked for: the innermost function of neither package nor PyTorch."""
    inside = ("torch.", __name__.rpartition(".")[0] + ".")
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        module, function = str(frame.f_globals.get("__name__")) + ".", frame.f_code.co_name
        # A comprehension is its function's.
        if not module.startswith(inside) and not function.startswith("<"):
            return f"{module.split('.')[-2]}.py: {function}"
        frame = frame.f_back
    return ""


def size_of(tensors: Any) -> int:
    """The bytes of tensors; views of one memory count once, as their largest, and so do rows that problems share."""
    found: dict[int, int] = {}
    for tensor in tree_leaves(tensors):
        if isinstance(tensor, Tensor):
            extent = 1
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
                extent *= size if stride else min(size, 1)
            memory = tensor.untyped_storage()._cdata
            found[memory] = max(extent * tensor.element_size(), found.get(memory, 0))
    return sum(found.values())


class _Record(TorchDispatchMode):
    """Ops of this package are replaced by their launchers; ops of PyTorch that compute something are launches."""

    def __init__(self, launches: list[Launch]) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        on_host = [not x.is_meta for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func.namespace not in ("aten", "prims"):
            if on_host and all(on_host):
                return func(*args, **kwargs)
            # The schema has the defaults that the caller left out.
            given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
            with self:
                return launcher_of(name)(
                    *(given.get(a.name, a.default_value) for a in func._schema.arguments)
                )
        # Inside a launcher PyTorch does not take apart what it hands over: a conversion, and not the copy that it is.
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        if name == "_to_copy" and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            # The host goes on with what it reads.
            result: Any = torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        elif name == "_local_scalar_dense" and args[0].is_meta:
            result = torch.ones((), dtype=args[0].dtype).item()
        else:
            result = func(*args, **kwargs)
            if all(on_host) and not any(x.is_meta for x in tree_leaves(result) if isinstance(x, Tensor)):
                return result
        aliases = [returned.alias_info for returned in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_view and not name.startswith(ALLOCATIONS):
            self.launches.append(
                Launch(f"torch.{name}", size_of((args, kwargs, result)), None, {}, 0, _place())
            )
        return result


@contextmanager
def _recorded_kernels(launches: list[Launch]) -> Iterator[None]:
    """Kernels are recorded and not launched."""
    kind = type(random._uniform)
    run = kind.run

    def record(kernel: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **constants: Any) -> None:
        arguments = dict(zip(kernel.arg_names, args, strict=False)) | constants
        blocks = 1
        for axis in grid:
            blocks *= axis
        launches.append(Launch(kernel.__name__, size_of(arguments), kernel, arguments, blocks, _place()))

    kind.run = record
    try:
        yield
    finally:
        kind.run = run


def launches(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Launch]:
    """The launches of `function(*args, **kwargs)` on a GPU, in their order; an op of PyTorch counts as one.

    Args:
        function: reads no values of tensors but those that it copies to the host, which are ones here.
        args: of the function; its tensors on the device "meta". What it computes on the host is no launch.
        kwargs: likewise.

    Raises:
        RuntimeError: without Triton, or where its interpreter is on: then nothing would be launched.
    """
    if language.triton is None or language.INTERPRETED:
        raise RuntimeError(
            "launches need Triton, not its interpreter: pip install triton, and unset TRITON_INTERPRET"
        )
    found: list[Launch] = []
    with _recorded_kernels(found), _Record(found):
        function(*args, **kwargs)
    return found
