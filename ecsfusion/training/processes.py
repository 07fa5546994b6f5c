"""Ends a run of several processes without leaving threads that could abort them."""

from __future__ import annotations

import gc

import torch

from ecsfusion.training.run import Run


def end_processes(run: Run) -> None:
    """Call `Accelerator.end_training`, and end all threads of the process group before Python shuts down.

    A thread that frees a tensor while Python shuts down waits for the interpreter and then aborts its process
    (SIGABRT). `destroy_process_group` alone does not end the threads, because DistributedDataParallel keeps a reference
    to the group. (Weights that FSDP version 2 shards keep one too, and with it the threads, as long as they exist.)

    Args:
        run: the trainer whose run ends.
    """
    accelerator = run.accelerator
    group = None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # No process may end the group while another one still communicates.
        accelerator.wait_for_everyone()
        # `group` must be the last reference to the group: when it is deleted, it waits for the threads and lets them
        # use the interpreter. The wrapper of DistributedDataParallel would wait without that, and block forever.
        group = torch.distributed.group.WORLD
        run.model_wrapped = run.model
        accelerator.free_memory()
        # The wrapper is a part of reference cycles, so it has to be collected.
        gc.collect()
    accelerator.end_training()
    del group
