"""Says where a model cannot be written because each process has only a part of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING or torch.distributed.is_available():
    from torch.distributed.tensor import DTensor


def check_whole(model: nn.Module, action: str) -> None:
    """Check that this process has the whole of every weight.

    Args:
        model: the model.
        action: what needs them, such as "export".

    Raises:
        ValueError: a run under FSDP has sharded them.
    """
    if torch.distributed.is_available() and any(isinstance(p, DTensor) for p in model.parameters()):
        raise ValueError(
            f"{action} needs whole weights, but training under FSDP has left each process a part of them; call "
            "trainer.save_model(folder) in all processes, and go on with from_pretrained(folder)."
        )
