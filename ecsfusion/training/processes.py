"""The end of a run by several processes: their threads end before Python does."""

from __future__ import annotations

import gc

import torch.distributed
from transformers import Trainer


def end_processes(trainer: Trainer) -> None:
    """As `Accelerator.end_training`, and no thread of the process group is left to run while Python shuts down.

    Such a thread that drops a tensor then, and so waits for the interpreter, aborts its process (SIGABRT).
    `destroy_process_group` alone does not end the threads: DistributedDataParallel keeps the group.
    """
    accelerator = trainer.accelerator
    accelerator.wait_for_everyone()  # nobody hangs up on one that still communicates
    # Our own reference, so that the group is not freed by the wrapper's reducer: it would wait for the threads
    # without letting them have the interpreter. The group's own reference in Python lets them.
    group = torch.distributed.group.WORLD if torch.distributed.is_initialized() else None
    if group is not None:
        trainer.model_wrapped = trainer.model
        accelerator.free_memory()
        gc.collect()  # the wrapper is in reference cycles
    accelerator.end_training()
    del group  # joins the threads
