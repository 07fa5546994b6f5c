"""Full disks, damaged and foreign checkpoints, bad data: nothing that was saved is lost. All: `fault_campaign.py`."""

from __future__ import annotations

import contextlib
import random
import shutil
from functools import partial

import bad_sources
import datasets
import faults
import full_disk
import pytest
import torch

from ecsfusion.training.checkpoints import (
    MANIFEST,
    check_written,
    find_damage,
    link_folder,
    whole_checkpoint,
)

pytestmark = pytest.mark.usefixtures("quick_probes")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> faults.Runs:
    return faults.make_runs(tmp_path_factory.mktemp("runs"))


FAULTS = {
    "weights": partial(full_disk.disk_full, "weights"),
    "optimizer": partial(full_disk.disk_full, "optimizer"),
    "peak": partial(full_disk.disk_full, "peak"),
    "final model and card": partial(
        full_disk.disk_full_at_the_end, disk=partial(full_disk.small_files, 1_000)
    ),
    "link": faults.link,
    "older state": faults.older_state,
    "oldest state": faults.oldest_state,
    "newer state": faults.newer_state,
    "foreign state": faults.foreign_state,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_and_the_sentence_says_what_to_do(runs, tmp_path, fault):
    assert FAULTS[fault](tmp_path / "run", runs)["problems"] == []


@pytest.mark.parametrize("fault", ["undecodable", "truncated_shard"])
def test_bad_data_are_named_and_skipped_only_where_it_is_wanted(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert getattr(bad_sources, fault)(tmp_path / "run", None)["problems"] == []


def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_found(runs, tmp_path):
    """Three of each file, and a hundred of the seal, which has no seal itself."""
    shutil.copytree(runs.killed, tmp_path / "run")
    checkpoint, chance = tmp_path / "run" / "checkpoint-15", random.Random(0)  # noqa: S311
    names = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert {"optimizer.pt", "rng_state.pth", "trainer_state.json", "unimodal/model.safetensors"} < names
    for name in sorted(names):
        file = checkpoint / name
        whole = file.read_bytes()
        for _ in range(100 if name == MANIFEST else 3):
            content = bytearray(whole)
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            file.write_bytes(content)
            damage = find_damage(checkpoint)
            assert damage is not None, name
            assert name in damage or name == MANIFEST
        assert whole_checkpoint(True, tmp_path / "run")[0] == str(tmp_path / "run" / "checkpoint-14")
        file.write_bytes(whole)
    assert find_damage(checkpoint) is None


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_in_a_folder_is_not_followed(tmp_path, kind):
    secret, folder = tmp_path / "secret", tmp_path / "folder"
    secret.mkdir()
    (secret / "secret.json").write_text("{}")
    folder.mkdir()
    (folder / "link.json").symlink_to(secret / "secret.json" if kind == "file" else secret)
    with pytest.raises(ValueError, match=r"link\.json is a link, which is not followed"):
        link_folder(folder, tmp_path / "copy")
    assert "link.json is a link" in find_damage(folder)


def test_what_torch_cuts_off_without_a_word_is_found(tmp_path):
    state = {"a": torch.zeros(5000), "b": [torch.zeros(3000) for _ in range(5)], "step": 3}
    file = tmp_path / "optimizer.pt"
    torch.save(state, file)
    size = file.stat().st_size
    for missing in (1, 20, 100, 300, 5000):
        file.unlink()
        with full_disk.small_files(size - missing) as act, contextlib.suppress(RuntimeError):
            act()
            torch.save(state, file)
        assert file.stat().st_size == size - missing
        with pytest.raises(OSError, match=r"the disk took only a part of it: .*optimizer\.pt"):
            check_written(tmp_path)
    torch.save(state, file)
    check_written(tmp_path)
