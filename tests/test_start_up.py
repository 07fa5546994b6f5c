"""What starting up imports: the command line answers before torch is loaded, and names are loaded when used."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ecsfusion
from ecsfusion.extras import EXTRA_OF

ROOT = Path(__file__).resolve().parents[1]
PATHS = [str(ROOT), str(ROOT / "kernels" / "torch-ext")]

IMPORTED = "print(json.dumps([code, sorted(set(sys.modules) - before)]))\n"
COMMAND = """import json, sys
before = set(sys.modules)
from ecsfusion.cli import main
try:
    code = main({arguments!r})
except SystemExit as stop:
    code = stop.code
"""
# Each statement in a fork, so that none sees what another imported; torch is loaded once for those that need it.
STATEMENTS = """import json, os, sys, traceback
for statement in {statements!r}:
    if statement is None:
        import torch
        continue
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            exec(statement)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os.write(writer, b"".join(name.encode() + b" " for name in sys.modules if "." not in name))
        os._exit(0)
    os.close(writer)
    print(json.dumps([statement, os.fdopen(reader).read().split(), os.waitpid(child, 0)[1]]))
"""
# As after `pip install ecsfusion`, without any extra.
WITHOUT_EXTRAS = """import sys, warnings
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_others(name, path=None, target=None):
    return None if name.partition(".")[0] in {absent!r} else find(name, path, target)
PathFinder.find_spec = staticmethod(find_others)
import torch
import ecsfusion, ecsfusion_kernels
from ecsfusion.cli import main
from ecsfusion.pid.estimate import fast_pid
warnings.simplefilter("ignore")
labels = torch.arange(60) % 2
rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)) + 3 * labels[:, None]
for method in ("posteriors", "clusters"):
    pid = fast_pid([rows, rows], labels, method=method)
    print(method, round(float(pid.joint_mutual_information)))
open("data.parquet", "w").close()
print(main("pid data.csv --label y --modality a=x --modality b=x".split()) == 0)
uses = {{name: lambda name=name: getattr(ecsfusion, name) for name in ecsfusion.__all__}}
for name, use in {{**uses, "plot": pid.plot}}.items():
    try:
        use()
    except ImportError as error:
        print(name + ":", error, file=sys.stderr)
for words in {commands!r}:
    main(words.split())
"""
COLUMNS = "--label y --modality a=x --modality b=x"
ANSWERS = {
    "train --config digits": ("the recipe", "recipes"),
    "export .": ("exporting", "export"),
    "export . --format torch": ("exporting", "train"),
    "push . somebody/model": ("publishing", "train"),
    "demo .": ("the page", "demo"),
    f"pid data.csv {COLUMNS} --plot pid.png": ("a picture", "plots"),
    f"pid data.parquet {COLUMNS}": ("a parquet file", "data"),
    f"pid somebody/data {COLUMNS}": ("the data set 'somebody/data'", "data"),
}
"""What a command says without the extra: what needs it, and which one it is."""
MEASURING = {
    *(
        "PID",
        "Decision",
        "FewSamplesWarning",
        "Reading",
        "Readout",
        "RepeatedRowsWarning",
        "Rule",
        "cluster_centers",
    ),
    *("decompose", "differentiable_pid", "fast_pid", "fast_pids", "logit_pid", "make_rule", "pid_tensors"),
    *("soft_assignments", "soft_joint"),
}
"""The public names that need no extra."""
# What a shell starts in the background ignores SIGINT, and so do its children: here it interrupts in any case.
INTERRUPTED = """import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from ecsfusion import cli
from ecsfusion.pid import stream
def interrupted(*arguments, **options):
    signal.raise_signal(signal.SIGINT)
stream.stream_pid = interrupted
sys.exit(cli.main({arguments!r}))
"""


def run_python(code, cwd):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def exit_code_and_imports(code, cwd):
    """The exit code that `code` computes, the modules that it imports, and its standard error."""
    done = run_python(code + IMPORTED, cwd)
    assert done.returncode == 0, done.stderr
    exit_code, modules = json.loads(done.stdout.splitlines()[-1])
    return exit_code, set(modules), done.stderr


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        ("--help", 0, ""),
        ("pid --help", 0, ""),
        ("push --help", 0, ""),
        ("--version", 0, ""),
        ("", 2, "required: command"),
        ("pdi data.npz", 2, "invalid choice: 'pdi'"),
        ("pid", 2, "required: FILE, --label, --modality"),
        ("pid data.npz --modality a=x --modality b=y", 2, "required: --label"),
        ("pid data.npz --label y --modality a=x --modality b=y --botstrap 3", 2, "--botstrap"),
        ("pid data.npz --label y --modality a=x --modality b", 2, "NAME=COL"),
        ("pid data.npz --label y --modality a=x", 2, "two or more different names"),
        ("pid data.npz --label y --modality a=x --modality b=y --clusters many", 2, "nor auto"),
        ("push run", 2, "required: NAME"),
        ("push run me/model --privat --peek peak", 2, "--peek"),
    ],
)
def test_the_command_line_answers_with_the_standard_library_alone(tmp_path, words, exit_code, message):
    found, modules, err = exit_code_and_imports(COMMAND.format(arguments=words.split()), tmp_path)
    assert found == exit_code
    assert message in err
    ours = {name for name in modules if name.startswith("ecsfusion")}
    assert ours == {"ecsfusion", "ecsfusion.auto_classes", "ecsfusion.cli", "ecsfusion.extras"}
    assert {name.split(".")[0] for name in modules} <= {*sys.stdlib_module_names, "ecsfusion"}


WITHOUT_TORCH = {
    "import ecsfusion": "torch numpy transformers ecsfusion_kernels argparse",
    "import ecsfusion.controller": "torch transformers",
    "from ecsfusion import Decision, Reading, Rule, make_rule": "torch transformers",
    "from ecsfusion import __version__": "torch numpy transformers",
}
WITH_TORCH = {
    "from ecsfusion import PID, decompose, fast_pid, fast_pids, pid_tensors": (
        "transformers matplotlib datasets accelerate evaluate pyarrow scipy"
    ),
    "from ecsfusion.pid.stream import stream_pid": "transformers matplotlib datasets",
    "import ecsfusion_kernels": "ecsfusion transformers",
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The packages in memory after each statement."""
    statements = [*WITHOUT_TORCH, None, *WITH_TORCH]
    done = run_python(STATEMENTS.format(statements=statements), tmp_path_factory.mktemp("empty"))
    assert done.returncode == 0, done.stderr
    found = {}
    for statement, modules, status in map(json.loads, done.stdout.splitlines()):
        assert status == 0, f"{statement}: {done.stderr}"
        found[statement] = set(modules)
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("statement", [*WITHOUT_TORCH, *WITH_TORCH])
def test_a_name_imports_only_what_it_needs(imported, statement):
    assert "ecsfusion" in imported[statement] or "ecsfusion_kernels" in imported[statement]
    assert imported[statement] & set({**WITHOUT_TORCH, **WITH_TORCH}[statement].split()) == set()


@pytest.fixture(scope="module")
def without_extras(tmp_path_factory):
    """What measurements print without any extra, and the errors of everything that needs one."""
    folder = tmp_path_factory.mktemp("without_extras")
    rows = "".join(f"{row % 2},{row % 2 + row / 100}\n" for row in range(60))
    (folder / "data.csv").write_text("y,x\n" + rows)
    absent = sorted(set(EXTRA_OF) - {"hf_recipes"})
    done = run_python(WITHOUT_EXTRAS.format(absent=absent, commands=list(ANSWERS)), folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_a_measurement_needs_no_extra(without_extras):
    printed, _ = without_extras
    assert printed[:2] == ["posteriors 1", "clusters 1"]
    assert printed[-1] == "True"


def test_what_needs_an_extra_is_answered_by_the_line_that_installs_it(without_extras):
    sentence = r'(.+) needs \w+, which is not installed; run: pip install "ecsfusion\[(\w+)\]"'
    _, errors = without_extras
    told = [re.fullmatch(rf"([\w ]+): (?:error: )?{sentence}", line) for line in errors]
    assert all(told), [line for line, found in zip(errors, told, strict=True) if not found]
    assert [found.group(2, 3) for found in told] == [
        *((name, "train") for name in ecsfusion.__all__ if name not in MEASURING),
        ("a picture", "plots"),
        *ANSWERS.values(),
    ]


def test_interrupting_a_measurement_ends_in_one_line(tmp_path):
    import numpy as np

    generator = np.random.default_rng(0)
    rows = generator.normal(size=(50, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=rows, label=np.arange(50) % 2)
    words = ["pid", "data.npz", "--label", "label", "--modality", "a=x", "--modality", "b=x", "--quiet"]
    done = run_python(INTERRUPTED.format(arguments=words), tmp_path)
    assert done.returncode == 130
    assert done.stderr == "ecsfusion pid: interrupted\n"
    assert done.stdout == ""
