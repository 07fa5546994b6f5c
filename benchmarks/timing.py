"""How long a function takes on a device: the median of many runs and their spread."""

import math
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
# The most times that it is overwritten to keep the GPU busy, some 10 ms.
MAX_FLUSHES = 100


class Timing(NamedTuple):
    """Milliseconds per run: the median, and half of the distance between the quartiles."""

    milliseconds: float
    spread: float


def timed(work: Callable[[], Any], device: torch.device, seconds: float = 1.0) -> Timing:
    """Time `work()` as a caller waits for it, for about so many seconds, after a run or two to warm up.

    At least five times, slow work twice. On the clock, from an idle device to an idle device. The L2 cache of a GPU is
    overwritten before each run.
    """
    min_runs = _warm_up(work, device)
    flush = _flush(device)

    def once() -> float:
        flush()
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        return 1e3 * (time.perf_counter() - start)

    return _median(once, min_runs, seconds)


def timed_on_device(work: Callable[[], Any], device: torch.device, seconds: float = 1.0) -> Timing:
    """Time what `work()` does on a GPU, without the Python that launches it; on the CPU the same as `timed`.

    Between two events that are in the queue of the GPU together with the work, before it begins: meanwhile the GPU
    overwrites its L2 cache, as often as launching takes time. Work during which the host waits for the GPU is timed
    with these waits.
    """
    if device.type != "cuda":
        return timed(work, device, seconds)
    min_runs = _warm_up(work, device)
    flush = _flush(device)
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def between(run: Callable[[], Any]) -> float:
        started.record()
        run()
        ended.record()
        ended.synchronize()
        return started.elapsed_time(ended)

    # The shortest of several: a GPU that was idle is slow at first, and would be kept busy for too short a time later.
    flush_milliseconds = min(between(flush) for _ in range(10))
    num_flushes = 1
    # Of slow work the launching does not matter.
    if min_runs == MIN_RUNS:
        start = time.perf_counter()
        work()
        launching = 1e3 * (time.perf_counter() - start)
        _wait(device)
        # Twice, for a launch that takes longer than that one.
        num_flushes = min(1 + math.ceil(2 * launching / flush_milliseconds), MAX_FLUSHES)

    def once() -> float:
        for _ in range(num_flushes):
            flush()
        return between(work)

    return _median(once, min_runs, seconds)


def _warm_up(work: Callable[[], Any], device: torch.device) -> int:
    """Run once, and fast work once more; the least number of runs to time."""
    start = time.perf_counter()
    work()
    _wait(device)
    if time.perf_counter() - start > SLOW:
        return 2
    work()
    _wait(device)
    return MIN_RUNS


def _flush(device: torch.device) -> Callable[[], Any]:
    """Overwrites the L2 cache of a GPU; does nothing on the CPU."""
    if device.type != "cuda":
        return lambda: None
    return torch.empty(FLUSH, dtype=torch.int8, device=device).zero_


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _median(once: Callable[[], float], min_runs: int, seconds: float) -> Timing:
    runs = [once()]
    until = time.perf_counter() + seconds
    while len(runs) < min_runs or (time.perf_counter() < until and len(runs) < MAX_RUNS):
        runs.append(once())
    quartiles = statistics.quantiles(runs, n=4)
    return Timing(statistics.median(runs), (quartiles[2] - quartiles[0]) / 2)
