"""The launches on a GPU of a call whose host reads values, without a GPU.

Its tensors are on the CPU and say that they are on the device "meta", so that the call goes the way of a GPU, and what
it reads is there. Ops of the kernel package compute their references; their launches are those of their launchers.
"""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any
from unittest import mock

import torch
from ecsfusion_kernels.launches import ALLOCATIONS, Launch, launcher_of, launches
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map


class Elsewhere(Tensor):
    """A tensor that says it is on the device "meta"; its values are `values`, on the CPU."""

    @staticmethod
    def __new__(cls, values: Tensor) -> "Elsewhere":
        return Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=torch.device("meta"),
        )

    def __init__(self, values: Tensor) -> None:
        self.values_here = values

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a tensor with values was called outside of its recording")

    def tolist(self) -> Any:
        return self.cpu().tolist()


def _here(value: Any) -> Any:
    return value.values_here if isinstance(value, Elsewhere) else value


def _elsewhere(value: Any) -> Any:
    return Elsewhere(value) if isinstance(value, Tensor) else value


def _place() -> str:
    """The innermost function of the library, "file.py: function"."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        module, function = str(frame.f_globals.get("__name__")), frame.f_code.co_name
        if module.startswith("ecsfusion.") and not function.startswith("<"):
            return f"{module.split('.')[-1]}.py: {function}"
        frame = frame.f_back
    return ""


class _Record(TorchDispatchMode):
    """Every op computes on the CPU; those of tensors that are elsewhere are launches."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Launch] = []

    def add(self, name: str) -> None:
        self.found.append(Launch(f"torch.{name}", 0, None, {}, 0, _place()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        if func.namespace not in ("aten", "prims"):
            return self.of_kernels(func, name, args, kwargs)
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Elsewhere)]
        device = kwargs.get("device")
        is_sent = device is not None and torch.device(device).type == "meta"
        if is_sent:
            kwargs["device"] = torch.device("cpu")
        result = func(*tree_map(_here, args), **tree_map(_here, kwargs))
        if not given and not is_sent:
            return result
        aliases = [returned.alias_info for returned in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_view and not name.startswith(ALLOCATIONS):
            self.add(name)
        if device is not None and not is_sent:
            return result
        # An op in place gives back what it was given.
        known = {id(tensor.values_here): tensor for tensor in given}
        return tree_map(lambda part: known[id(part)] if id(part) in known else _elsewhere(part), result)

    def of_kernels(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """The values of the reference, and the launches of the launcher."""
        result = func(*tree_map(_here, args), **tree_map(_here, kwargs))
        if not any(isinstance(leaf, Elsewhere) for leaf in tree_leaves((args, kwargs))):
            return result
        arguments = func._schema.arguments
        given = dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
        shapes = tree_map(_shape_of, [given.get(a.name, a.default_value) for a in arguments])
        place = _place()
        with _disable_current_modes():
            started = launches(launcher_of(name), *shapes)
        self.found += [launch._replace(place=place) for launch in started]
        return tree_map(_elsewhere, result)


def _shape_of(value: Any) -> Any:
    """A tensor without values like one with them."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def launches_with_values(function: Callable[..., Any], *args: Any) -> list[Launch]:
    """The launches of `function(*args)` on a GPU, in their order, with all tensors of `args` there.

    Args:
        function: checks no devices; its tensors are on the CPU here.
        args: of the function.

    Raises:
        RuntimeError: without Triton, or where its interpreter is on.
    """
    record, make = _Record(), torch.tensor

    def tensor(*values: Any, device: Any = None, **options: Any) -> Tensor:
        made = make(*values, **options)
        if device is None or torch.device(device).type != "meta":
            return made
        record.add("tensor")
        return Elsewhere(made)

    args = tree_map(_elsewhere, args)
    # It fills memory of the device itself, which is not there.
    with mock.patch.object(torch, "tensor", tensor), record:
        function(*args)
    return record.found
