"""Batch normalization of a batch with one row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def running_statistics_for_one_value(module: nn.Module, num_rows: int) -> Iterator[None]:
    """A context in which layers of batch normalization that are given one value per channel use running statistics.

    In training they would normalize by the batch, and torch raises an error where a channel has one value. A batch of
    one row is no mistake: the last one of an epoch may have one row, and a modality may be there in one row of a batch.

    Args:
        module: the module that is run in the context.
        num_rows: rows that it is run on.
    """
    # First, because in evaluation nothing may depend on the number of rows: it is not known when a model is compiled.
    if not module.training:
        yield
        return
    layers = [
        part
        for part in module.modules()
        # Not SyncBatchNorm, which counts the rows of all processes.
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        and part.running_mean is not None
    ]
    if num_rows != 1 or not layers:
        yield
        return
    switched: list[nn.Module] = []

    def before(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer.training and inputs[0].numel() == inputs[0].shape[1]:
            layer.training = False
            switched.append(layer)

    def after(layer: nn.Module, *_: Any) -> None:
        if layer in switched:
            switched.remove(layer)
            layer.training = True

    handles = [hook for layer in layers for hook in _hooks(layer, before, after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in switched:
            layer.training = True


def _hooks(layer: nn.Module, before: Any, after: Any) -> tuple[Any, Any]:
    return layer.register_forward_pre_hook(before), layer.register_forward_hook(after)
