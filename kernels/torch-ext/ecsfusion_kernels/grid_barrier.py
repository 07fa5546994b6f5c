"""A barrier for several programs of one launch: none goes on before all have come.

A program that waits keeps its multiprocessor, so all of them must run at the same time. Of a cooperative launch CUDA
promises that, or refuses it.
"""

from __future__ import annotations

import torch

from . import language
from .language import jit, tl

MULTIPROCESSORS = 132
"""Of an H100 or H200: taken for tensors without values."""
WARPS = 8
"""That a multiprocessor certainly has registers for: a thread has at most 255, and there are 65 536."""


@jit
def wait_for_programs(arrivals_ptr, times, num_programs):
    """Return when each program has come so many times; what it stored before can be read, with `.cg`.

    `arrivals` is one int32 number, 0 at the start. `.cg` reads from the L2 cache, which all multiprocessors share.
    """
    # After the barrier all threads have stored, and one of them announces it (release). It sees all announcements
    # (acquire) before the other barrier lets the threads go on.
    tl.debug_barrier()
    if num_programs > 1:
        arrived = tl.atomic_add(arrivals_ptr, 1, sem="acq_rel", scope="gpu") + 1
        while arrived < times * num_programs:
            arrived = tl.atomic_add(arrivals_ptr, 0, sem="acquire", scope="gpu")
        tl.debug_barrier()


def resident_programs(device: torch.device, num_warps: int = WARPS) -> int:
    """How many programs of so many warps certainly run at the same time; one in the interpreter."""
    if language.INTERPRETED:
        return 1
    on_each = max(1, WARPS // num_warps)
    if device.type != "cuda":
        return MULTIPROCESSORS * on_each
    return torch.cuda.get_device_properties(device).multi_processor_count * on_each
