"""The floating-point types of the weights of a model, of which parts may have others, so that they are loaded as saved.

transformers loads all weights of a model in one type, that of the first of them, which may be an encoder that was
pretrained in half precision: the heads and the other encoders would be rounded to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

FSDP_WRAPPER = "_fsdp_wrapped_module"
"""The name under which FSDP version 1 holds a module; it is no part of the names of saved weights."""


def describe_dtypes(module: nn.Module, usual: torch.dtype, prefix: str = "") -> dict[str, str]:
    """The types of weights and buffers that have another one than the usual, by the beginning of their names.

    Of several beginnings of a name the longest counts.

    Args:
        module: the module.
        usual: the type that is not named.
        prefix: the beginning of the names in this module.

    Returns:
        Such as `{"encoders.image": "bfloat16", "encoders.image.layers.0.lora_A": "float32"}`.
    """
    counts = Counter(value.dtype for part in module.modules() for value in _own_values(part).values())
    if not counts:
        return {}
    commonest = counts.most_common(1)[0][0]
    found = {} if commonest == usual else {prefix: str(commonest).removeprefix("torch.")}
    if len(counts) > 1:
        for name, part in module.named_children():
            found |= describe_dtypes(
                part, commonest, prefix if name == FSDP_WRAPPER else _joined(prefix, name)
            )
        for name, value in _own_values(module).items():
            if value.dtype != commonest:
                found[_joined(prefix, name)] = str(value.dtype).removeprefix("torch.")
    return found


def _own_values(module: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers of a module itself that are saved and have a floating-point type.

    Not by `state_dict`, for which FSDP version 1 waits for all processes.
    """
    buffers = {
        name: value
        for name, value in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }
    values = {**dict(module.named_parameters(recurse=False)), **buffers}
    return {name: value for name, value in values.items() if value.is_floating_point()}


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


@torch.no_grad()
def set_dtypes(module: nn.Module, dtypes: Mapping[str, str]) -> None:
    """Give the weights and buffers that are saved the types that `describe_dtypes` found.

    Args:
        module: the module.
        dtypes: types by the beginning of the names.
    """
    for name, value in module.state_dict(keep_vars=True).items():
        beginnings = [each for each in dtypes if not each or f"{name}.".startswith(f"{each}.")]
        if beginnings and isinstance(value, Tensor) and value.is_floating_point():
            value.data = value.data.to(getattr(torch, dtypes[max(beginnings, key=len)]))
