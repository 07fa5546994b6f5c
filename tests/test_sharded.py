"""Two processes under FSDP version 2: what one process trains, resumed exactly, and refusals by a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import sharded_ranks
import torch
from ranks import ends, start_ranks
from safetensors.torch import load_file
from torch import nn

from ecsfusion import FusionForClassification
from ecsfusion.controller.probe import Probe
from ecsfusion.training.checkpoints import LAYOUTS, check_layout
from ecsfusion.training.sharding import check_plugin, read_weights

pytestmark = pytest.mark.usefixtures("quick_probes")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, quick_probes) -> tuple[Path, dict]:
    """The folder of the same run by one process, and what it saw."""
    folder = tmp_path_factory.mktemp("alone")
    run = sharded_ranks.trainer(folder, keep_best_heads=False)
    run.train()
    run.save_model()
    probes = [probe.to_json() for probe in run.record.history]
    return folder, {"history": probes, "norms": sharded_ranks.norms(run)}


@pytest.fixture(scope="module")
def two(tmp_path_factory, quick_probes) -> tuple[Path, dict]:
    """The folder of the runs of two processes, and what they saw."""
    folder = tmp_path_factory.mktemp("two")
    assert ends(start_ranks(lambda: sharded_ranks.main(folder), 2)) == [0, 0]
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    return folder, first


def test_two_sharding_processes_train_as_one(two, alone):
    folder, seen = two
    assert seen["sharded"] == ["FSDPFusionForClassification", "FSDPViTEmbeddings", "FSDPViTLayer"]
    for probe, reference in zip(seen["whole"]["history"], alone[1]["history"], strict=True):
        assert probe["decision"] == reference["decision"]
        assert probe["reading"]["training"] == reference["reading"]["training"]
    # Each modality is paused, one starts anew, the peak is restored, and stage 2 follows.
    for step in (1, 5, 6):
        weights, reference = (
            load_file(place / f"checkpoint-{step}" / "model.safetensors")
            for place in (folder / "whole", alone[0])
        )
        assert weights.keys() == reference.keys()
        for name, value in reference.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4, msg=f"{step}, {name}")


def test_gradients_are_measured_and_clipped_by_modality(two, alone):
    norms, reference = two[1]["whole"]["norms"], alone[1]["norms"]
    assert [list(step) for step in reference[:3]] == [
        ["grad_norm", "grad_norm_right"],
        ["grad_norm", "grad_norm_left", "grad_norm_right"],
        ["grad_norm", "grad_norm_left"],
    ]
    assert norms == [pytest.approx(step, rel=1e-3) for step in reference]


def test_no_bit_depends_on_where_a_run_was_killed_and_how_it_saves(two):
    folder, seen = two
    one, other = (load_file(folder / name / "model.safetensors") for name in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(other[key], value) for key, value in one.items())
    histories = [[Probe.from_json(probe) for probe in seen[name]["history"]] for name in ("whole", "parts")]
    # The times that the probes took are not compared.
    assert histories[0] == histories[1]
    assert seen["whole"]["norms"] == seen["parts"]["norms"]


@pytest.mark.parametrize("name", ["whole", "parts"])
def test_the_saved_models_are_read_without_a_process_group(two, name):
    folder = two[0] / name
    model, peak = (FusionForClassification.from_pretrained(place) for place in (folder, folder / "unimodal"))
    assert peak.config.step == 3
    assert model.config.readout is not None
    assert model.config.architectures == ["FusionForClassification"]


def test_what_cannot_be_done_is_refused_by_all_processes(two):
    refused = two[1]["refused"]
    assert refused["modalities"].startswith("1 of 2 processes have no row with 'right'")
    assert refused["neither"] == ""
    assert "nothing can be evaluated or predicted before" in refused["evaluation"]
    assert "an earlier train() has sharded the model" in refused["again"]
    assert refused["saved"].startswith("save_pretrained needs whole weights")
    assert refused["exported"].startswith("export needs whole weights")
    assert "the state of FSDP with SHARDED_STATE_DICT, but this run reads" in refused["layout"]
    assert "the optimizer Adagrad starts with a state of whole weights" in refused["adagrad"]
    assert "'SIZE_BASED_WRAP', which would shard the container" in refused["size"]


def test_every_fused_head_starts_from_sharded_heads(two):
    assert len(sharded_ranks.STARTED) > 3
    assert two[1]["starts"] == dict.fromkeys(sharded_ranks.STARTED, True)


def test_buffers_reach_only_the_first_process_where_it_alone_loads_the_weights():
    plugin = SimpleNamespace(cpu_ram_efficient_loading=True, auto_wrap_policy=None)
    check_plugin(plugin, nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"has buffers, such as 'running_mean'.*set it to False"):
        check_plugin(plugin, nn.BatchNorm1d(2))


@pytest.mark.parametrize("saved", [None, *LAYOUTS])
@pytest.mark.parametrize("layout", [None, *LAYOUTS])
def test_a_checkpoint_is_read_as_it_was_written(tmp_path, saved, layout):
    if saved is not None:
        (tmp_path / LAYOUTS[saved]).touch()
    if saved == layout:
        check_layout(tmp_path, layout)
        return
    with pytest.raises(
        ValueError, match=f"holds .*{saved or 'without FSDP'}.* reads .*{layout or 'without FSDP'}"
    ):
        check_layout(tmp_path, layout)


def test_a_weight_that_was_not_saved_is_named(tmp_path):
    with pytest.raises(ValueError, match="lacks the weight 'bias'"):
        read_weights(tmp_path, nn.ParameterDict({"bias": torch.zeros(1)}))
