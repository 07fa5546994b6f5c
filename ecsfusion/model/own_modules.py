"""Modules of the user's own inside a fusion model: their weights are saved with it, their code is not."""

from __future__ import annotations

from torch import Tensor, nn

OWN_MODULE = "own_module"
"""The `model_type` in a configuration of an encoder whose code the library does not know."""


def keep_weights(module: nn.Module) -> nn.Module:
    """Keep transformers from drawing new weights for this module, which it returns.

    The weights are the user's, or are loaded afterwards.
    """
    for part in module.modules():
        part._is_hf_initialized = True  # type: ignore[assignment]
    return module


def unsaved_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers that are not in the module's `state_dict`, by name."""
    saved = module.state_dict()
    return [(name, value) for name, value in module.named_buffers() if name not in saved]
