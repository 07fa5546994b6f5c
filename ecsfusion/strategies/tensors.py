"""Tensors as JSON values, bit for bit: for the state of a strategy, which a checkpoint keeps as JSON."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_json(values: Tensor) -> dict[str, Any]:
    """A tensor of numbers as its shape and its float32 values, base64-encoded."""
    array = values.detach().cpu().float().contiguous().numpy().astype("<f4")
    return {"shape": list(array.shape), "float32": base64.b64encode(array.tobytes()).decode("ascii")}


def from_json(saved: dict[str, Any]) -> Tensor:
    """The tensor that `to_json` was given, in float32, on the CPU."""
    array = np.frombuffer(base64.b64decode(saved["float32"]), dtype="<f4").reshape(saved["shape"])
    return torch.from_numpy(array.astype(np.float32))
