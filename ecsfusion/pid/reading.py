"""Whether the host may look at a result before it decides what to compute next."""

import torch
from torch import Tensor


def may_read(tensor: Tensor) -> bool:
    """Whether its values may be read by the host: not while its device captures a graph, and not where it has none.

    What is found to be worth nothing need not be computed, which on a GPU saves thousands of small launches for a few
    reads. In a graph, where nothing can be read, it is computed and multiplied by 0.
    """
    if tensor.device.type == "cuda":
        return not torch.cuda.is_current_stream_capturing()
    return tensor.device.type != "meta"
