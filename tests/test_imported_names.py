"""Scripts that no test runs still import what is there."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("benchmarks", "hf_recipes", "kernels")
    for path in (ROOT / folder).rglob("*.py")
    if "results" not in path.parts
)


def imported(path):
    """The module, and the name, of each `from ... import ...` of the package and its kernels."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        module = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
        if module and module.split(".")[0] in ("ecsfusion", "ecsfusion_kernels"):
            yield from ((module, alias.name) for alias in node.names)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_name_that_is_imported_is_there(script):
    missing = []
    for module, name in imported(ROOT / script):
        found = importlib.import_module(module)
        if not hasattr(found, name):
            try:
                importlib.import_module(f"{module}.{name}")
            except ModuleNotFoundError:
                missing.append(f"{module}.{name}")
    assert not missing


def test_scripts_are_looked_at():
    assert {"benchmarks/count_launches.py", "benchmarks/compare.py", "hf_recipes/run.py"} <= set(SCRIPTS)
