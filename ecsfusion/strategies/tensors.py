"""Exact conversion of tensors to JSON values, for the state of a strategy in a checkpoint."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_json(values: Tensor) -> dict[str, Any]:
    """Convert a tensor to its shape and its float32 values in base64."""
    array = values.detach().cpu().float().contiguous().numpy().astype("<f4")
    return {"shape": list(array.shape), "float32": base64.b64encode(array.tobytes()).decode("ascii")}


def from_json(saved: dict[str, Any]) -> Tensor:
    """Make the tensor, in float32 and on the CPU, from what `to_json` returned."""
    array = np.frombuffer(base64.b64decode(saved["float32"]), dtype="<f4").reshape(saved["shape"])
    return torch.from_numpy(array.astype(np.float32))
