"""Every field of `TrainingArguments` is decided on in `docs/arguments.py`, and what is said there is tried."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import ParallelismConfig
from fusion_fixtures import TwoViews, two_views
from packaging.version import Version
from test_trainer import Scripted, arguments
from transformers import TrainerCallback, TrainingArguments

from ecsfusion import FusionTrainer

TESTS = Path(__file__).resolve().parent
sys.path.append(str(TESTS.parent / "docs"))

from arguments import (  # noqa: E402  (docs/ is no package)
    ARGUMENTS,
    MADE_FOR,
    NO_EFFECT,
    REACHED,
    REFUSED,
    SAME,
    SENTENCE,
    WORKS,
)

FIELDS = {field.name for field in fields(TrainingArguments)}
SCRIPT = ({"training": ("right",)}, {"ends_stage": True}, {})


def test_somebody_has_decided_on_every_field():
    """A new field fails here: try what it does in two stages, and add a line to docs/arguments.py."""
    assert FIELDS - set(ARGUMENTS) == set()
    if Version(transformers.__version__) >= Version(MADE_FOR):
        assert set(ARGUMENTS) - FIELDS == set(), "fields that there are no more"
    for name, argument in ARGUMENTS.items():
        assert argument.verdict in (WORKS, REFUSED, NO_EFFECT), name
        assert argument.words, name


def test_every_test_that_is_named_exists():
    for name, argument in ARGUMENTS.items():
        if argument.shown_by:
            file, test = argument.shown_by.split("::")
            assert f"def {test}(" in (TESTS / file).read_text(encoding="utf-8"), name
        else:
            assert argument.verdict != REFUSED, f"{name}: a refusal is shown by a test"


class Watch(TrainerCallback):
    """The settings of the optimizer at every step, and the labels of the rows."""

    def __init__(self) -> None:
        self.groups: list[dict] = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        group = optimizer.param_groups[0]
        self.groups.append({name: value for name, value in group.items() if name != "params"})


def train(folder: Path, *callbacks: TrainerCallback, **options: object) -> FusionTrainer:
    metrics = options.pop("compute_metrics", None)
    run = FusionTrainer(
        model=two_views(),
        args=arguments(folder, **{"num_train_epochs": 3, "logging_strategy": "no", **options}),
        train_dataset=TwoViews(40, seed=0),
        eval_dataset=TwoViews(40, seed=1),
        compute_metrics=metrics,
        strategy=Scripted(list(SCRIPT)),
        callbacks=list(callbacks),
    )
    run.train()
    assert [probe.stage for probe in run.record.history] == ["unimodal", "unimodal", "joint"]
    return run


# Fields that watch, save or name, and those without effect, each with another value than its default.
WATCHING: dict[str, object] = {
    "optim_target_modules": "all-linear",
    "average_tokens_across_devices": False,
    "tf32": False,
    "liger_kernel_config": {"rope": False},
    "use_cache": True,
    "torch_empty_cache_steps": 1,
    "logging_first_step": True,
    "log_on_each_node": False,
    "logging_nan_inf_filter": False,
    "log_level": "warning",
    "log_level_replica": "error",
    "run_name": "a run",
    "project": "a project",
    "trackio_space_id": "a/space",
    "trackio_bucket_id": "a/bucket",
    "trackio_static_space_id": "a/static",
    "eval_use_gather_object": True,
    "eval_accumulation_steps": 1,
    "include_for_metrics": ["inputs", "loss"],
    "save_strategy": "best",
    "save_on_each_node": True,
    "enable_jit_checkpoint": True,
    "ignore_data_skip": True,
    "resume_from_checkpoint": "nowhere",
    "hub_always_push": True,
    "hub_revision": "a-branch",
    "accelerator_config": {"even_batches": False},
    "dataloader_num_workers": 1,
    "dataloader_pin_memory": False,
    "dataloader_prefetch_factor": 4,
    "dataloader_multiprocessing_context": "fork",
    "ddp_bucket_cap_mb": 10,
    "ddp_broadcast_buffers": False,
    "ddp_timeout": 60,
    "debug": "underflow_overflow",
    "skip_memory_metrics": False,
    "do_train": True,
    "do_eval": False,
    "do_predict": True,
    "local_rank": 0,
}


class Seen:
    """Metrics of the user that look at what they are given."""

    inputs = losses = None

    def __call__(self, prediction) -> dict[str, float]:
        self.inputs, self.losses = prediction.inputs, prediction.losses
        return {"mine": 1.0}


def test_what_only_watches_or_names_changes_no_weight(tmp_path, capsys):
    plain = train(tmp_path / "plain")
    seen = Seen()
    options = {name: value for name, value in WATCHING.items() if name in FIELDS}
    watched = train(tmp_path / "watched", compute_metrics=seen, metric_for_best_model="accuracy", **options)
    assert set(WATCHING) == {name for name, argument in ARGUMENTS.items() if argument.shown_by == SAME}
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, watched.model.state_dict()[name]), name
    decided = [[list(probe.training) for probe in run.record.history] for run in (plain, watched)]
    assert decided[0] == decided[1] == [["left", "right"], ["right"], ["left", "right"]]
    # And they do what they are for.
    assert [entry["step"] for entry in watched.state.log_history if "grad_norm" in entry] == [1]
    assert seen.losses is not None
    assert seen.inputs is not None
    assert [folder.name for folder in (tmp_path / "watched").glob("checkpoint-*")] == ["checkpoint-9"]
    assert watched.get_train_dataloader().num_workers == 1
    assert any("init_mem" in key for entry in watched.state.log_history for key in entry)


def test_options_of_the_optimizer_and_the_data_reach_both_stages(tmp_path):
    options = {
        "optim": "adamw_torch",
        "adam_beta1": 0.8,
        "adam_beta2": 0.9,
        "adam_epsilon": 1e-6,
        "data_seed": 5,
        "dataloader_drop_last": True,
        "per_device_eval_batch_size": 20,
    }
    watch = Watch()
    run = train(tmp_path, watch, **options)
    reached = {*options, "optim_args"} - {"optim", "per_device_eval_batch_size"}
    assert reached == {name for name, argument in ARGUMENTS.items() if argument.shown_by == REACHED}
    # Of 40 rows two whole batches of 16, in each of three epochs.
    assert len(watch.groups) == run.state.global_step == 6
    for group in watch.groups:
        assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6)
    args = arguments(tmp_path, optim="sgd", optim_args="momentum=0.5")
    optimizer = FusionTrainer(model=two_views(), args=args, eval_dataset=TwoViews(8, 1)).create_optimizer()
    assert [group["momentum"] for group in optimizer.param_groups] == [0.5] * len(optimizer.param_groups)
    orders = []
    for seed in (5, 5, 6):
        run.args.data_seed = seed
        run.create_accelerator_and_postprocess()
        orders.append([batch["labels"].tolist() for batch in run.get_train_dataloader()])
    assert orders[0] == orders[1] != orders[2]


# A value that is refused, and a part of the sentence.
SENTENCES: dict[str, tuple[object, str]] = {
    "include_num_input_tokens_seen": ("all", "have no common count of tokens; leave it 'no'"),
    "eval_strategy": ("no", "the controller needs evaluations in stage 1 .* use 'epoch' or 'steps'"),
    "prediction_loss_only": (True, "a probe reads the embeddings of the whole evaluation set"),
    "eval_do_concat_batches": (False, "a probe reads the embeddings of the whole evaluation set"),
    "batch_eval_metrics": (True, "a probe reads the embeddings of the whole evaluation set"),
    "restore_callback_states_from_checkpoint": (
        False,
        "lose the controller's state on resume; leave it True",
    ),
    "hub_strategy": ("every_save", "both stages are published together at the end: use 'end'"),
    "parallelism_config": (ParallelismConfig(), "no plan by which its weights could be split; leave it out"),
    "remove_unused_columns": (True, "every column would be removed; leave it False"),
    "label_names": (["target"], "the model's labels are called 'labels'"),
    "train_sampling_strategy": ("batch_rebalance", "use 'group_by_length', which measures every modality"),
    "ddp_find_unused_parameters": (False, "take no part in some steps; leave ddp_find_unused_parameters out"),
    "ddp_static_graph": (True, "take no part in some steps; leave ddp_static_graph out"),
}


def test_what_is_refused_is_answered_by_a_sentence(tmp_path):
    assert set(SENTENCES) == {name for name, argument in ARGUMENTS.items() if argument.shown_by == SENTENCE}
    model, rows = two_views(), TwoViews(8, seed=1)
    for name, (value, message) in SENTENCES.items():
        if name not in FIELDS:
            continue
        with pytest.raises(ValueError, match=message):
            FusionTrainer(model=model, args=arguments(tmp_path, **{name: value}), eval_dataset=rows)
    # Where every part takes part in every step, DistributedDataParallel may know.
    args = arguments(tmp_path, strategy="joint-auxiliary", ddp_find_unused_parameters=False)
    FusionTrainer(model=model, args=args, eval_dataset=rows)


def test_stage_one_ends_although_evaluations_are_put_off(tmp_path):
    run = FusionTrainer(
        model=two_views(),
        args=arguments(tmp_path, num_train_epochs=4, eval_delay=3),
        train_dataset=TwoViews(16, seed=0),
        eval_dataset=TwoViews(40, seed=1),
    )
    run.train()
    assert [(probe.step, probe.stage) for probe in run.record.history][:2] == [(2, "unimodal"), (3, "joint")]


@pytest.mark.parametrize(
    ("metric", "given", "found"),
    [
        ("accuracy", None, True),
        ("loss", None, False),
        ("calibration_error_calibrated", None, False),
        ("validation_calibration_error", None, False),
        ("calibration_error", True, True),
    ],
)
def test_less_calibration_error_is_better(tmp_path, metric, given, found):
    args = arguments(tmp_path, metric_for_best_model=metric, greater_is_better=given)
    assert args.greater_is_better is found
