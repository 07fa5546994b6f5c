"""Products of float32 numbers that are rounded as float32, whatever autocast and the TF32 flags of the caller say."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")
"""Those whose autocast is switched off."""
REDUCED = ("tf32", "bf16")
"""Precisions of a product that lose bits of float32."""


@contextmanager
def full_precision() -> Iterator[None]:
    """A context without autocast and without TF32. Both are as before when it is left, also by an exception.

    PyTorch has the TF32 flags for a whole process. Where they are set, products that other threads start while the
    context lasts are not reduced either; where they are not, nothing is changed.
    """
    with ExitStack() as stack:
        for device_type in DEVICE_TYPES:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(_FLAGS)
        yield


class _Flags:
    """The flags of products, off from where the first thread enters to where the last one leaves."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before: list[str] = []
        self._older_flag: str | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            precisions = [flags.fp32_precision for flags in _products()]
            if self._inside > 1 or not set(REDUCED) & set(precisions):
                return
            self._before, self._older_flag = precisions, _older_flag()
            if self._older_flag is not None:
                torch.set_float32_matmul_precision("highest")
            for flags in _products():
                flags.fp32_precision = "ieee"

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside or not self._before:
                return
            if self._older_flag is not None:
                torch.set_float32_matmul_precision(self._older_flag)
            for flags, precision in zip(_products(), self._before, strict=True):
                # Inherited from the precision of all backends, where that gives the same.
                flags.fp32_precision = "none"
                if flags.fp32_precision != precision:
                    flags.fp32_precision = precision
            self._before = []


def _products() -> tuple[Any, ...]:
    """The flags of matrix products."""
    return torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


def _older_flag() -> str | None:
    """The precision of the older interface, which PyTorch wants to agree; None where only the newer one was used."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


_FLAGS = _Flags()


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """A function that runs in `full_precision`.

    While `torch.compile` traces it, it runs as it is: a graph cannot change the flags. Such a function must leave its
    products to the ops of this package, which run outside of the graph.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        with full_precision():
            return function(*args, **kwargs)

    return call
