"""Which part of the library may import which: one table, checked on the source."""

import ast
import itertools
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "ecsfusion"
KERNELS = ROOT / "kernels" / "torch-ext" / "ecsfusion_kernels"

# A part is a folder or a file of `ecsfusion/`. It may import itself and the parts before it, nothing else.
LAYERS = (
    "extras",
    "data",
    "pid",
    "model",
    "processing",
    "export",
    "modeling",
    "pipeline",
    "evaluation",
    "controller",
    "diagnostics",
    "strategies",
    "reporting",
    "training_args",
    "training",
    "trainer",
    "metrics",
    "auto_classes",
    "demo",
    "cli",
    "__main__",
)
# The public names of `ecsfusion/__init__.py` come from all parts. Of them a part may import only this one.
PUBLIC_NAME_FOR_ALL = "ecsfusion.__version__"

# Where the name of a module differs from that of the package that brings it.
DISTRIBUTIONS = {"PIL": "pillow"}
EXTRAS = ("data", "train", "audio", "plots", "export", "demo")
OPTIONAL = {"packaging", "peft", "trackio"}


class Import(NamedTuple):
    """One imported name, such as `ecsfusion.pid.stream.stream_pid`, and where it is imported."""

    file: Path
    line: int
    name: str
    is_run_at_import: bool


def imports_of(file: Path, root: Path) -> list[Import]:
    """Every import in a file of the package in the folder `root`: relative, in functions, for type checkers."""
    package = file.relative_to(root.parent).with_suffix("").parts[:-1]
    return list(_imports(ast.parse(file.read_text(encoding="utf-8")), file, package, True))


def _imports(node: ast.AST, file: Path, package: tuple[str, ...], at_import: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(file, node.lineno, alias.name, at_import)
    elif isinstance(node, ast.ImportFrom):
        start = package[: len(package) + 1 - node.level] if node.level else ()
        module = ".".join([*start, *([node.module] if node.module else [])])
        for alias in node.names:
            yield Import(file, node.lineno, f"{module}.{alias.name}", at_import)
    elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for child in node.body:
            yield from _imports(child, file, package, False)
        for child in node.orelse:
            yield from _imports(child, file, package, at_import)
    else:
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, file, package, at_import and not is_function)


def files_below(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


def part_of(file: Path, library: Path = LIBRARY) -> str:
    """The folder or file of `ecsfusion/` that a file belongs to."""
    return file.relative_to(library).parts[0].removesuffix(".py")


def module_of(name: str, root: Path) -> str:
    """The module that holds an imported name: the name itself, or the longest part of it that is a file."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = root.parent.joinpath(*parts[:length])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return ".".join(parts[:length])
    raise AssertionError(f"{name} is in no file")


def upward_imports(files: list[Path], library: Path = LIBRARY) -> list[str]:
    """Imports against the table, one sentence each."""
    found = []
    for file in files:
        for imported in imports_of(file, library):
            top, *rest = imported.name.split(".")
            if top != "ecsfusion" or imported.name == PUBLIC_NAME_FOR_ALL:
                continue
            part, other = part_of(file, library), rest[0] if rest else "__init__"
            if other not in LAYERS or LAYERS.index(other) > LAYERS.index(part):
                place = f"{file.relative_to(library.parent)}:{imported.line}"
                found.append(f"{place}: {part} must not import {imported.name}")
    return found


@pytest.fixture(scope="module")
def library_files():
    return [file for file in files_below(LIBRARY) if file != LIBRARY / "__init__.py"]


def test_every_part_is_in_the_table(library_files):
    assert {part_of(file) for file in library_files} == set(LAYERS)
    assert len(set(LAYERS)) == len(LAYERS)


@pytest.mark.parametrize("part", LAYERS)
def test_a_part_imports_only_parts_before_it(library_files, part):
    violations = upward_imports([file for file in library_files if part_of(file) == part])
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import ecsfusion.cli", ["ecsfusion.cli"]),
        ("from ecsfusion import fast_pid", ["ecsfusion.fast_pid"]),
        ("def f():\n    from ecsfusion.trainer import FusionTrainer", ["ecsfusion.trainer.FusionTrainer"]),
        ("if TYPE_CHECKING:\n    from ecsfusion.cli import main", ["ecsfusion.cli.main"]),
        ("from ..trainer import FusionTrainer", ["ecsfusion.trainer.FusionTrainer"]),
        ("from .. import cli, __version__", ["ecsfusion.cli"]),
        ("from . import discretize\nfrom .discretize import ModalityPairs", []),
        ("from ecsfusion.data.columns import check_row\nfrom ecsfusion import __version__", []),
    ],
)
def test_the_table_is_enforced(tmp_path, source, names):
    """An import against the table is found in each of its forms, in a file of `pid/`."""
    library = tmp_path / "ecsfusion"
    (library / "pid").mkdir(parents=True)
    file = library / "pid" / "new.py"
    file.write_text(source, encoding="utf-8")
    assert [sentence.rpartition(" ")[2] for sentence in upward_imports([file], library)] == names


@pytest.mark.parametrize("root", [LIBRARY, KERNELS], ids=["ecsfusion", "ecsfusion_kernels"])
def test_no_files_import_one_another_in_a_circle(root):
    """Counts what runs when a file is imported: not what stands in a function or under TYPE_CHECKING.

    The file `_ops.py` of the kernels is written when they are built for the Hub.
    """
    graph: dict[str, set[str]] = {}
    for file in files_below(root):
        module = module_of(".".join(file.relative_to(root.parent).with_suffix("").parts), root)
        names = [found.name for found in imports_of(file, root) if found.is_run_at_import]
        inside = [name for name in names if name.split(".")[0] == root.name and "._ops." not in name]
        graph[module.removesuffix(".__init__")] = {module_of(name, root) for name in inside}
    try:
        TopologicalSorter({module: others - {module} for module, others in graph.items()}).prepare()
    except CycleError as error:
        pytest.fail("these files import one another: " + ", ".join(reversed(error.args[1])))


def test_the_library_imports_only_the_kernels_and_declared_dependencies(library_files):
    """So neither `hf_recipes` nor `benchmarks` nor `tests`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [project["optional-dependencies"][name] for name in EXTRAS]
    declared = {each.partition(">")[0] for each in itertools.chain(project["dependencies"], *extras)}
    allowed = {*sys.stdlib_module_names, "ecsfusion", "ecsfusion_kernels", *declared, *OPTIONAL}
    others = [
        f"{file.relative_to(ROOT)}:{found.line}: {found.name}"
        for file in library_files
        for found in imports_of(file, LIBRARY)
        if DISTRIBUTIONS.get(top := found.name.split(".")[0], top) not in allowed
    ]
    assert not others, "\n".join(others)


def test_kernels_import_only_torch_and_triton():
    """Some references use NumPy where it is installed, on the CPU, where its calls cost less."""
    faster_by_numpy = {
        KERNELS / "reference" / f"{name}.py" for name in ("broja", "kmeans", "match_prior", "pool_weights")
    }
    others = []
    for file in files_below(KERNELS):
        allowed = {*sys.stdlib_module_names, "torch", "triton", "ecsfusion_kernels"}
        if file in faster_by_numpy:
            allowed.add("numpy")
        others += [
            f"{file.relative_to(ROOT)}:{found.line}: {found.name}"
            for found in imports_of(file, KERNELS)
            if found.name.split(".")[0] not in allowed
        ]
    assert not others, "\n".join(others)
