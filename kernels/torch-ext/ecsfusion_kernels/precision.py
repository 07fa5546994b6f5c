"""Products of float32 numbers that are rounded as float32, whatever autocast and the TF32 flags of the caller say."""

from __future__ import annotations

import functools
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
        for flags in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):  # type: ignore[attr-defined]
            precision = flags.fp32_precision
            if precision in REDUCED:
                stack.callback(_restore, flags, precision)
                flags.fp32_precision = "ieee"
        yield


def _restore(flags: Any, precision: str) -> None:
    """Set the precision as it was: inherited from that of all backends where that gives the same, else its own."""
    flags.fp32_precision = "none"
    if flags.fp32_precision != precision:
        flags.fp32_precision = precision


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
