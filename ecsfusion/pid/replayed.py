"""Functions of tensors as one launch: a CUDA graph for each shape that comes again.

A probe of a training run is the same few hundred small operations on tensors of the same shapes each time. Called one
by one they keep a GPU waiting for the host: 12 ms for 2.4 ms of work (H100, 5 000 rows, 10 classes).
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from ecsfusion_kernels.language import INTERPRETED, runs_kernels
from torch import Tensor
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")
MAX_GRAPHS = 16
"""Graphs that are kept, each with the memory that it writes; the one that was not used for longest goes first."""
MAX_VALUES = 1 << 21
"""Numbers given to a graph. With more, launches cost little beside the work, and memory that is kept is large."""


class _Graph(NamedTuple):
    """A captured call: what it reads and writes stays where it is."""

    graph: Any
    given: Sequence[Tensor]
    result: Any


_graphs: OrderedDict[Hashable, _Graph | None] = OrderedDict()
"""By function, shapes and place; None for a call that was seen once."""
_lock = threading.Lock()


def replayed(
    function: Callable[..., Result],
    tensors: Sequence[Tensor],
    constants: tuple[Hashable, ...],
    max_values: int = MAX_VALUES,
) -> Result:
    """`function(*tensors, *constants)`, on a GPU as a CUDA graph from the second call with the same shapes on.

    The first call of a shape is made as it is, the second is captured. What comes back lies in memory of the graph,
    which the next call with these shapes writes anew: it must not leave the estimate that asked for it.

    Args:
        function: of tensors and constants, to tuples of tensors; it reads no values on the host, and writes to none of
            its arguments.
        tensors: on one device.
        constants: what else the function depends on.
        max_values: of the tensors together; with more it is called as it is.
    """
    if not _can_be_captured(tensors, max_values):
        return function(*tensors, *constants)
    device = tensors[0].device
    # A graph of its own for each thread and stream: nothing orders the calls of two.
    place = threading.get_ident(), torch.cuda.current_stream(device).cuda_stream, device
    key = function, constants, place, tuple((tensor.shape, tensor.dtype) for tensor in tensors)
    with _lock, torch.cuda.device(device):
        is_new = key not in _graphs
        graph = _graphs.pop(key, None)
        # Made where gradients are off, memory could not be written where they are on.
        with torch.inference_mode(False), torch.no_grad():
            if is_new:
                result = function(*tensors, *constants)
            else:
                graph = graph or _captured(function, tensors, constants)
                for kept, tensor in zip(graph.given, tensors, strict=True):
                    if kept.data_ptr() != tensor.data_ptr() or not tensor.is_contiguous():
                        kept.copy_(tensor)
                graph.graph.replay()
                result = graph.result
        _graphs[key] = graph
        while len(_graphs) > MAX_GRAPHS:
            _graphs.popitem(last=False)
    return result


def _can_be_captured(tensors: Sequence[Tensor], max_values: int) -> bool:
    """Whether these are tensors of a GPU with kernels, few enough, and nothing else records their operations."""
    if INTERPRETED or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    if not all(type(tensor) is Tensor and tensor.is_cuda for tensor in tensors):
        return False
    if not runs_kernels(tensors[0]) or torch.cuda.is_current_stream_capturing():
        return False
    return 0 < sum(tensor.numel() for tensor in tensors) <= max_values


def _captured(
    function: Callable[..., Result], tensors: Sequence[Tensor], constants: tuple[Hashable, ...]
) -> _Graph:
    """The graph of a call."""
    results = [part for graph in _graphs.values() if graph is not None for part in tree_leaves(graph.result)]
    sizes = {part.data_ptr(): part.nbytes for part in results if isinstance(part, Tensor)}
    # What another graph writes stays in its place, and need not be copied.
    given = [
        tensor
        if tensor.nbytes <= sizes.get(tensor.data_ptr(), -1) and tensor.is_contiguous()
        else _copied(tensor)
        for tensor in tensors
    ]
    # Before the capture: with these very tensors, for which kernels may be compiled anew.
    function(*given, *constants)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as those of a data loader, go on meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        written = function(*given, *constants)
    return _Graph(graph, given, written)


def _copied(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
