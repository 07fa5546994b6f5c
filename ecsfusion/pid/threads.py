"""How many threads an estimate on a CPU uses, and which library they belong to."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import cast

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
    # Asked before a limit is set: the first time that a thread asks, torch sets its number.
    if torch.get_num_threads() <= MOST:
        yield
        return
    # Not `torch.set_num_threads`: it tells MKL never to choose threads by itself, for good and in all threads. From
    # then on the LU of several matrices is wrong (torch 2.13): `linalg.solve`, `inv` and `det` of the whole program.
    with _openmp().limit(limits=MOST):
        limit_mkl = _mkl()
        of_mkl = limit_mkl(MOST)
        try:
            yield
        finally:
            limit_mkl(of_mkl)


@cache
def _openmp() -> ThreadpoolController:
    """The libraries of OpenMP that are loaded, that of torch among them; of BLAS the limit would be the process's."""
    return ThreadpoolController().select(user_api="openmp")


@cache
def _mkl() -> Callable[[int], int]:
    """MKL's limit of the calling thread, which gives the one before; it does nothing where torch shows no MKL.

    MKL follows OpenMP, unless a program has set its number: by MKL_NUM_THREADS or `torch.set_num_threads`.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return cast(Callable[[int], int], library.MKL_Set_Num_Threads_Local)
    except (OSError, AttributeError):
        return lambda number: number


def is_for_another_library(columns: int) -> bool:
    """Whether NumPy and SciPy multiply and factor matrices of so many columns, and not torch."""
    return columns >= MANY_COLUMNS and torch.get_num_threads() == 1
