"""Weights that FSDP version 2 shards: one DTensor per parameter, of which each process has some rows.

A forward pass leaves whole weights in some of the modules until the next backward pass. What looks at weights or
switches their gradients calls `reshard` first: changes of the whole ones would be lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from accelerate import PartialState
from safetensors import safe_open
from torch import Tensor, nn

if TYPE_CHECKING or torch.distributed.is_available():
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from ecsfusion.modeling import FusionForClassification

FSDP1 = "FSDP version 1"
FSDP2 = "FSDP version 2"
DEEPSPEED = "DeepSpeed"


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP version 2 has sharded this model, which it does when training is prepared."""
    return torch.distributed.is_available() and isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Leave each process only its part of the weights, where a forward pass has left them whole."""
    if is_sharded(model):
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, which all processes must ask for together if it is sharded."""
    return tensor.full_tensor() if _is_part(tensor) else tensor


def _is_part(tensor: Tensor) -> TypeGuard[DTensor]:
    return torch.distributed.is_available() and isinstance(tensor, DTensor)


@torch.no_grad()
def read_weights(folder: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights in the safetensors files of a folder into tensors, which may be sharded.

    One weight at a time is read, so that no process holds a whole model.

    Args:
        folder: the folder that a model was saved to.
        weights: the tensors by name.

    Raises:
        ValueError: a weight is in none of the files.
    """
    read, missing = set(), dict(weights)
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in missing.keys() & set(file.keys()):
                target, value = missing.pop(key), file.get_tensor(key)
                if _is_part(target):
                    # Each process takes its part of what it has read, without communication.
                    value = distribute_tensor(
                        value, target.device_mesh, target.placements, src_data_rank=None
                    )
                target.copy_(value)
                read.add(id(target))
    # Of names of the same tensor, only one is saved.
    lacking = [key for key, target in missing.items() if id(target) not in read]
    if lacking:
        raise ValueError(f"{folder} lacks the weight {lacking[0]!r}; train again in an empty output_dir.")


@contextmanager
def requiring_gradients_of(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """A context in which only these parameters require gradients.

    torch takes every parameter that requires one for one of which the optimizer has a state, which is not so where a
    modality has been paused from the start.
    """
    reshard(model)
    switched = [p for key, p in model.named_parameters() if p.requires_grad and key not in names]
    for parameter in switched:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in switched:
            parameter.requires_grad_(True)


@torch.no_grad()
def copy_from_first_process(model: nn.Module, device: torch.device) -> None:
    """Let all processes start from the weights of the first, as DistributedDataParallel does.

    FSDP would put a weight together from the parts of several random starts.

    Args:
        model: the model, before it is sharded.
        device: the device of this process, which communicates.
    """
    for tensor in model.state_dict().values():
        value = tensor.to(device)
        torch.distributed.broadcast(value, src=0)
        tensor.copy_(value)


def saved_buffers(model: nn.Module) -> list[Tensor]:
    """The buffers that are saved with the model, such as batch statistics. FSDP does not shard them."""
    return [
        tensor for tensor in model.state_dict(keep_vars=True).values() if not isinstance(tensor, nn.Parameter)
    ]


def layers_to_shard(model: FusionForClassification) -> list[str]:
    """The classes of the layers of the encoders that are sharded one by one, as their families name them.

    Without them the whole model would be one unit, whose weights are all whole in every step.
    """
    named = {
        name
        for encoder in model.encoders.values()
        for name in getattr(encoder, "_no_split_modules", None) or ()
    }
    return sorted(named & {type(module).__name__ for module in model.modules()})


def check_plugin(plugin: Any, model: nn.Module) -> None:
    """Check that accelerate can shard this model.

    Args:
        plugin: the `accelerate.utils.FullyShardedDataParallelPlugin`.
        model: the model, before it is sharded.

    Raises:
        ValueError: it shards modules by their size, which would take the container of the encoders for a layer; or only
            the first process has the weights, and the model has buffers, which accelerate does not give to the others.
    """
    buffers = [
        key for key, value in model.state_dict(keep_vars=True).items() if not isinstance(value, nn.Parameter)
    ]
    if plugin.cpu_ram_efficient_loading and buffers:
        raise ValueError(
            f"cpu_ram_efficient_loading is True, but the model has buffers, such as {buffers[0]!r}, which accelerate "
            "does not give to the other processes; set it to False in fsdp_config, or start with "
            "--fsdp_cpu_ram_efficient_loading false."
        )
    if getattr(plugin.auto_wrap_policy, "__name__", "") == "size_based_auto_wrap_policy":
        raise ValueError(
            "fsdp_config['auto_wrap_policy'] is 'SIZE_BASED_WRAP', which would shard the container of the encoders, "
            "and a container has no forward pass; leave it out, or name classes of layers in "
            "fsdp_config['transformer_layer_cls_to_wrap']."
        )


def check_not_trained(model: nn.Module) -> None:
    """Check that no earlier run has sharded this model, since accelerate cannot prepare it once more.

    Raises:
        ValueError: one has.
    """
    if is_sharded(model):
        raise ValueError(
            f"an earlier train() has sharded the model under {FSDP2}, which happens once; train the model that "
            "from_pretrained reads from the saved folder, with a new trainer (also to resume)."
        )


def check_no_early_state(optimizer: torch.optim.Optimizer) -> None:
    """Check that an optimizer has no state of the whole weights, which accelerate has replaced by their parts.

    Raises:
        ValueError: it has, as Adagrad, which starts with sums.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if any(id(parameter) not in held for parameter in optimizer.state):
        kind = type(getattr(optimizer, "optimizer", optimizer)).__name__
        raise ValueError(
            f"the optimizer {kind} starts with a state of whole weights, but training runs under {FSDP2}; choose "
            "another optim, such as 'adamw_torch'."
        )


def check_same_modalities(model: FusionForClassification, args: Any, inputs: Mapping[str, Any]) -> None:
    """Check that all processes run the same encoders in a batch; a hook before the forward pass.

    To run an encoder, all processes exchange its weights. One that did not take part would let the others wait forever.

    Args:
        model: the sharded model.
        args: not used: labels come by their name.
        inputs: the keyword arguments of the forward pass.

    Raises:
        ValueError: some processes have rows with a modality and others have none.
    """
    present, names = inputs.get("present") or {}, model.modalities
    runs = [
        inputs.get(name) is not None and (name not in present or bool(present[name].any())) for name in names
    ]
    counts = torch.tensor(runs, dtype=torch.int32, device=PartialState().device)
    torch.distributed.all_reduce(counts)
    size = torch.distributed.get_world_size()
    for name, count in zip(names, counts.tolist(), strict=True):
        if 0 < count < size and (name in model.active or not model.training):
            raise ValueError(
                f"{size - count} of {size} processes have no row with {name!r} in their part of a batch, but under "
                f"{FSDP2} an encoder runs in all processes or in none; use larger batches, rows that have every "
                "modality, or DistributedDataParallel (torchrun, or accelerate launch --multi_gpu)."
            )
