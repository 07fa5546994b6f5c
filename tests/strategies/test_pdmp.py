"""PDMP: a rehearsal that leaves nothing behind but a ranking, then scaled gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from readings import make_reading
from strategy_runs import CLASSES, STEPS, VIEWS, Views, trained, trainer, views, weights
from transformers import TrainerCallback

from ecsfusion import FusionForClassification
from ecsfusion.controller.pretrain_then_reset import PretrainThenReset
from ecsfusion.controller.reading import Reading
from ecsfusion.strategies.pdmp import PDMP

pytestmark = pytest.mark.usefixtures("quick_probes")


def reading(step: int, of: int = 100) -> Reading:
    return make_reading(
        step, 1.0, step / of, modalities=("left", "right"), unique=0.5, accuracy=0.5, floor=0.0
    )


def test_the_rule_ends_the_rehearsal_and_keeps_and_resets_everything():
    rule = PretrainThenReset(("left", "right"), max_unimodal_share=0.3)
    early = rule.decide(reading(20))
    assert (early.ends_stage, early.peak, early.reset, early.training) == (
        False,
        False,
        (),
        ("left", "right"),
    )
    end = rule.decide(reading(30))
    assert (end.ends_stage, end.peak, end.restore) == (True, True, None)
    assert end.reset == end.training == ("left", "right")
    assert rule.peak_step == 30


def test_with_equal_factors_it_is_joint_training_from_the_initial_weights(tmp_path):
    # Four of eight steps are an epoch, and rows come in their order: the last four are those of a joint run.
    options = {"train_sampling_strategy": "sequential", "model": {"norm": True}}
    equal = {"share": 0.5, "gamma_p": 1.0, "gamma_r": 1.0}
    pdmp = trained(tmp_path / "pdmp", strategy="pdmp", strategy_options=equal, **options)
    joint = trained(tmp_path / "joint", strategy="joint", max_steps=4, **options)
    assert [entry.stage for entry in pdmp.record.history] == ["unimodal"] * 2 + ["joint"] * 2
    found, expected = weights(pdmp), weights(joint)
    assert all(torch.equal(found[name], value) for name, value in expected.items()), [
        name for name, value in expected.items() if not torch.equal(found[name], value)
    ]


def test_the_peak_is_kept_and_the_card_says_where_stage_two_starts(tmp_path):
    initial = {name: value.clone() for name, value in views().state_dict().items()}
    # 2 of 8 steps.
    run = trained(tmp_path, strategy="pdmp")
    assert run.record.peak_step == 2
    own = copy.deepcopy(dict(run.model.encoders.items()))
    teacher = FusionForClassification.from_pretrained(tmp_path / "unimodal", encoders=own)
    assert teacher.config.step == 2
    moved = [name for name, value in teacher.state_dict().items() if not torch.equal(value, initial[name])]
    assert "encoders.left.first.weight" in moved
    assert "heads.right.weight" in moved
    assert [entry.restored for entry in run.record.history] == [0, None, None, None]
    run.create_model_card(dataset="views")
    assert "stage 2 starts from the initial weights" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("best", ["left", "noise"])
def test_the_best_modality_learns_at_gamma_p_and_the_others_at_gamma_r(best):
    model = views(VIEWS, stage="joint")
    strategy = PDMP(VIEWS, gamma_p=3.0, gamma_r=0.25)
    strategy.state["ranking"] = [best, *(name for name in VIEWS if name != best)]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    strategy.adjust_gradients(model)
    for name, parameter in model.named_parameters():
        expected = 2.0
        if name.startswith("encoders."):
            expected = 6.0 if name.startswith(f"encoders.{best}.") else 0.5
        assert bool((parameter.grad == expected).all()), name


class Gradients(TrainerCallback):
    """The encoders' gradients at each step, whole."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


class Ranked(TrainerCallback):
    """When stage 1 is over, answers of which the left view's are the best and those of noise the worst.

    Each head is given a bias that decides its answer. Stage 2 starts from the initial weights, so nothing else changes.
    """

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == STEPS // 2:
            counts = Views(40, 1).labels.bincount(minlength=CLASSES)
            assert len(set(counts.tolist())) == CLASSES, "two views would answer equally well"
            with torch.no_grad():
                for name, label in zip(VIEWS, counts.argsort(descending=True), strict=True):
                    model.heads[name].bias.copy_(1000.0 * torch.eye(CLASSES)[label])


def test_a_run_ranks_by_validation_and_scales_in_stage_two_only(tmp_path):
    seen = []
    for gamma_r in (1.0, 0.5):
        gradients = Gradients()
        run = trainer(
            tmp_path / str(gamma_r),
            VIEWS,
            strategy="pdmp",
            strategy_options={"share": 0.5, "gamma_r": gamma_r},
            max_grad_norm=0.0,
            more={"callbacks": [gradients, Ranked()]},
        )
        run.train()
        seen.append(gradients.seen)
        # At the end of stage 1.
        accuracy = run.record.history[1].reading.accuracy
        ranking = run.strategy.state["ranking"]
        assert ranking == list(VIEWS)
        assert accuracy["left"] > accuracy["right"] > accuracy["noise"]
    plain, scaled = seen
    for step in range(4):
        assert all(torch.equal(plain[step][name], value) for name, value in scaled[step].items())
    for name, value in scaled[4].items():
        # The first one of stage 2, from the same weights.
        others = tuple(f"encoders.{modality}." for modality in ranking[1:])
        factor = 0.5 if name.startswith(others) else 1.0
        torch.testing.assert_close(value, factor * plain[4][name])


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_run_goes_on_where_it_was(tmp_path, step):
    options = {
        "strategy": "pdmp",
        "strategy_options": {"share": 0.5},
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = trained(tmp_path, **options)
    expected = weights(whole)
    again = trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert again.strategy.state == whole.strategy.state
    assert again.record.history == whole.record.history
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.0}, "share is 1"),
        ({"gamma_p": 0.5, "gamma_r": 0.6}, "gamma_r is 0.6"),
        ({"gamma_r": -1.0}, "gamma_r is -1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        PDMP(VIEWS, **options)
