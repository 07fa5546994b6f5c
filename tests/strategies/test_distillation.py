"""Unimodal-teacher distillation: the distance to the teachers on numbers worked out by hand, and one run."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
from fusion_fixtures import TwoViews, two_views
from safetensors.torch import load_file

from ecsfusion import FusionTrainer, FusionTrainingArguments
from ecsfusion.modeling import FusionOutput
from ecsfusion.strategies import make_strategy
from ecsfusion.strategies.distillation import UnimodalDistillation

pytestmark = pytest.mark.usefixtures("quick_probes")


class Model:
    """Its teachers are functions of the inputs."""

    @staticmethod
    def embed(name, inputs, encoder):
        return encoder(inputs)


def test_the_loss_is_the_mean_squared_distance_to_the_teachers():
    strategy = make_strategy("unimodal-distillation", ["left", "right"], weight=2.0)
    strategy.teachers = {"left": lambda x: 2 * x, "right": lambda x: x - 1}
    strategy._autocast = contextlib.nullcontext
    inputs = {
        "left": torch.tensor([[0.0, 2.0], [1.0, 1.0]]),
        "right": torch.tensor([[4.0], [math.nan]]),
    }
    assert strategy.prepare_inputs(Model, inputs) is inputs
    left = torch.tensor([[1.0, 2.0], [2.0, 2.0]], requires_grad=True)
    right = torch.tensor([[5.0], [math.nan]], requires_grad=True)
    outputs = FusionOutput(
        loss=torch.tensor(1.0),
        embeddings={"left": left, "right": right},
        present={"left": torch.tensor([True, True]), "right": torch.tensor([True, False])},
    )
    loss = strategy.loss(Model, outputs, torch.tensor([0, 1]))
    # Left: teachers (0, 4) and (2, 2), squares 1 4 0 0, mean 1.25. Right: teacher 3, square 4, in half of the rows.
    assert loss.item() == pytest.approx(1.0 + 2.0 * (1.25 + 4.0 / 2))
    loss.backward()
    # Weight * 2 (h - teacher) / 2 rows.
    assert right.grad[0, 0] == pytest.approx(2.0 * 2.0 * 2.0 / 2)
    assert left.grad.isfinite().all()


class Watched(UnimodalDistillation):
    """Remembers the weights that joint training starts from."""

    name = "watched"
    start: dict = {}  # noqa: RUF012

    def begin_stage(self, trainer):
        super().begin_stage(trainer)
        if trainer.model.stage == "joint":
            Watched.start = copy.deepcopy(trainer.model.state_dict())


def test_a_run_starts_anew_with_teachers_that_are_no_part_of_it(tmp_path):
    model = two_views()
    initial = copy.deepcopy(model.state_dict())
    trainer = FusionTrainer(
        model=model,
        args=FusionTrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=4,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            strategy_options={"share": 0.5, "weight": 1.0},
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
            keep_best_heads=False,
            use_cpu=True,
        ),
        train_dataset=TwoViews(96, 0),
        eval_dataset=TwoViews(60, 1),
        strategy=Watched,
    )
    trainer.train()
    # Half of 24 steps.
    assert trainer.record.stage_start == 12
    for key, value in Watched.start.items():
        torch.testing.assert_close(value, initial[key], msg=key)
    kept = load_file(tmp_path / "unimodal" / "model.safetensors")
    for name, teacher in trainer.strategy.teachers.items():
        assert not teacher.training
        for key, parameter in teacher.named_parameters():
            assert not parameter.requires_grad
            assert torch.equal(parameter, kept[f"encoders.{name}.{key}"])
            assert not torch.equal(parameter, initial[f"encoders.{name}.{key}"]) or "position" in key
    assert set(model.state_dict()) == set(initial)
    assert trainer.strategy.state_dict() == {}


def test_options_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match=r"share is 1\.0; it is a part of the budget"):
        make_strategy("unimodal-distillation", ["left", "right"], share=1.0)
    with pytest.raises(ValueError, match="weight is -1; it must not be negative"):
        make_strategy("unimodal-distillation", ["left", "right"], weight=-1)
