"""Whether a tensor holds values that can be read."""

import torch
from torch import Tensor


def check_values(value: Tensor, name: str) -> None:
    """Check that a tensor holds values that can be read.

    Raises:
        ValueError: for a tensor on the device meta, a sparse or a quantized one. The message names the argument.
    """
    if value.device.type == "meta" or value.layout != torch.strided or value.is_quantized:
        what = "on the device meta" if value.device.type == "meta" else f"of the layout {value.layout}"
        raise ValueError(f"{name} must be a dense tensor that holds values, got one {what}; give it as such")
