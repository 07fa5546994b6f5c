"""Small tensors between devices, by one copy."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Tree = TypeVar("Tree")


def moved(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Tensors on a device, float64; those that are elsewhere come together, and the host waits for them once.

    The algebra of a few numbers is a launch an operation on a GPU, and costs less on the host.
    """
    away = [tensor for tensor in tensors if tensor.device != torch.device(device)]
    if not away:
        return [tensor.double() for tensor in tensors]
    copied = iter(
        torch.cat([tensor.double().flatten() for tensor in away])
        .to(device)
        .split([tensor.numel() for tensor in away])
    )
    return [
        tensor.double() if tensor.device == torch.device(device) else next(copied).view(tensor.shape)
        for tensor in tensors
    ]


def tree_moved(tree: Tree, device: torch.device | str) -> Tree:
    """Tuples of tensors, or of None, whose tensors are `moved`."""
    leaves, structure = tree_flatten(tree)
    there = iter(moved([leaf for leaf in leaves if leaf is not None], device))
    found: Tree = tree_unflatten([None if leaf is None else next(there) for leaf in leaves], structure)
    return found
