"""The random state, precision and flags that an evaluation leaves as they were, and the start of a run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import TrainerControl


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """A context after which the random numbers go on as if it had not been entered.

    A data loader draws a seed whenever it is iterated, and rows may be augmented at random. Without this context,
    another evaluation would change the dropout and the order of the rows of the training that follows.

    Args:
        device: the device of the run, whose generator is kept too.
    """
    state, numpy_state = random.getstate(), np.random.get_state()
    on_accelerator = device.type not in ("cpu", "meta")
    kind: dict[str, Any] = {"device_type": device.type} if on_accelerator else {}
    try:
        with torch.random.fork_rng([device] if on_accelerator else [], **kind):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


@contextmanager
def kept_precision(model: nn.Module) -> Iterator[None]:
    """A context after which the weights and buffers of a model have the values and the dtype that they had before.

    `fp16_full_eval` and `bf16_full_eval` let `transformers.Trainer` cast the model, and leave it like that. The
    original tensors are kept meanwhile, so that no bit of them changes.
    """
    parameters = [*model.parameters()]
    tensors = [*parameters, *(p.grad for p in parameters if p.grad is not None)]
    originals = [(tensor, tensor.data) for tensor in tensors]
    buffers = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for tensor, values in originals:
            tensor.data = values
        for module, name, buffer in buffers:
            module._buffers[name] = buffer


@contextmanager
def kept_flags(control: TrainerControl) -> Iterator[None]:
    """A context after which the Trainer still logs, evaluates and saves at this step, if it was about to.

    Every evaluation makes the flags False, also one that a callback of the user starts just before the Trainer's own.
    """
    names = ("should_log", "should_evaluate", "should_save")
    flags = {name: getattr(control, name) for name in names}
    try:
        yield
    finally:
        for name, flag in flags.items():
            setattr(control, name, flag or getattr(control, name))


@contextmanager
def kept_active_loader(accelerator: Accelerator) -> Iterator[None]:
    """A context after which accelerate knows which batches are read, as it did before.

    It leaves out the rows that only fill the last batch of the loader that was begun last. One that is not read to its
    end, by a run with `max_steps` or an exception, would stay that loader: a pass that goes on would lose other rows.

    Args:
        accelerator: of any trainer, because all of them share this state.
    """
    state = accelerator.gradient_state
    loaders = state.dataloader_references
    try:
        yield
    finally:
        state.dataloader_references = loaders


class StartOfRun:
    """The weights and the random state at the start of a run, to begin it again.

    The weights are copied to the CPU.

    Args:
        model: the model.
        device: the device of the run, whose generator is kept too.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
        self._device = device
        self._python, self._numpy, self._torch = (
            random.getstate(),
            np.random.get_state(),
            torch.get_rng_state(),
        )
        module = self._module()
        self._accelerator = None if module is None else module.get_rng_state(device)

    def restore(self, model: nn.Module) -> None:
        """Put weights and random state back."""
        model.load_state_dict(self._weights)
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        module = self._module()
        if module is not None:
            module.set_rng_state(self._accelerator, self._device)

    def _module(self) -> Any:
        """The module of torch for the kind of the device, such as `torch.cuda`; None for the CPU."""
        return torch.get_device_module(self._device) if self._device.type == "cuda" else None
