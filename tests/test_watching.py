"""Real runs that fail in one way each, and say so once; and healthy ones that say nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fusion_fixtures import NUM_CLASSES, StopAfterSaving, TwoViews
from safetensors.torch import load_file
from transformers import TrainerCallback

from ecsfusion import FusionForClassification, FusionTrainer, FusionTrainingArguments
from ecsfusion.controller.peak_synergy import PeakSynergy
from ecsfusion.diagnostics.run import RunDiagnostics

pytestmark = pytest.mark.usefixtures("quick_probes")

ROWS, VALIDATION = 160, 150


class Perceptron(torch.nn.Module):
    """An encoder that learns in a few steps, by heart if it must."""

    embedding_dim = 64

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.linear, self.dropout = torch.nn.Linear(16, self.embedding_dim), torch.nn.Dropout(dropout)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.dropout(torch.relu(self.linear(pixel_values.flatten(1))))


class Views(TwoViews):
    """Two views, the right one made by a function of the data set, the index and the left view."""

    def __init__(
        self, num_rows: int, seed: int, noise: tuple[float, float], right: Callable | None = None
    ) -> None:
        super().__init__(num_rows, seed, noise)
        self.right = right

    def __getitem__(self, index: int) -> dict[str, object]:
        row = super().__getitem__(index)
        if self.right is not None:
            row["right"] = {"pixel_values": self.right(self, index, row["left"]["pixel_values"])}
        return row


def dead(views: Views, index: int, left: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(left)


def copied(views: Views, index: int, left: torch.Tensor) -> torch.Tensor:
    return left.clone()


def of_another_row(views: Views, index: int, left: torch.Tensor) -> torch.Tensor:
    return views.views[1][(index + 1) % len(views)]


def trainer(
    folder: Path,
    *,
    noise: tuple[float, float] = (0.5, 0.5),
    right: Callable | None = None,
    rows: int = ROWS,
    validation: int = VALIDATION,
    further: dict[str, Views] | None = None,
    strategy: type | None = None,
    callbacks: list | None = None,
    dropout: float = 0.0,
    **options: object,
) -> FusionTrainer:
    torch.manual_seed(0)
    encoders = {name: Perceptron(dropout) for name in ("left", "right")}
    probed = Views(validation, 1, noise, right)
    return FusionTrainer(
        model=FusionForClassification.from_modality_pretrained(encoders, num_labels=NUM_CLASSES),
        args=FusionTrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=20,
            per_device_eval_batch_size=150,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **{"num_train_epochs": 8, "learning_rate": 5e-3, "save_strategy": "no", **options},
        ),
        train_dataset=Views(rows, 0, noise, right),
        eval_dataset={"probed": probed, **further} if further else probed,
        strategy=strategy,
        callbacks=callbacks,
    )


def said(run: FusionTrainer) -> list[tuple[str, str]]:
    return [(found["diagnostic"], found["about"]) for found in run.record.warnings]


def test_a_healthy_run_warns_of_nothing(tmp_path, caplog, capsys):
    alike = Views(VALIDATION, 2, (0.5, 0.8))
    run = trainer(tmp_path, noise=(0.5, 0.8), num_train_epochs=12, further={"alike": alike})
    run.train()
    run.evaluate(Views(VALIDATION, 3, (0.5, 0.8)), metric_key_prefix="test")
    assert run.record.stage == "joint"
    assert said(run) == []
    assert "Step" not in caplog.text
    assert "warns of" not in capsys.readouterr().out
    run.create_model_card()
    assert "warns of" not in (tmp_path / "README.md").read_text()


def test_a_dead_modality_is_said_once_printed_at_the_end_and_in_the_card(tmp_path, caplog, capsys):
    run = trainer(tmp_path, right=dead, num_train_epochs=12)
    run.train()
    assert said(run) == [("no information", "right")]
    sentence = run.record.warnings[0]["sentence"]
    assert "right says nothing about the label" in sentence
    assert caplog.text.count("right says nothing about the label") == 1
    assert (
        f"what this run warns of:\n    step {run.record.warnings[0]['step']}, no information: {sentence}"
        in (capsys.readouterr().out)
    )
    run.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "Right says nothing about the label" in card.split("## What this run warns of")[1].split("## ")[0]


class Failure(TrainerCallback):
    """The right sensor dies after a step."""

    def __init__(self, step: int) -> None:
        self.step, self.is_dead = step, False

    def on_step_end(self, args, state, control, **kwargs):
        self.is_dead = state.global_step > self.step


def test_a_modality_that_dies_while_it_trains(tmp_path):
    failure = Failure(step=16)
    run = trainer(
        tmp_path,
        right=lambda views, index, left: views.views[1][index] * (not failure.is_dead),
        callbacks=[failure],
        num_train_epochs=6,
    )
    run.train()
    lost = next(found for found in run.record.warnings if found["diagnostic"] == "information lost")
    assert (lost["about"], lost["step"]) == ("right", 32)
    assert "at step 16" in lost["sentence"]
    assert "nothing since step 24" in lost["sentence"]


def test_a_copy_and_a_stage_one_that_is_too_long(tmp_path):
    run = trainer(tmp_path, right=copied, num_train_epochs=16, unimodal_epochs=14)
    run.train()
    found = {warning["diagnostic"]: warning["sentence"] for warning in run.record.warnings}
    assert set(found) == {"copy", "late decision"}
    assert "share" in found["copy"]
    assert f"stage 1 ended at step {run.record.stage_start}" in found["late decision"]


def test_a_shortcut_shows_on_whatever_other_set_it_does_not_hold_on(tmp_path):
    noise = (1.5, 0.3)
    run = trainer(tmp_path, noise=noise, further={"shifted": Views(VALIDATION, 2, noise, of_another_row)})
    run.train()
    assert ("shortcut", "right, shifted") in said(run)
    assert ("shortcut", "left, shifted") not in said(run)
    run.evaluate(Views(VALIDATION, 4, noise, of_another_row), metric_key_prefix="later")
    assert said(run)[-1] == ("shortcut", "right, later")


class WarmingUp(TrainerCallback):
    """The right sensor works in one of four rows at the first two readings, in two at the third, then in all."""

    def __init__(self) -> None:
        self.works_in = 1

    def on_step_end(self, args, state, control, **kwargs):
        self.works_in = (1, 1, 1, 2, 4)[min(state.global_step // 8, 4)]


def test_a_stage_one_that_ends_while_a_modality_learns(tmp_path):
    warming = WarmingUp()
    run = trainer(
        tmp_path,
        right=lambda views, index, left: views.views[1][index] * (index % 4 < warming.works_in),
        callbacks=[warming],
        unimodal_epochs=4,
        num_train_epochs=5,
        unimodal_lr_scheduler_type="constant",
        # No lead makes the left view wait, and no dependence would end stage 1.
        strategy_options={"margin": 9.0, "dependence": 9.0},
    )
    run.train()
    assert ("short stage", "right") in said(run)


def test_few_rows(tmp_path):
    run = trainer(tmp_path, validation=45, num_train_epochs=4)
    run.train()
    assert said(run) == [("few rows", ""), ("only scouting", "")]


def test_few_rows_for_what_the_rule_does_not_ask_are_not_said(tmp_path):
    run = trainer(tmp_path, validation=45, num_train_epochs=2)
    run.train()
    # Stage 1 ended before the reading at which the rule asks.
    assert said(run) == [("only scouting", "")]


def test_rows_that_were_learnt_by_heart(tmp_path):
    run = trainer(tmp_path, noise=(0.5, 4.0), rows=100, learning_rate=3e-2, num_train_epochs=6)
    run.train()
    assert ("memorization", "right") in said(run)
    assert ("memorization", "left") not in said(run)


class Lazy(PeakSynergy):
    """Pauses nobody, whatever its threshold says."""

    def _pause(self, reading) -> str:
        return ""


def test_a_leader_that_its_rule_does_not_pause(tmp_path):
    run = trainer(tmp_path, noise=(0.3, 3.0), strategy=Lazy, num_train_epochs=8)
    run.train()
    assert ("late decision", "pause of left") in said(run)
    prompt = trainer(tmp_path / "prompt", noise=(0.3, 3.0), strategy=PeakSynergy, num_train_epochs=8)
    prompt.train()
    assert any("left" not in list(entry.training) for entry in prompt.record.history)
    assert ("late decision", "pause of left") not in said(prompt)


def test_a_resumed_run_repeats_nothing(tmp_path, caplog):
    options = {"validation": 45, "num_train_epochs": 4, "save_strategy": "epoch"}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    assert said(whole) == [("few rows", ""), ("only scouting", "")]
    caplog.clear()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "killed", callbacks=[StopAfterSaving(16)], **options).train()
    resumed = trainer(tmp_path / "killed", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.record.warnings == whole.record.warnings
    assert caplog.text.count("few rows") == 1


def test_the_diagnostics_change_no_weight(tmp_path, monkeypatch):
    def weights(name: str) -> dict[str, torch.Tensor]:
        # With dropout, so that a random number more would show.
        run = trainer(tmp_path / name, dropout=0.3, num_train_epochs=4)
        run.train()
        run.save_model()
        return load_file(tmp_path / name / "model.safetensors")

    watched = weights("watched")
    monkeypatch.setattr(RunDiagnostics, "after_probe", lambda *_: None)
    unwatched = weights("unwatched")
    assert watched.keys() == unwatched.keys()
    assert all(torch.equal(value, unwatched[name]) for name, value in watched.items())
