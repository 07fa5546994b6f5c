"""The parts of `benchmarks/large_scale.py` that can be checked without a GPU and its data."""

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import ASTConfig, ASTModel

# The benchmarks are scripts, not an installed package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import large_scale
from large_scale import (
    Stopwatch,
    balanced,
    parse,
    public_name,
    shorten,
    table,
    time_to_reach,
    workers_that_fit,
)


def test_few_rows_are_of_all_classes():
    labels = np.array([0, 0, 0, 1, 1, 2, 0, 1, 2, 2])
    assert balanced(labels, 3).tolist() == [0, 3, 5]
    assert Counter(labels[balanced(labels, 7)].tolist()) == {0: 3, 1: 2, 2: 2}
    assert balanced(labels, 100).tolist() == list(range(10))


def test_position_embeddings_in_the_middle_stay():
    config = ASTConfig(
        hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, patch_size=4,
        frequency_stride=4, time_stride=4, num_mel_bins=8, max_length=28,
    )  # fmt: skip
    # 2 bands x 7 moments, after two tokens.
    model = ASTModel(config).eval()
    positions = torch.arange(16.0).reshape(1, 16, 1).expand(1, 16, 4)
    model.embeddings.position_embeddings = torch.nn.Parameter(positions.clone())
    # 3 moments: of 0 to 6 those from 2 to 4.
    shorten(model, 12)
    assert model.embeddings.position_embeddings[0, :, 0].tolist() == [0, 1, 4, 5, 6, 11, 12, 13]
    assert model.embeddings.position_embeddings.requires_grad
    assert model(torch.zeros(1, 12, 8)).pooler_output.shape == (1, 4)
    before = model.embeddings.position_embeddings
    shorten(model, 12)
    assert model.embeddings.position_embeddings is before


def test_only_the_own_name_of_a_folder_is_written(tmp_path):
    (tmp_path / "vit").mkdir()
    assert public_name(str(tmp_path / "vit")) == "vit"
    assert public_name("google/vit-base-patch16-224-in21k") == "google/vit-base-patch16-224-in21k"
    assert public_name(None) is None


def test_workers_are_as_many_as_shared_memory_can_hold(monkeypatch, capsys):
    free = SimpleNamespace(free=100_000)
    monkeypatch.setattr(large_scale.shutil, "disk_usage", lambda path: free)
    monkeypatch.setattr(large_scale.Path, "is_dir", lambda path: True)
    assert workers_that_fit(8, 2_000) == 8
    # 80 000 bytes, four batches each.
    assert workers_that_fit(8, 5_000) == 4
    assert "4 workers of the data loader instead of 8" in capsys.readouterr().out
    assert workers_that_fit(8, 50_000) == 0


def line(strategy, seed, answers, **changes):
    answer = "fused" if strategy == "joint" else "calibrated"
    curve = [
        {
            "seconds": 10.0 * n,
            "training_seconds": 8.0 * n,
            "modality_steps": 100 * n,
            "accuracy": {answer: value},
        }
        for n, value in enumerate(answers, start=1)
    ]
    state = {"stage": 2, "training": ["image", "audio"], "fused": True, "median": 0.5}
    return {
        "strategy": strategy,
        "seed": seed,
        "answer": answer,
        "curve": curve,
        "test": {answer: 0.5},
        "seconds_per_step": [state],
        "probe_share": 0.01,
        "shares": {"loader": 0.1},
        "peak_memory_bytes": {"all": 2_000_000_000},
        **changes,
    }


def test_the_time_to_the_same_accuracy_is_that_of_the_lower_end():
    lines = [
        line("two-stage", 0, [0.2, 0.6, 0.9]),
        line("joint", 0, [0.3, 0.4, 0.6]),
        # It ends below where it was.
        line("two-stage", 1, [0.8, 0.7, 0.7]),
        line("joint", 1, [0.1, 0.7, 0.8]),
        # The other one is missing.
        line("two-stage", 2, [0.9]),
    ]
    reached = time_to_reach(lines)
    assert set(reached) == {0, 1}
    assert reached[0]["accuracy"] == 0.6
    assert reached[0]["two-stage"] == {"seconds": 20.0, "training_seconds": 16.0, "modality_steps": 200}
    assert reached[0]["joint"] == {"seconds": 30.0, "training_seconds": 24.0, "modality_steps": 300}
    assert (reached[1]["two-stage"]["seconds"], reached[1]["joint"]["seconds"]) == (10.0, 20.0)
    ours, joint = table(lines).splitlines()[2:]
    assert ours == (
        "| two-stage | 3 | stage 2 (image and audio, fused): 0.5000 | 1.00% | 10.0% | 2.00 | 83.3 | 50.0 | 15.0 | 150 |"
    )
    assert joint.endswith("| 70.0 | 50.0 | 25.0 | 250 |")


def test_steps_are_timed_by_stage_and_by_who_trains(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 13.0, 20.0, 22.0])
    watch = Stopwatch(torch.device("cpu"))
    monkeypatch.setattr(watch, "now", lambda: next(clock))
    for stage, active in (
        ("unimodal", ("image",)),
        ("joint", ("image", "audio")),
        ("joint", ("image", "audio")),
    ):
        model = SimpleNamespace(stage=stage, active=active, trains_fused_head=stage == "joint")
        watch.on_step_begin(None, None, None)
        watch.on_step_end(None, None, None, model=model)
    assert watch.modality_steps == 5
    first, second = watch.seconds_per_step()
    assert (first["stage"], first["training"], first["median"]) == (1, ["image"], 1.0)
    assert (second["stage"], second["steps"], second["median"]) == (2, 2, 2.5)
    watch.loader, watch.evaluation = 2.0, 1.0
    assert watch.shares(10.0) == {"steps": 0.6, "loader": 0.2, "evaluation": 0.1, "rest": 0.1}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--smoke", "--image-encoder", "some/vit"], "--smoke has encoders of its own"),
        (["--epochs", "0"], "--epochs is 0.0; give a positive number"),
        (["--rows", "8"], "--rows is 8; give at least a batch, 32"),
    ],
)
def test_what_cannot_be_run_ends_in_a_sentence(argv, sentence, capsys):
    with pytest.raises(SystemExit):
        parse(argv)
    assert sentence in capsys.readouterr().err


def test_absent_data_end_in_a_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ECSFUSION_DATA", str(tmp_path))
    with pytest.raises(SystemExit):
        parse([])
    assert "avmnist/full/train.parquet is absent" in capsys.readouterr().err
