"""Killed at any moment and resumed, a run ends bit for bit as one that was never interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import killed_run
import pytest
import torch
from safetensors.torch import load_file

from ecsfusion.training.checkpoints import (
    clear_up,
    find_damage,
    link_folder,
    replace_folder,
    seal,
    whole_checkpoint,
)

pytestmark = pytest.mark.usefixtures("quick_probes")


def run(
    folder: Path, resume: bool, moment: str | None = None, count: int = 1, **options: object
) -> int | None:
    """The run in a process of its own, killed in the `count`-th call of `moment`; its exit code."""
    return killed_run.ends(killed_run.start(folder, resume, 1, moment, count, **options))[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, resume=False) == 0
    return killed_run.outcome(folder)


def test_the_run_that_is_killed_has_all_that_could_go_wrong(whole, tmp_path):
    decisions = whole["decisions"]
    assert [entry["step"] for entry in decisions if entry["peak"]] == [4, 8]
    assert [entry["restored"] for entry in decisions if entry["restored"] is not None] == [8]
    assert {tuple(entry["trained"]) for entry in decisions} == {("left", "right"), ("right",)}
    assert any("left starts again" in entry["reason"] for entry in decisions)
    assert run(tmp_path, resume=False, seed=6) == 0
    assert killed_run.differences(whole, killed_run.outcome(tmp_path)), "nothing could be seen to differ"


@pytest.mark.parametrize(
    ("moment", "count"),
    [
        # In stage 1, while a checkpoint is written, whose optimizer is cut off.
        ("_save_rng_state", 6),
        (
            "replace_folder",
            11,
            # While the folder of the peak is replaced (with 8 checkpoints and 2 folders before)
        ),
        # At the stage change.
        ("_begin_joint_stage", 1),
        # After the last step.
        ("give_to_model", 1),
        # When all is done but this.
        ("_remove_folders", 1),
    ],
)
def test_killed_and_resumed_it_ends_the_same(whole, tmp_path, moment, count):
    assert run(tmp_path, False, moment, count) == -signal.SIGKILL
    assert run(tmp_path, True) == 0
    assert killed_run.differences(whole, killed_run.outcome(tmp_path)) == []


def test_a_run_killed_before_its_first_checkpoint_starts_again(whole, tmp_path):
    assert run(tmp_path, False, "training_step", 1) == -signal.SIGKILL
    assert run(tmp_path, True) == 0
    assert killed_run.differences(whole, killed_run.outcome(tmp_path)) == []


def test_a_run_that_ended_early_is_not_trained_on(tmp_path):
    """Stage 1 alone ends at step 12 of 20; killed after that, it must not go on to step 13."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, False, stage_one=True) == 0
    assert run(killed, False, "give_to_model", 1, stage_one=True) == -signal.SIGKILL
    assert run(killed, True, stage_one=True) == 0
    assert not list(killed.glob("checkpoint-13*"))
    assert killed_run.differences(killed_run.outcome(whole), killed_run.outcome(killed)) == []


def test_an_older_checkpoint_brings_its_own_peak(whole, tmp_path):
    """The peak of step 8 has replaced that of step 4 when the run goes back to step 6."""
    assert run(tmp_path, False, "seal", 10, save_total_limit=None) == -signal.SIGKILL
    for step in (7, 8, 9):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    weights = load_file(tmp_path / "checkpoint-6" / "unimodal" / "model.safetensors")
    assert json.loads((tmp_path / "checkpoint-6" / "unimodal" / "config.json").read_text())["step"] == 4
    assert json.loads((tmp_path / "unimodal" / "config.json").read_text())["step"] == 8
    assert run(tmp_path, True, "training_step", 1, save_total_limit=None) == -signal.SIGKILL
    now = load_file(tmp_path / "unimodal" / "model.safetensors")
    assert all(torch.equal(weights[name], now[name]) for name in weights)
    assert run(tmp_path, True, save_total_limit=None) == 0
    assert killed_run.differences(whole, killed_run.outcome(tmp_path)) == []


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A run killed in stage 2: checkpoint-15 is the last, checkpoint-14 the one before."""
    folder = tmp_path_factory.mktemp("killed")
    assert run(folder, False, "training_step", 16) == -signal.SIGKILL
    return folder


@pytest.mark.parametrize("damage", ["truncated", "flipped", "state", "missing", "manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_found(killed, tmp_path, damage):
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    file = folder / "checkpoint-15" / ("trainer_state.json" if damage == "state" else "model.safetensors")
    if damage == "flipped":
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage in ("truncated", "state"):
        os.truncate(file, file.stat().st_size - 7)
    elif damage == "missing":
        file.unlink()
    else:
        file = file.parent / "manifest.json"
        file.write_text("{")
    found, sentences = whole_checkpoint(True, folder)
    assert Path(found).name == "checkpoint-14"
    assert len(sentences) == 1
    assert sentences[0].startswith(f"The checkpoint {file.parent} is damaged: ")
    assert file.name in sentences[0]


def test_a_run_goes_on_from_before_the_damage_to_the_same_end(whole, killed, caplog):
    os.truncate(killed / "checkpoint-15" / "optimizer.pt", 1000)
    killed_run.train(killed, True)
    assert "checkpoint-15 is damaged: optimizer.pt has 1,000 bytes instead of" in caplog.text
    assert f"resumes from the checkpoint before: {killed / 'checkpoint-14'}." in caplog.text
    assert killed_run.differences(whole, killed_run.outcome(killed)) == []
    assert find_damage(killed / "checkpoint-20") is None


def test_of_a_given_folder_the_one_before_is_used_and_none_is_an_error(tmp_path):
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "state.json").write_text("{}")
    seal(tmp_path / "checkpoint-2")
    given = str(tmp_path / "checkpoint-10")
    assert whole_checkpoint(given, tmp_path / "elsewhere")[0] == str(tmp_path / "checkpoint-2")
    assert [s.split(":")[0] for s in whole_checkpoint(True, tmp_path)[1]] == [
        f"The checkpoint {tmp_path / f'checkpoint-{step}'} is damaged" for step in (12, 10)
    ]
    shutil.rmtree(tmp_path / "checkpoint-2")
    with pytest.raises(
        ValueError, match=r"checkpoint-10 is damaged: .*manifest.*no whole checkpoint before it"
    ):
        whole_checkpoint(given, tmp_path)
    with pytest.raises(ValueError, match=r"no such folder; give a folder checkpoint-STEP"):
        whole_checkpoint(str(tmp_path / "nowhere"), tmp_path)
    assert whole_checkpoint(True, tmp_path)[0] is None
    assert whole_checkpoint(True, tmp_path / "nowhere") == (None, [])


def test_clearing_up_keeps_what_was_saved_and_drops_what_was_not(tmp_path):
    for name in (
        "peak.old",
        "peak.writing",
        "other",
        "other.old",
        "checkpoint-3.old",
        "unfinished",
        "mine.old",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    clear_up(tmp_path, ("peak", "other"))
    content = {path.name: (path / "content").read_text() for path in tmp_path.iterdir()}
    assert content == {
        "peak": "peak.old",
        "other": "other",
        "checkpoint-3": "checkpoint-3.old",
        "mine.old": "mine.old",
    }


def test_a_linked_folder_survives_what_it_was_linked_from(tmp_path):
    for name, content in (("first", b"1"), ("second", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
        (tmp_path / name / "README.md").write_bytes(content)
    link_folder(tmp_path / "first", tmp_path / "kept")
    assert (tmp_path / "kept" / "model.safetensors").samefile(tmp_path / "first" / "model.safetensors")
    (tmp_path / "first" / "README.md").write_bytes(b"changed in place")
    replace_folder(tmp_path / "second", tmp_path / "first")
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == b"2"
    assert {path.read_bytes() for path in (tmp_path / "kept").iterdir()} == {b"1"}


def test_two_processes_killed_and_resumed_end_the_same(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert killed_run.ends(killed_run.start(whole, False, 2)) == [0, 0]
    assert killed_run.ends(killed_run.start(killed, False, 2, "_save_rng_state", 13)) == [
        -signal.SIGKILL,
        -signal.SIGKILL,
    ]
    assert killed_run.ends(killed_run.start(killed, True, 2)) == [0, 0]
    assert (killed / "checkpoint-20" / "rng_state_1.pth").is_file()
    assert find_damage(killed / "checkpoint-20") is None
    assert killed_run.differences(killed_run.outcome(whole), killed_run.outcome(killed)) == []
