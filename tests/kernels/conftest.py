"""Every kernel against its plain PyTorch reference, on a GPU or, without one, in Triton's interpreter.

The interpreter must be chosen before the kernels are imported, so it has a process of its own: tests/test_kernels.py
starts it. On a machine with CUDA these are the tests of `pytest -m gpu`. Elsewhere only `test_ops.py` is collected,
which asks the same of the references; what the compiler makes of the kernels is executed without a GPU by the tests of
the folder ptx, which need no process of their own.
"""

import contextlib
import dataclasses
import functools
import os
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore = [
        path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_ops.py"
    ]


def pytest_collection_modifyitems(items):
    if not INTERPRETED and torch.cuda.is_available():
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.gpu)


def patch_once_a_launch():
    """Let the interpreter put its functions in place of Triton's once a launch and module.

    It does so at every call inside a kernel, `tl.sum` included, which is a third of the time of these tests.
    """
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, set()

    def patch_once(function):
        if id(function.__globals__) in patched:
            return None
        patched.add(id(function.__globals__))
        scope = patch(function)
        restore = scope.restore
        scope.restore = lambda: (patched.clear(), restore())
        return scope

    interpreter._patch_lang = patch_once


def leave_out_checks_that_nothing_reads():
    """Integers are computed in 64 bits too, for an assertion that the interpreter makes only where it debugs.

    That is half of the time of these tests.
    """
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def remember_dtypes():
    """The table of numpy's dtypes is made anew at every operation."""
    from triton import language
    from triton.runtime import interpreter

    numpy_dtype = functools.cache(interpreter._get_np_dtype)
    pointers = numpy_dtype(language.uint64)

    def remembered(dtype):
        scalar = dtype.scalar
        return pointers if scalar.is_ptr() else numpy_dtype(scalar)

    interpreter._get_np_dtype = remembered


if INTERPRETED:
    for make_quicker in (patch_once_a_launch, leave_out_checks_that_nothing_reads, remember_dtypes):
        # Another version of Triton may lack what this needs: slower, and the same.
        with contextlib.suppress(ImportError, AttributeError, TypeError):
            make_quicker()


@pytest.fixture(scope="session")
def device():
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")


@pytest.fixture(scope="session")
def large():
    """Whether sizes that only a GPU works through in time may be used."""
    return not INTERPRETED
