"""The kernels without a GPU: run in Triton's interpreter, and compiled for real."""

import inspect
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import ecsfusion_kernels
import numpy as np
import pytest
import torch
from ecsfusion_kernels import compile_check, language, ops, reference
from ecsfusion_kernels.language import tl
from packaging.version import Version

KERNEL_TESTS = Path(__file__).parent / "kernels"

needs_triton = pytest.mark.skipif(language.triton is None, reason="Triton exists for Linux only")


@pytest.mark.parametrize("module", ops.modules(), ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_kernel_file_has_variants_a_reference_and_tests(module):
    """Nothing else lists the files: a new one is complete when this passes."""
    assert module.variants() or language.triton is None
    for name in module.__all__:
        function = getattr(module, name)
        assert getattr(ecsfusion_kernels, name) is function
        assert getattr(reference, name) is not function
        function = getattr(function, "_init_fn", function)
        assert list(inspect.signature(function).parameters) == list(
            inspect.signature(getattr(reference, name)).parameters
        )
        assert (KERNEL_TESTS / f"test_{module.__name__.rpartition('.')[2]}.py").is_file()


def test_integers_are_specialized_only_where_the_kernel_says_so():
    """Every size and stride is either listed in `do_not_specialize` or a stride that is known to be aligned."""
    if language.triton is None:
        pytest.skip("Triton exists for Linux only")
    specialized = {
        parameter.name
        for module in ops.modules()
        for variant in module.variants()
        for parameter in variant.kernel.params
        if variant.types.get(parameter.name) in ("i32", "i64") and not parameter.do_not_specialize
    }
    assert specialized == {"r_stride", "factor_stride"}


@needs_triton
@pytest.mark.parametrize(
    "kernel",
    dict.fromkeys(variant.kernel for module in ops.modules() for variant in module.variants()),
    ids=lambda kernel: kernel.__name__,
)
def test_a_kernel_is_launched_on_the_device_of_its_first_argument(monkeypatch, kernel):
    """Triton launches on the current device, whatever the tensors are on."""
    current, launched = [None], []

    @contextmanager
    def device_of(tensor):
        current.append(tensor)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(
        type(kernel), "run", lambda self, *args, **kwargs: launched.append((self, args, kwargs, current[-1]))
    )
    first = torch.zeros(1)
    kernel[(7,)](first, 2, BLOCK=3)
    assert launched == [(kernel, (first, 2), {"grid": (7,), "warmup": False, "BLOCK": 3}, first)]
    assert current == [None]


def unable(triton_version, numpy_version):
    """Why the interpreter of this Triton cannot work with this numpy; empty if it can."""
    if Version(triton_version) >= Version("3.7") or Version(numpy_version) < Version("2.4"):
        return ""
    return (
        f"the interpreter of Triton {triton_version} cannot take arrays of numpy {numpy_version} for numbers: install "
        "numpy<2.4 or triton>=3.7 to test the kernels without a GPU"
    )


@pytest.mark.parametrize(
    ("triton_version", "numpy_version", "works"),
    [
        ("3.6.0", "2.3.5", True),
        ("3.6.0", "2.4.0", False),
        ("3.6.1", "2.5.1", False),
        ("3.7.1", "2.5.1", True),
    ],
)
def test_the_pair_that_fails_is_named(triton_version, numpy_version, works):
    reason = unable(triton_version, numpy_version)
    assert works == (reason == "")
    assert works or (triton_version in reason and numpy_version in reason)


# The interpreter is slow: two processes, so that two workers of `pytest -n 2` can share them.
PARTS = 2


@needs_triton
@pytest.mark.parametrize("part", range(PARTS))
def test_every_kernel_equals_its_reference_in_the_interpreter(part):
    if reason := unable(language.triton.__version__, np.__version__):
        pytest.fail(reason, pytrace=False)
    files = sorted(KERNEL_TESTS.glob("test_*.py"))[part::PARTS]
    # A process that needs no Hypothesis takes seconds to import its plugin's summary.
    without = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", *without, *map(str, files)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


@language.jit
def _product_left_running(rows_ptr, basis_ptr, out_ptr, num_dims):
    row, step, column = tl.arange(0, 128), tl.arange(0, 64), tl.arange(0, 32)
    products = tl.zeros((128, 32), tl.float32)
    squares = tl.zeros((128, 64), tl.float32)
    for first in range(0, num_dims, 64):
        rows = tl.load(rows_ptr + row[:, None] * num_dims + (first + step)[None, :])
        basis = tl.load(basis_ptr + (first + step)[:, None] * 32 + column[None, :])
        squares += rows.to(tl.float32) * rows.to(tl.float32)
        products = tl.dot(rows, basis, products)
    out = products / tl.sum(squares, 1)[:, None]
    tl.store(out_ptr + row[:, None] * 32 + column[None, :], out)


@needs_triton
def test_a_product_that_may_read_what_is_overwritten_is_refused(monkeypatch):
    types = {"rows_ptr": "*bf16", "basis_ptr": "*bf16", "out_ptr": "*fp32", "num_dims": "i32"}
    variant = language.Variant(_product_left_running, types, {}, 8, 4)
    monkeypatch.setattr(compile_check, "all_variants", lambda: [variant])
    assert "use the result of `tl.dot` within the step" in compile_check.check(0, 90).problem
    assert not compile_check.check(0, 80).problem
