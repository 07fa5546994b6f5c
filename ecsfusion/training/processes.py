"""The end of a run by several processes: their threads end before Python does."""

from __future__ import annotations

import gc

import torch
from transformers import Trainer


def end_processes(trainer: Trainer) -> None:
    """As `Accelerator.end_training`, and no thread of the process group is left to run while Python shuts down.

    Such a thread that drops a tensor then, and so waits for the interpreter, aborts its process (SIGABRT).
    `destroy_process_group` alone does not end the threads: DistributedDataParallel keeps the group.
    """
    accelerator = trainer.accelerator
    group = None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Nobody hangs up on one that still communicates.
        accelerator.wait_for_everyone()
        # The last reference is to be this one, which lets the threads have the interpreter while it waits for them;
        # the wrapper's reducer would not, and they would wait for each other.
        group = torch.distributed.group.WORLD
        trainer.model_wrapped = trainer.model
        accelerator.free_memory()
        # The wrapper is in reference cycles.
        gc.collect()
    accelerator.end_training()
    del group
