"""The kernels without a GPU: run in Triton's interpreter, and compiled for real."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNEL_TESTS = Path(__file__).parent / "kernels"

pytest.importorskip("triton", reason="Triton exists for Linux only")


def test_every_kernel_equals_its_reference_in_the_interpreter():
    run = subprocess.run(
        # the interpreter is slow, and nothing else runs meanwhile: all cores
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-n",
            "auto",
            "-p",
            "no:cacheprovider",
            str(KERNEL_TESTS),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
