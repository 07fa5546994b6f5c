"""What a run shows and says of itself: bars or lines, tables of notebooks, the arguments of the model card."""

from __future__ import annotations

import logging
import re
import sys
import types

import numpy as np
import pytest
import torch
import yaml
from fusion_fixtures import TwoViews, two_views
from test_trainer import arguments
from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import ProgressCallback

from ecsfusion import FusionTrainer, fast_pid
from ecsfusion.pid.decomposition import decompose
from ecsfusion.training import callbacks
from ecsfusion.training.callbacks import FusionProgressCallback, LinesOfProgress


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A trainer that has evaluated and not trained."""
    run = FusionTrainer(
        model=two_views(), args=arguments(tmp_path_factory.mktemp("run")), eval_dataset=TwoViews(80, seed=1)
    )
    run.metrics = run.evaluate()
    return run


# ---- the model card ----


def header_and_text(run):
    card = (run.publishing._output / "README.md").read_text(encoding="utf-8")
    _, header, text = card.split("---\n", 2)
    return yaml.safe_load(header), text


def test_every_argument_of_the_card_reaches_it(measured):
    measured.model.add_model_tags("of the model")
    measured.create_model_card(
        language=["en", "de"],
        license="mit",
        tags="mine",
        model_name="Two views",
        finetuned_from="someone/start",
        tasks=["image-classification", "audio-classification"],
        dataset_tags=["someone/left", "someone/right"],
        dataset=["Left views", "Right views"],
        dataset_args="small",
    )
    header, text = header_and_text(measured)
    assert header["language"] == ["en", "de"]
    assert header["license"] == "mit"
    assert {"mine", "of the model", "audio-classification"} <= set(header["tags"])
    assert header["base_model"] == ["someone/start"]
    assert header["pipeline_tag"] == "image-classification"
    assert header["datasets"] == ["someone/left", "someone/right"]
    (index,) = header["model-index"]
    assert index["name"] == "Two views"
    assert {
        (
            result["task"]["type"],
            result["dataset"]["type"],
            result["dataset"]["name"],
            result["dataset"].get("args"),
        )
        for result in index["results"]
    } == {
        (task, f"someone/{side.lower()}", f"{side} views", "small" if side == "Left" else None)
        for task in ("image-classification", "audio-classification")
        for side in ("Left", "Right")
    }
    assert "# Two views" in text
    assert "on Left views and Right views" in text
    assert "It started from [someone/start](https://huggingface.co/someone/start)." in text
    assert "[Right views](https://huggingface.co/datasets/someone/right), 3 classes" in text


def test_a_card_without_arguments_says_nothing_of_them(measured):
    measured.model.model_tags = None
    measured.create_model_card()
    header, text = header_and_text(measured)
    assert not {"language", "license", "datasets", "model-index", "base_model"} & set(header)
    assert "started from [" not in text


def test_paths_that_a_script_was_started_with_are_left_out_of_the_card(
    measured, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    measured.create_model_card(
        finetuned_from=str(tmp_path),
        dataset_tags=["../data", "someone/right"],
        dataset=[str(tmp_path), "Right views"],
        dataset_args=["large", "small"],
    )
    header, text = header_and_text(measured)
    assert "base_model" not in header
    (result,) = {
        (each["dataset"]["type"], each["dataset"]["args"]) for each in header["model-index"][0]["results"]
    }
    assert result == ("someone/right", "small")
    assert "on Right views" in text
    assert "../data" not in text
    assert [each.split(" holds")[0] for each in caplog.messages if "left out of the model card" in each] == [
        "finetuned_from",
        "dataset_tags",
        "dataset",
    ]


# ---- bars or lines ----


def kinds_of_progress(folder, monkeypatch, is_terminal, **options):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    # The Trainer shows no bars where transformers is to log errors only, as other tests of this process may have asked.
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.WARNING)
    args = arguments(folder, **{"disable_tqdm": None, **options})
    run = FusionTrainer(model=two_views(), args=args, eval_dataset=TwoViews(8, seed=1))
    shown = (ProgressCallback, LinesOfProgress)
    return [type(each) for each in run.callback_handler.callbacks if isinstance(each, shown)]


def test_bars_are_for_terminals_and_lines_for_log_files(tmp_path, monkeypatch):
    assert kinds_of_progress(tmp_path, monkeypatch, True) == [FusionProgressCallback]
    assert kinds_of_progress(tmp_path, monkeypatch, False) == [LinesOfProgress]
    assert kinds_of_progress(tmp_path, monkeypatch, False, disable_tqdm=False) == [FusionProgressCallback]
    assert kinds_of_progress(tmp_path, monkeypatch, True, disable_tqdm=True) == [LinesOfProgress]


def test_a_log_file_gets_a_line_a_minute(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(callbacks, "monotonic", lambda: now[0])
    lines, model = LinesOfProgress(), two_views()
    model.set_stage("unimodal")
    model.set_active(("left",))
    state = TrainerState(max_steps=400, is_world_process_zero=True)
    lines.on_train_begin(None, state, None)
    lines.on_log(None, state, None, logs={"loss": 0.5})
    for state.global_step in range(1, 101):
        now[0] += 2
        lines.on_step_end(None, state, None, model=model)
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "step    30 of 400 | stage 1, right paused | loss 0.500 | 2 s a step, about 12 min left"
    assert [line.split()[1] for line in others] == ["60", "90"]
    for _ in range(70):
        now[0] += 1
        lines.on_prediction_step(None, state, None, eval_dataloader=range(200))
    assert capsys.readouterr().out == "step   100 | evaluating, batch 40 of 200\n"
    state.is_world_process_zero = False
    now[0] += 1000
    lines.on_step_end(None, state, None, model=model)
    assert capsys.readouterr().out == ""


def test_a_run_into_a_log_file_shows_no_bars(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    run = FusionTrainer(
        model=two_views(),
        args=arguments(tmp_path, disable_tqdm=None, num_train_epochs=2, save_strategy="epoch"),
        train_dataset=TwoViews(16, seed=0),
        eval_dataset=TwoViews(80, seed=1),
    )
    run.train()
    shown = capfd.readouterr()
    assert not re.search(r"\r|it/s|\d%\|", shown.err)
    assert shown.out.count("| training left, right |") == 2


# ---- notebooks ----


@pytest.fixture
def notebook(monkeypatch):
    """The module for notebooks, with something in the place of IPython, which is no dependency."""
    display = types.ModuleType("IPython.display")
    display.HTML = str
    display.display = lambda *args, **kwargs: types.SimpleNamespace(update=lambda html: None)
    package = types.ModuleType("IPython")
    package.display = display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    for name in ("transformers.utils.notebook", "ecsfusion.training.notebook"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import ecsfusion.training.notebook as module

    yield module
    for name in ("transformers.utils.notebook", "ecsfusion.training.notebook"):
        sys.modules.pop(name, None)


def test_the_table_of_a_notebook_has_the_columns_that_matter(measured, notebook):
    table = notebook.NotebookTableCallback()
    state = TrainerState(max_steps=8, global_step=4, epoch=1.0, log_history=[{"loss": 0.25}])
    table.on_train_begin(measured.args, state, TrainerControl())
    metrics = {**measured.metrics, "eval_f1": 0.5, "epoch": 1.0}
    given = dict(metrics)
    table.on_evaluate(measured.args, state, TrainerControl(), metrics=metrics, model=measured.model)
    names, values = table.training_tracker.inner_table
    assert names == [
        "Epoch",
        "Training Loss",
        "Validation Loss",
        "Stage",
        "Accuracy",
        "Accuracy Left",
        "Accuracy Right",
        "Accuracy Calibrated",
        "Redundancy",
        "Synergy",
        "Unique Left",
        "Unique Right",
        "F1",
    ]
    row = dict(zip(names, values, strict=True))
    assert row["Unique Left"] == measured.metrics["eval_unique_left"]
    assert row["Stage"].startswith("stage")
    assert metrics == given, "the log has all values"
    shifted = {key.replace("eval_", "eval_shifted_"): value for key, value in measured.metrics.items()}
    columns = notebook.columns_that_matter(shifted, "eval_shifted", ("left", "right"))
    assert "eval_shifted_accuracy_left" in columns
    assert not any("floor" in key or "plugin" in key or "calibration" in key for key in columns)


def test_a_trainer_in_a_notebook_shows_that_table(tmp_path, notebook, monkeypatch):
    from transformers.utils.notebook import NotebookProgressCallback

    for module in ("transformers.trainer", "ecsfusion.training.callbacks"):
        monkeypatch.setattr(f"{module}.DEFAULT_PROGRESS_CALLBACK", NotebookProgressCallback)
    run = FusionTrainer(
        model=two_views(), args=arguments(tmp_path, disable_tqdm=False), eval_dataset=TwoViews(8, seed=1)
    )
    kinds = [type(each) for each in run.callback_handler.callbacks]
    assert notebook.NotebookTableCallback in kinds
    assert NotebookProgressCallback not in kinds


@pytest.mark.filterwarnings("ignore:.* are few for ")
def test_a_notebook_shows_a_decomposition_as_a_table():
    label = np.arange(60) % 3
    rows = np.eye(3)[label] + np.random.default_rng(0).normal(size=(60, 3))
    pid = fast_pid({"a<b": rows, "c": rows[:, ::-1].copy()}, label)
    html = pid._repr_html_()
    assert "unique a&lt;b" in html
    assert "a<b" not in html
    for value in (pid.redundancy, pid.unique[1], pid.synergy_floor, pid.held_out.joint_mutual_information):
        assert f"<td>{float(value):.4f}</td>" in html
    assert f"<td>{float(pid.synergy_interval[0]):.4f} to {float(pid.synergy_interval[1]):.4f}</td>" in html
    assert html.count("<tr>") == 1 + 4 + 3
    assert "certified to" in html
    plain = decompose(torch.ones(2, 2, 2))._repr_html_()
    assert "interval" not in plain
    assert "at least" not in plain
    assert "2 tables" in decompose(torch.ones(2, 2, 2, 2))._repr_html_()
