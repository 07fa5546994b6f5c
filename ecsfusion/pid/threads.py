"""An estimate on a CPU uses one thread."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import cast

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """A context in which the operations of this thread use no other; after it as many as before.

    An estimate is thousands of small operations. On idle cores two threads saved little time, and on busy ones
    they waited for each other at each operation: it took several times as long. One gives the same values on every
    machine, too, and works in a process that was forked from one with several.
    """
    # Asked before a limit is set: the first time that a thread asks, torch sets its number.
    if torch.get_num_threads() == 1:
        yield
        return
    # Not `torch.set_num_threads`: it tells MKL never to choose threads by itself, for good and in all threads. From
    # then on the LU of several matrices is wrong (torch 2.13): `linalg.solve`, `inv` and `det` of the whole program.
    with _openmp().limit(limits=1):
        limit_mkl = _mkl()
        of_mkl = limit_mkl(1)
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
