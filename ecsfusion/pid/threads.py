"""How many threads an estimate on a CPU uses, and which library they belong to."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

MOST = 4
"""The default estimate is thousands of small operations, and threads that wait for each other at each of them cost more
than they bring: with 16 threads on 16 cores wide embeddings took several times as long as with 4."""
MANY_COLUMNS = 256
"""With so many columns half of a Gram matrix is worth another library, whose sums are rounded more coarsely, to one
thread: the threads of two libraries wait for each other, and an estimate took up to four times as long."""


@contextmanager
def few_threads() -> Iterator[None]:
    """A context in which the operations of this thread use few threads; after it as many as before."""
    before = torch.get_num_threads()
    if before <= MOST:
        yield
        return
    torch.set_num_threads(MOST)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_for_another_library(columns: int) -> bool:
    """Whether NumPy and SciPy multiply and factor matrices of so many columns, and not torch."""
    return columns >= MANY_COLUMNS and torch.get_num_threads() == 1
