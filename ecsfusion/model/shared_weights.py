"""Weights that occur twice in a model: tied inside of an encoder, which is saved once, or shared, which is refused."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def check_not_shared(modules: Mapping[str, nn.Module]) -> None:
    """Check that no two modules hold the same weight or buffer.

    A shared weight would belong to two modalities: pausing one would freeze the other, and both would train it.

    Args:
        modules: encoders, and the fused head, by the names to call them by in the message.

    Raises:
        ValueError: names two modules and a weight that they share.
    """
    owners: dict[int, tuple[str, str]] = {}
    for name, module in modules.items():
        own = {id(tensor): key for key, tensor in [*module.named_parameters(), *module.named_buffers()]}
        for identity, key in own.items():
            if identity in owners:
                other, other_key = owners[identity]
                raise ValueError(
                    f"{name!r} and {other!r} share the weight {other_key!r} ({key!r} in {name!r}); each modality "
                    "trains, is paused and is saved by itself: give one of them a copy, copy.deepcopy(encoder)."
                )
        owners |= {identity: (name, key) for identity, key in own.items()}


def tied_weights(model: nn.Module) -> dict[str, str]:
    """The weights that are one and the same tensor under several names, and that no part of the model declares.

    Returns:
        By each further name, the first name of the weight, as `PreTrainedModel._tied_weights_keys` has them.
    """
    declared = {
        f"{prefix}.{key}"
        for prefix, module in model.named_modules()
        if prefix
        for key in getattr(module, "_tied_weights_keys", None) or ()
    }
    names: dict[int, list[str]] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(key)
    return {
        further: first
        for first, *others in names.values()
        for further in others
        if not declared & {first, *others}
    }
