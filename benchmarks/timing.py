"""How long a function takes on a device: the median of many runs and their spread."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

MAX_RUNS = 200
MIN_RUNS = 5
# Seconds
SLOW = 3.0
# Bytes, several times the largest L2 cache.
FLUSH = 256 * 2**20


class Timing(NamedTuple):
    """Milliseconds per run: the median, and half of the distance between the quartiles."""

    milliseconds: float
    spread: float


def timed(work: Callable[[], Any], device: torch.device, seconds: float = 1.0) -> Timing:
    """Time `work()` for about so many seconds, after a run or two to warm up; at least five times, slow work twice.

    On a GPU the times are those between two events around each run, so they hold the gaps in which the processor was
    late with a launch; the L2 cache is overwritten before each run. On the CPU they are times on the clock.
    """
    start = time.perf_counter()
    work()
    min_runs = MIN_RUNS
    if time.perf_counter() - start > SLOW:
        min_runs = 2
    else:
        work()
    if device.type == "cuda":
        flush = torch.empty(FLUSH, dtype=torch.int8, device=device)
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def once() -> float:
            flush.zero_()
            torch.cuda.synchronize(device)
            started.record()
            work()
            ended.record()
            ended.synchronize()
            return started.elapsed_time(ended)
    else:

        def once() -> float:
            start = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - start)

    runs = [once()]
    until = time.perf_counter() + seconds
    while len(runs) < min_runs or (time.perf_counter() < until and len(runs) < MAX_RUNS):
        runs.append(once())
    quartiles = statistics.quantiles(runs, n=4)
    return Timing(statistics.median(runs), (quartiles[2] - quartiles[0]) / 2)
