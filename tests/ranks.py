"""Processes of one training, forked from this one: they need no time to import anything."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.distributed import TCPStore


def start_ranks(function: Callable[[], object], processes: int = 1) -> list[multiprocessing.Process]:
    """Processes that call this function, each with the variables that torchrun gives to its processes."""
    if torch.cuda.is_available():
        pytest.skip("a process that is forked cannot use CUDA: run this with CUDA_VISIBLE_DEVICES=''")
    # As torchrun does it: this process has the store that the ranks meet at, so no port is looked for and then lost.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if processes > 1 else None

    def forked(rank: int) -> None:
        # What the process before the fork was is forgotten.
        AcceleratorState._reset_state(reset_partial_state=True)
        if store is not None:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
            os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
            os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        function()

    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=forked, args=(rank,)) for rank in range(processes)]
    for process in ranks:
        process.start()
        # The store lives as long as they are known.
        process.store = store
    return ranks


def ends(ranks: list[multiprocessing.Process], patience: float = 600) -> list[int | None]:
    """Exit codes of processes; None for one that does not end in so many seconds, which is killed."""
    for process in ranks:
        process.join(patience)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    return codes
