"""Training by two processes: both decide alike, no row counts twice, and the result is that of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_processes
from fusion_fixtures import TwoViews, two_views
from ranks import ends, start_ranks
from safetensors.torch import load_file

from ecsfusion import FusionTrainer, FusionTrainingArguments
from ecsfusion.training.divergence import DivergenceError
from ecsfusion.training.plan import check_sharding, make_plan
from ecsfusion.training.sharding import DEEPSPEED, FSDP1, FSDP2

TESTS = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The same run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    two_processes.main(folder, "--use_cpu")
    return folder


def assert_alike(two: Path, alone: Path) -> dict:
    """The run in the folder `two`, by two processes, is that of one process; what its first process saw."""
    one = json.loads((alone / "rank0.json").read_text())
    first, second = (json.loads((two / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert (one["processes"], first["processes"]) == (1, 2)
    assert first["wrapped"] == "DistributedDataParallel"
    # Decisions, weights and readout.
    assert first == second
    assert first["threads_left"] == [], "a thread of gloo may abort its process while Python shuts down"
    assert first["rows"] == two_processes.ROWS, "rows that only fill the last batch were counted"
    assert first["labels"] == one["labels"] == TwoViews(two_processes.ROWS, 2).labels.tolist()
    assert {probe["reading"]["stage"] for probe in first["history"]} == {"unimodal", "joint"}
    assert [probe["reading"]["training"] for probe in first["history"]] == [
        ["right"],
        *[["left", "right"]] * 3,
    ]
    assert first["groups"] == 7
    assert [found["diagnostic"] for found in first["warnings"]] == ["few groups"]

    for key in ("step", "stage", "training"):
        assert [probe["reading"][key] for probe in first["history"]] == [
            probe["reading"][key] for probe in one["history"]
        ]
    assert [probe["decision"] for probe in first["history"]] == [
        probe["decision"] for probe in one["history"]
    ]
    weights, reference = (load_file(folder / "model.safetensors") for folder in (two, alone))
    for name, value in reference.items():
        torch.testing.assert_close(
            weights[name], value, rtol=1e-3, atol=2e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    return first


def test_two_processes_of_torchrun_train_as_one(alone, tmp_path):
    assert ends(start_ranks(lambda: two_processes.main(tmp_path, "--use_cpu"), 2)) == [0, 0]
    assert_alike(tmp_path, alone)


def test_two_processes_of_accelerate_train_as_one(alone, tmp_path):
    # With --cpu instead of --multi_gpu, accelerate silently starts one process.
    launcher = (
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    )
    command = [sys.executable, "-m", *launcher, "two_processes.py", str(tmp_path), "--use_cpu"]
    # Where there is a GPU, accelerate would ask for one a process.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    first = assert_alike(tmp_path, alone)
    lines = [line for line in done.stdout.splitlines() if line.startswith("step")]
    assert len(lines) == len(first["history"])
    assert done.stderr.count(", few groups: ") == 1, "only the first process warns"


STAGE_ONE = "has a stage 1, but training runs under KIND.*FSDP version 2.*DistributedDataParallel"
GRADIENTS = "changes gradients, which KIND does not show"
OF_SHARDS = "cannot be trained under FSDP version 2: .*DistributedDataParallel"
REFUSED_WHERE_SHARDED = [
    *[
        (kind, strategy, {}, sentence)
        for kind in (DEEPSPEED, FSDP1)
        for strategy, sentence in (
            ("two-stage", STAGE_ONE),
            ("unimodal", STAGE_ONE),
            ("ogm", GRADIENTS),
            ("joint", None),
        )
    ],
    *[(FSDP2, strategy, {}, None) for strategy in ("two-stage", "unimodal", "ogm", "joint", "pdmp")],
    *[(FSDP2, strategy, {}, OF_SHARDS) for strategy in ("mmpareto", "ogm-ge", "diagnosing-relearning")],
    *[
        (FSDP2, "two-stage", {name: True}, f"{name} is True, .*leave it out")
        for name in ("auto_find_batch_size", "fp16_full_eval", "bf16_full_eval")
    ],
]


@pytest.mark.parametrize(("kind", "strategy", "options", "sentence"), REFUSED_WHERE_SHARDED)
def test_what_sharded_weights_allow(tmp_path, kind, strategy, options, sentence):
    args = FusionTrainingArguments(output_dir=str(tmp_path), strategy=strategy, use_cpu=True, **options)
    plan = make_plan(None, args, two_views())
    if sentence is None:
        check_sharding(plan, args, kind)
        return
    with pytest.raises(ValueError, match=sentence.replace("KIND", kind)):
        check_sharding(plan, args, kind)


def test_the_trainer_asks_before_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ecsfusion.trainer.check_sharding", lambda *args: (_ for _ in ()).throw(ValueError("asked"))
    )
    with pytest.raises(ValueError, match="asked"):
        two_processes.main(tmp_path, "--use_cpu")


def test_a_process_whose_rows_are_sound_does_not_blame_the_rate_alone(tmp_path):
    """Gradients are averaged, so that a row of one process breaks those of all."""
    rows = [
        {**row, "right": {"pixel_values": row["right"]["pixel_values"].clone()}} for row in TwoViews(32, 0)
    ]
    rows[0]["right"]["pixel_values"][:] = torch.nan

    def train():
        run = FusionTrainer(
            two_views(),
            FusionTrainingArguments(
                str(tmp_path), strategy="joint", max_steps=1, per_device_train_batch_size=16, use_cpu=True
            ),
            train_dataset=rows,
            eval_dataset=TwoViews(40, 1),
        )
        try:
            run.train()
        except DivergenceError as error:
            (tmp_path / f"said_{run.args.process_index}").write_text(str(error))
            # Without waiting for the other.
            os._exit(3)

    assert ends(start_ranks(train, 2)) == [3, 3]
    said = sorted((tmp_path / f"said_{rank}").read_text() for rank in (0, 1))
    assert (
        "the loss was finite in this process; where it was not in another, that one says why; lower"
        in said[0]
    )
    assert "the inputs of right hold NaN or infinite values, first in row 0 of train_dataset" in said[1]
