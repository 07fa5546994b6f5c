"""The extras of pyproject.toml, and what is said to whoever lacks one."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from readings import make_probe

import ecsfusion
from ecsfusion import auto_classes
from ecsfusion.data.media import read_audio
from ecsfusion.extras import EXTRA_OF, MissingExtraError, OutdatedExtraError, extra_for

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "hf_recipes": "ecsfusion"}
USED_BY_NAME = {"jinja2", "onnxscript", "accelerate", "triton"}


@pytest.fixture(scope="module")
def extras():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]["optional-dependencies"]
    return {name: [Requirement(each) for each in wanted] for name, wanted in project.items()}


def take_away(monkeypatch, package):
    """Let a package be absent, as where it is not installed."""
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    find = PathFinder.find_spec

    def find_others(name, path=None, target=None):
        return None if name.partition(".")[0] == package else find(name, path, target)

    monkeypatch.setattr(PathFinder, "find_spec", staticmethod(find_others))


def brought_by(extras, name):
    """The packages of an extra and of those that it names."""
    found = set()
    for requirement in extras[name]:
        found |= {requirement.name}.union(*(brought_by(extras, other) for other in requirement.extras))
    return found


def test_the_extra_of_a_module_brings_it(extras):
    for module, extra in EXTRA_OF.items():
        assert DISTRIBUTIONS.get(module, module) in brought_by(extras, extra), module


def test_every_package_of_an_extra_is_known_by_its_module(extras):
    """So that none is missing without a sentence; Triton is, where kernels fall back to their references."""
    known = {DISTRIBUTIONS.get(module, module) for module in EXTRA_OF} | {"triton"}
    assert brought_by(extras, "all") <= known


def test_extras_that_the_library_names_exist(extras):
    for file in (ROOT / "ecsfusion").rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "extra_for":
                names = {
                    node.value
                    for arg in call.args[1:]
                    for node in ast.walk(arg)
                    if isinstance(node, ast.Constant) and str(node.value).isidentifier()
                }
                assert names - {"onnx"} <= set(extras), f"{file.name}:{call.lineno}"


@pytest.mark.parametrize(
    ("extra", "line"), [(None, 'pip install "ecsfusion[data]"'), ("demo", 'pip install "ecsfusion[demo]"')]
)
def test_the_sentence_names_what_is_missing_for_what_and_what_to_do(monkeypatch, extra, line):
    take_away(monkeypatch, "pyarrow")
    with pytest.raises(MissingExtraError) as caught, extra_for("a parquet file", extra):
        importlib.import_module("pyarrow.parquet")
    assert str(caught.value) == f"a parquet file needs pyarrow, which is not installed; run: {line}"
    assert caught.value.name == "pyarrow"


def test_the_innermost_purpose_is_told(monkeypatch):
    take_away(monkeypatch, "gradio")
    with (
        pytest.raises(MissingExtraError, match="the page needs gradio"),
        extra_for("outside", "all"),
        extra_for("the page"),
    ):
        importlib.import_module("gradio")


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("raise ImportError('libgomp is broken')", ImportError, "libgomp is broken"),
        ("import of_nobody", ModuleNotFoundError, "No module named 'of_nobody'"),
        ("import datasets.of_another_version", ModuleNotFoundError, "datasets.of_another_version"),
    ],
)
def test_errors_of_a_broken_installation_are_not_masked(monkeypatch, tmp_path, source, kind, message):
    monkeypatch.delitem(sys.modules, "evaluate", raising=False)
    (tmp_path / "evaluate.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(kind, match=message) as caught, extra_for("a metric"):
        importlib.import_module("evaluate")
    assert not isinstance(caught.value, MissingExtraError)


@pytest.mark.parametrize(
    ("module", "installed", "sentence"),
    [
        (
            "evaluate",
            "0.3.0",
            'evaluate>=0.4.6, and 0.3.0 is installed; run: pip install "ecsfusion[train]"',
        ),
        (
            "sklearn",
            "1.0",
            'scikit-learn>=1.5, and 1.0 is installed; run: pip install "ecsfusion[recipes]"',
        ),
        ("evaluate", "0.4.6", None),
    ],
)
def test_a_version_that_is_too_old_is_said_where_an_import_fails(monkeypatch, module, installed, sentence):
    wanted = ['evaluate>=0.4.6; extra == "train"', 'scikit-learn>=1.5; extra == "recipes"']
    monkeypatch.setattr("importlib.metadata.version", lambda package: installed)
    monkeypatch.setattr("importlib.metadata.requires", lambda package: wanted)
    with pytest.raises(ImportError) as caught, extra_for("a metric"):
        raise ImportError("cannot import name 'load'", name=f"{module}.loading")
    assert isinstance(caught.value, OutdatedExtraError) == (sentence is not None)
    assert str(caught.value) == (f"a metric needs {sentence}" if sentence else "cannot import name 'load'")


@pytest.mark.parametrize(
    ("module", "absent", "extra"),
    [
        ("metrics", "evaluate", "train"),
        ("pid.plotting", "matplotlib", "plots"),
        ("demo.page", "transformers", "demo"),
    ],
)
def test_a_module_that_is_imported_by_itself_says_what_it_lacks(monkeypatch, module, absent, extra):
    take_away(monkeypatch, absent)
    monkeypatch.delitem(sys.modules, f"ecsfusion.{module}", raising=False)
    with pytest.raises(
        MissingExtraError, match=rf"ecsfusion\.{module} needs {absent}, .*ecsfusion\[{extra}\]"
    ):
        importlib.import_module(f"ecsfusion.{module}")


def test_whoever_only_measures_may_have_transformers_without_the_rest(monkeypatch):
    """As after `pip install ecsfusion transformers`, where pictures cannot be read."""
    take_away(monkeypatch, "evaluate")
    monkeypatch.delitem(sys.modules, "ecsfusion.metrics", raising=False)
    auto_classes._import_once("ecsfusion.metrics")
    assert "ecsfusion.metrics" not in sys.modules


def test_an_import_of_the_library_is_registered_at_its_end(monkeypatch, tmp_path):
    """Otherwise what is to be registered would import the module that is being imported."""
    (tmp_path / "theirs.py").write_text("")
    (tmp_path / "ours.py").write_text("from ecsfusion.extras import finished\n")
    (tmp_path / "extras.py").write_text("import theirs\nfinished = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ecsfusion, "__path__", [str(tmp_path)])
    monkeypatch.setattr(ecsfusion, "extras", None)
    finder = auto_classes._AfterImport({"theirs": "ours"})
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "ecsfusion.extras")
    importlib.import_module("ecsfusion.extras")
    assert sys.modules.pop("ours").finished
    del sys.modules["theirs"]


def test_arrays_of_samples_need_no_extra_and_sound_files_do(monkeypatch):
    take_away(monkeypatch, "soundfile")
    samples = {"array": np.zeros(8, dtype=np.float32), "sampling_rate": 8000}
    assert len(read_audio(samples, 8000)) == 8
    with pytest.raises(MissingExtraError, match=r"a sound file needs soundfile, .*ecsfusion\[audio\]"):
        read_audio(b"RIFF", 8000)


def test_a_picture_of_a_decomposition_needs_an_extra(monkeypatch):
    take_away(monkeypatch, "matplotlib")
    monkeypatch.delitem(sys.modules, "ecsfusion.pid.plotting", raising=False)
    pid = ecsfusion.decompose(torch.full((2, 2, 2), 0.125))
    with pytest.raises(MissingExtraError, match=r"a picture needs matplotlib, .*ecsfusion\[plots\]"):
        pid.plot()


def test_a_run_goes_on_without_pictures(monkeypatch, tmp_path, caplog):
    assert ecsfusion.FusionTrainer
    from ecsfusion.reporting.trajectory import plot_trajectory
    from ecsfusion.training import publishing

    # Tests draw nothing otherwise.
    monkeypatch.setattr(publishing, "plot_trajectory", plot_trajectory)
    take_away(monkeypatch, "matplotlib")
    history = [make_probe(1)]
    run = SimpleNamespace(
        args=SimpleNamespace(output_dir=str(tmp_path)),
        record=SimpleNamespace(history=history),
        model=SimpleNamespace(modalities=("image", "audio")),
    )
    publishing.Publishing(run).draw_trajectory()
    assert not list(tmp_path.iterdir())
    assert re.search(r"a picture needs matplotlib, .*The run goes on without pictures", caplog.text)


def test_the_digits_need_the_recipe(monkeypatch):
    """Other data sets of the recipe do not: only theirs are made with scikit-learn."""
    from hf_recipes.configuration import RecipeArguments
    from hf_recipes.data import load_splits

    take_away(monkeypatch, "sklearn")
    monkeypatch.delitem(sys.modules, "hf_recipes.digits", raising=False)
    with pytest.raises(
        MissingExtraError, match=r"the data set 'digits' needs sklearn, .*ecsfusion\[recipes\]"
    ):
        load_splits(RecipeArguments(dataset="digits"))
