"""The kernels as a Hugging Face kernel package: built, it loads from any folder, beside the installed one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[1] / "kernels"

pytest.importorskip("kernels", reason="the package that loads kernel packages")

LOAD = """
import sys
from pathlib import Path
import torch
import ecsfusion_kernels as installed
from kernels import get_local_kernel
from kernels._rust import Build

assert len(Build.open(sys.argv[1]).general.backends) == 2
loaded = get_local_kernel(Path(sys.argv[2]), backend="cpu")
assert loaded.__file__.startswith(sys.argv[2]), loaded.__file__
assert sorted(loaded.__all__) == sorted(installed.__all__)
counter = torch.arange(5)
assert torch.equal(loaded.uniform(counter, 3), installed.uniform(counter, 3))
assert "_ecsfusion_kernels_1a2b3c4::uniform" in str(torch.ops._ecsfusion_kernels_1a2b3c4.uniform.default._schema)
copy = torch.eye(4) / 4
assert abs(float(loaded.broja(copy, copy).conditional_entropy)) < 1e-6
"""


def build(folder: Path) -> None:
    """Lay the package out as kernel-builder does for a `[torch-noarch]` kernel."""
    variant = folder / "build" / "torch-cpu"
    shutil.copytree(
        KERNELS / "torch-ext" / "ecsfusion_kernels", variant, ignore=shutil.ignore_patterns("__pycache__")
    )
    name = "_ecsfusion_kernels_1a2b3c4"
    metadata = {
        "id": name,
        "name": "ecsfusion-kernels",
        "version": 1,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cpu"},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata))
    (variant / "_ops.py").write_text(
        f"import torch\n\nops = torch.ops.{name}\n\n\ndef add_op_namespace_prefix(op_name: str):\n"
        f'    return f"{name}::{{op_name}}"\n'
    )


def test_a_built_package_loads_beside_the_installed_one(tmp_path):
    build(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(KERNELS), str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
