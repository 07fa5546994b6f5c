"""How many threads an estimate on a CPU uses, and which library they belong to."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController

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
    # Not `torch.set_num_threads`: it tells MKL never to choose threads by itself, for good and in all threads. From
    # then on the LU of several matrices is wrong (torch 2.13): `linalg.solve`, `inv` and `det` of the whole program.
    with _openmp().limit(limits=MOST):
        if _used_threads() <= MOST:
            yield
            return
    # The program has called it before, and MKL does not ask OpenMP any more; or there is no OpenMP.
    torch.set_num_threads(MOST)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _openmp() -> ThreadpoolController:
    """The libraries of OpenMP that are loaded, that of torch among them; of BLAS the limit would be the process's."""
    return ThreadpoolController().select(user_api="openmp")


def _used_threads() -> int:
    """The most threads of an operation of torch, with those of MKL."""
    mkl = re.search(r"mkl_get_max_threads\(\) : (\d+)", torch.__config__.parallel_info())
    return max(torch.get_num_threads(), int(mkl[1]) if mkl else 1)


def is_for_another_library(columns: int) -> bool:
    """Whether NumPy and SciPy multiply and factor matrices of so many columns, and not torch."""
    return columns >= MANY_COLUMNS and torch.get_num_threads() == 1
