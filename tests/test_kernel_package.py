"""The kernels as a Hugging Face kernel package: built, it loads from any folder, beside the installed one."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ecsfusion_kernels
import pytest
import torch

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


def test_the_tests_of_the_package_pass_for_a_build(tmp_path):
    """As kernel-builder's continuous integration runs them, from a folder without a configuration of pytest."""
    build(tmp_path)
    shutil.copytree(KERNELS / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    kernels_ci: few and short\n")
    environment = {
        **os.environ,
        "LOCAL_KERNELS": f"ecsfusion/ecsfusion-kernels={tmp_path}",
        "CUDA_VISIBLE_DEVICES": "",
    }
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "kernels_ci", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "6 passed" in run.stdout


def test_the_benchmark_of_the_package_verifies_what_it_times():
    location = KERNELS / "benchmarks" / "benchmark_kernels.py"
    specification = importlib.util.spec_from_file_location("benchmark_kernels", location)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.NUM_ROWS, module.NUM_COLUMNS = 500, 32
    benchmark = module.KernelsBenchmark()
    benchmark.kernel = ecsfusion_kernels
    torch.manual_seed(benchmark.seed)
    benchmark.setup()
    names = [name.removeprefix("benchmark_") for name in dir(benchmark) if name.startswith("benchmark_")]
    assert len(names) == 3
    for name in names:
        getattr(benchmark, f"benchmark_{name}")()
        torch.testing.assert_close(benchmark.out, getattr(benchmark, f"verify_{name}")(), rtol=0, atol=1e-2)


REGISTER = {
    "custom_op",
    "triton_op",
    "register_kernel",
    "register_fake",
    "register_vmap",
    "register_torch_dispatch",
}


def name_of(call: ast.expr) -> str:
    """The last part of the name that is called, or nothing."""
    function = call.func if isinstance(call, ast.Call) else None
    return getattr(function, "id", getattr(function, "attr", ""))


def faults(path: str, source: str) -> list[str]:
    """What kernel-builder refuses, and what it asks not to do: other namespaces, and ways around the prefix."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for decorator in getattr(node, "decorator_list", []):
            arguments = decorator.args if isinstance(decorator, ast.Call) else []
            if (
                name_of(decorator) in REGISTER
                and arguments
                and name_of(arguments[0]) != "add_op_namespace_prefix"
            ):
                found.append(f"{path}:{node.lineno} registers under another name")
        if isinstance(node, ast.FunctionDef) and node.name == "add_op_namespace_prefix" and path != "_ops.py":
            found.append(f"{path}:{node.lineno} wraps the prefix")
        if isinstance(node, ast.Try) and "_ops" in ast.dump(node):
            found.append(f"{path}:{node.lineno} falls back from _ops")
    return found


def test_ops_are_registered_as_kernel_builder_demands():
    folder = KERNELS / "torch-ext" / "ecsfusion_kernels"
    sources = {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.py"))}
    assert [fault for path, source in sources.items() for fault in faults(path, source)] == []
    assert sum("@custom_op(add_op_namespace_prefix(" in source for source in sources.values()) == 29


@pytest.mark.parametrize(
    "source",
    [
        '@custom_op("ecsfusion_kernels::double", mutates_args=())\ndef double(x): ...',
        '@torch.library.register_fake(f"{NAMESPACE}::double")\ndef _(x): ...',
        "def add_op_namespace_prefix(name): ...",
        "try:\n    from ._ops import ops\nexcept ImportError:\n    ops = None",
    ],
)
def test_the_check_finds(source):
    assert len(faults("ops/double.py", source)) == 1


def test_the_card_is_one_of_the_library_kernels():
    card = (KERNELS / "CARD.md").read_text()
    assert card.startswith("---\nlibrary_name: kernels\n")
    assert "trust_remote_code=True" in card
    assert "genKernelFlakeOutputs" in (KERNELS / "flake.nix").read_text()
