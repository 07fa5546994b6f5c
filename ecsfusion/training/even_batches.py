"""Streams in shards, of which each process reads its own: all processes make as many steps as the longest needs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard, IterableDatasetShard
from torch.utils.data import IterableDataset
from transformers.utils import logging

logger = logging.get_logger(__name__)


class EvenBatches:
    """Gives each process as many batches in a pass as the process whose shards hold most.

    The others begin theirs again. Without this, a process that has read its shards would evaluate while others train,
    and each would wait for the other forever.

    Args:
        loader: the loader of the training rows, as accelerate has made it for this process.
        accelerator: of the run.
    """

    def __init__(self, loader: Any, accelerator: Accelerator) -> None:
        self._loader = loader
        self._accelerator = accelerator
        self._pass: Iterator[Any] | None = None
        self._again: Iterator[Any] = iter(())
        self._is_over = False

    def take(self, batches: Iterator[Any], number: int) -> list[Any]:
        """The next batches of a pass; all processes call this together.

        Args:
            batches: those of the pass, an iterator over the loader.
            number: how many there are at most.

        Raises:
            ValueError: the shards of a process hold no row.
        """
        if batches is not self._pass:
            self._pass, self._again, self._is_over = batches, iter(()), False
        if self._is_over:
            return []
        taken = list(islice(batches, number))
        count = torch.tensor([len(taken)], device=self._accelerator.device)
        wanted = int(self._accelerator.gather(count).max())
        self._is_over = wanted == 0
        while len(taken) < wanted:
            more = list(islice(self._again, wanted - len(taken)))
            if not more:
                self._again = iter(self._loader)
                more = list(islice(self._again, wanted - len(taken)))
            if not more:
                raise ValueError(
                    f"the shards of train_dataset that process {self._accelerator.process_index} reads hold no row; "
                    "give shards of about as many rows each."
                )
            taken += more
        return taken


def reads_own_shards(loader: Any) -> bool:
    """Whether each process reads other shards of a stream, and not all of it to take its part."""
    is_stream = isinstance(loader, DataLoaderShard) and isinstance(loader.dataset, IterableDataset)
    return is_stream and not isinstance(loader.dataset, IterableDatasetShard)


def check_not_split(dataset: Any, argument: str) -> None:
    """Check that nobody has given the processes their parts of a stream yet.

    Args:
        dataset: a data set of the run, with several processes.
        argument: the name under which the user passed it.

    Raises:
        ValueError: `datasets.distributed.split_dataset_by_node` has.
    """
    if getattr(dataset, "_distributed", None) is not None:
        raise ValueError(
            f"{argument} is what split_dataset_by_node gave to this process, and the Trainer would divide it among the "
            "processes once more, so that most rows would never be read; give the whole data set."
        )


def warn_of_uneven_shards(dataset: Any, processes: int) -> None:
    """Say what a number of shards means that the processes cannot share evenly."""
    shards = getattr(dataset, "num_shards", None)
    if not isinstance(shards, int) or shards % processes == 0:
        return
    if shards < processes:
        what = "each process reads all of them, and takes its part of the rows"
    else:
        what = "each process reads its own, and where these hold fewer rows, it begins them again until all have ended"
    logger.warning_once(
        f"train_dataset is a stream of {shards} shards for {processes} processes: {what}. A multiple of {processes} "
        "shards of about as many rows is read once, by one process each."
    )
