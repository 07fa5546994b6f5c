"""The adaptive rule: on hand-made readings, whose decisions are worked out by hand, and inside a real training."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import killed_run
import pytest
import torch
from fusion_fixtures import StopAfterSaving
from safetensors.torch import load_file
from test_controller import TWO, reading, run
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import TrainerCallback

from ecsfusion import FusionForClassification, FusionTrainer, FusionTrainingArguments
from ecsfusion.controller import Decision, Reading, Rule, make_rule
from ecsfusion.controller.rule import RunContext
from ecsfusion.model.names import FUSED
from ecsfusion.training import best_heads as best_heads_module
from ecsfusion.training.best_heads import folder_of
from ecsfusion.training.checkpoints import replace_folder
from ecsfusion.training.stages import INITIAL_FOLDER

pytestmark = pytest.mark.usefixtures("quick_probes")

IMAGE, AUDIO = TWO
# Audio knows nearly all.
LEADS = {"unique": (0.2, 0.9), "accuracy": (0.5, 0.97)}


def seen(step: int, dependence: float = 0.0, **values: Any) -> Reading:
    """A reading of `test_controller`, whose floors are 0.05 bits, with a conditional dependence."""
    return reading(step, conditional_mutual_information=dependence, **values)


def adaptive(**options: Any) -> Rule:
    return make_rule("adaptive", TWO, **options)


def after_scouting(**options: Any) -> Rule:
    rule = adaptive(**options)
    run(rule, [seen(10), seen(20)])
    return rule


class TestScouting:
    def test_the_fused_head_trains_until_two_readings_are_in(self) -> None:
        rule = adaptive()
        assert rule.trains_fused_head
        first = rule.decide(seen(10))
        assert (rule.trains_fused_head, first.training, first.ends_stage) == (True, TWO, False)
        second = rule.decide(seen(20))
        assert (rule.trains_fused_head, second.training, second.ends_stage) == (False, TWO, False)
        assert second.reason == (
            "all train, each alone: given the label, the modalities depend on each other by 0.00 bits, "
            "not more than 0.15"
        )
        assert (first.peak, second.peak) == (False, False)

    def test_too_few_rows_to_tell_are_not_called_no_dependence(self) -> None:
        rule = adaptive()
        rule.decide(seen(10))
        assert rule.decide(seen(20, dependence=0.9, num_samples=63)).reason == (
            "all train, each alone: too few rows to see whether the modalities depend on each other given the label"
        )

    @pytest.mark.parametrize("number", [1, 3])
    def test_its_length_is_an_option(self, number: int) -> None:
        rule = adaptive(scouting_readings=number)
        fused = []
        for index in range(4):
            fused.append(rule.trains_fused_head)
            rule.decide(seen(10 * (index + 1)))
        assert fused == [index < number for index in range(4)]

    def test_without_it_all_train_alone_from_the_start(self) -> None:
        rule = adaptive(scouting_readings=0)
        assert not rule.trains_fused_head
        first = rule.decide(seen(10))
        assert (first.training, first.reset, first.peak) == (TWO, (), True)

    def test_the_untrained_start_does_not_count(self) -> None:
        rule = adaptive()
        run(rule, [seen(0, dependence=0.9), seen(10)])
        assert rule.trains_fused_head

    def test_it_is_over_when_the_share_is_used_up(self) -> None:
        rule = adaptive(max_unimodal_share=0.01)
        over = rule.decide(seen(10))
        assert (over.ends_stage, over.restore, over.peak) == (True, None, True)
        assert "1% of the budget is used" in over.reason


class TestDependence:
    @pytest.mark.parametrize("before", [0, 1, 2, 4])
    def test_in_any_reading_it_ends_stage_one_with_the_present_weights(self, before: int) -> None:
        rule = adaptive()
        # From the third reading on the accuracies are below the peak of the first two that train alone.
        run(rule, [seen(10 * (i + 1), accuracy=(0.9, 0.9)) for i in range(before)])
        over = rule.decide(seen(10 * (before + 1), dependence=0.16, accuracy=(0.3, 0.3)))
        assert (over.ends_stage, over.restore, over.peak, over.training) == (True, None, True, TWO)
        assert over.reason == (
            "stage 1 ends: given the label, the modalities depend on each other by 0.16 bits, more than 0.15: "
            "the fused head has to learn from them together; stage 2 starts from the present weights"
        )

    @pytest.mark.parametrize(
        ("dependence", "floor", "options"),
        [
            # Not above the threshold.
            (0.15, 0.05, {}),
            # Above the threshold, and noise.
            (0.29, 0.30, {}),
            (0.29, 0.05, {"dependence": 0.3}),
        ],
    )
    def test_a_little_or_noise_does_not(self, dependence: float, floor: float, options: dict) -> None:
        readings = [seen(10 * (i + 1), dependence=dependence, floor=floor) for i in range(4)]
        assert not any(d.ends_stage for d in run(adaptive(**options), readings))

    def test_that_is_no_number_is_named(self) -> None:
        with pytest.raises(ValueError, match="dependence is nan"):
            adaptive().decide(seen(10, dependence=math.nan))

    def test_a_stage_of_given_length_goes_on_with_the_fused_head(self) -> None:
        rule = adaptive(context=RunContext(ends_early=False))
        goes_on = run(rule, [seen(10 * (i + 1), dependence=0.5) for i in range(4)])
        assert not any(d.ends_stage for d in goes_on)
        assert rule.trains_fused_head
        assert goes_on[0].reason.startswith(
            "stage 1 goes on, for its length is given: otherwise it would end, given"
        )
        over = rule.decide(seen(500, dependence=0.5))
        assert (over.ends_stage, over.restore) == (True, None)


class TestDependenceByHeads:
    """Heads do not show it, so the rule says when readouts of the embeddings are to be fitted for it."""

    @staticmethod
    def read(step: int, dependence: float | None, **values: Any) -> Reading:
        by_heads = {"conditional_mutual_information": None, "num_clusters": ()}
        return reading(step, measured_dependence=dependence, **by_heads, **values)

    @pytest.mark.parametrize(("number", "asked"), [(2, 1), (1, 0), (3, 2), (0, 0)])
    def test_it_asks_at_the_end_of_scouting_alone(self, number: int, asked: int) -> None:
        rule = adaptive(scouting_readings=number)
        asks = []
        for index in range(6):
            asks.append(rule.asks_for_dependence)
            rule.decide(self.read(10 * (index + 1), 0.0 if asks[-1] else None))
        assert asks == [index == asked for index in range(6)]

    @pytest.mark.parametrize(
        ("bits", "options", "ends"),
        [
            (0.08, {}, True),
            (0.07, {}, False),
            (0.08, {"dependence": 0.1}, False),
            (0.04, {"floor": 0.09}, False),
        ],
    )
    def test_its_threshold_is_that_of_readouts(self, bits: float, options: dict, ends: bool) -> None:
        floor = options.get("floor", 0.01)
        rule = adaptive(**{key: value for key, value in options.items() if key != "floor"})
        rule.decide(self.read(10, None, floor=floor))
        assert rule.decide(self.read(20, bits, floor=floor)).ends_stage == ends

    def test_it_does_not_ask_while_a_modality_waits_or_without_a_stage_two(self) -> None:
        rule = adaptive()
        rule.decide(self.read(10, None, **LEADS))
        assert rule.state["waiting"] == AUDIO
        assert not rule.asks_for_dependence
        assert not adaptive(scouting_readings=1, context=RunContext(joint_follows=False)).asks_for_dependence


class TestNothingKnownAlone:
    NOTHING: ClassVar[dict[str, Any]] = {"unique": (0.05, 0.04), "redundancy": 0.05, "accuracy": (0.12, 0.11)}

    def test_ends_stage_one_after_scouting(self) -> None:
        first, second = run(adaptive(), [seen(10, **self.NOTHING), seen(20, **self.NOTHING)])
        assert not first.ends_stage
        assert (second.ends_stage, second.restore, second.peak) == (True, None, True)
        assert second.reason == (
            "stage 1 ends: no modality alone is above its noise floor (best accuracy 0.120): nothing shows "
            "that they learn alone; stage 2 starts from the present weights"
        )

    @pytest.mark.parametrize("known", [{"unique": (0.05, 0.06)}, {"redundancy": 0.06}])
    def test_one_that_knows_something_keeps_it_going(self, known: dict[str, Any]) -> None:
        something = {**self.NOTHING, **known}
        assert not run(adaptive(), [seen(10, **something), seen(20, **something)])[-1].ends_stage

    def test_later_it_is_a_plateau(self) -> None:
        assert not after_scouting().decide(seen(30, **self.NOTHING)).ends_stage


class TestWaiting:
    @pytest.mark.parametrize("before", [0, 1])
    def test_one_that_knows_all_at_once_is_put_back_and_waits(self, before: int) -> None:
        rule = adaptive()
        run(rule, [seen(10)] * before)
        decision = rule.decide(seen(20, **LEADS))
        assert (decision.training, decision.reset) == ((IMAGE,), (AUDIO,))
        assert not decision.ends_stage
        assert not rule.trains_fused_head
        assert rule.excluded_from_readout == (AUDIO,)
        assert decision.reason == (
            "audio waits for stage 2, from its initial weights: alone its accuracy is 0.970, which leaves nothing to "
            "learn the others from; its uniqueness 0.90 bits is 4.5 times image's, floor 0.05"
        )

    def test_it_waits_until_stage_two_whatever_the_dependence(self) -> None:
        rule = adaptive(plateau_patience=2)
        rule.decide(seen(10, **LEADS))
        rows = [(20, 0.3), (30, 0.5), (40, 0.5), (50, 0.4)]
        found = [
            rule.decide(seen(step, dependence=0.8, unique=(0.2, 0.9), accuracy=(accuracy, 0.1)))
            for step, accuracy in rows
        ]
        # Its own accuracy, of untrained weights, does not count: image alone makes peak and plateau.
        assert [d.training for d in found] == [(IMAGE,)] * 3 + [TWO]
        assert [d.peak for d in found] == [True, True, True, False]
        assert (found[-1].ends_stage, found[-1].restore) == (True, 40)
        assert found[0].reason.startswith("image trains and audio waits: ")
        assert rule.decide(seen(60, stage="joint")).training == TWO
        assert rule.excluded_from_readout == (AUDIO,)

    @pytest.mark.parametrize(
        ("values", "options"),
        [
            # It is ahead, and still errs.
            ({"unique": (0.2, 0.9), "accuracy": (0.5, 0.94)}, {}),
            # 3 times, not more.
            ({"unique": (0.2, 0.6), "accuracy": (0.5, 0.99)}, {}),
            # 0.14 bits ahead
            ({"unique": (0.0, 0.14), "accuracy": (0.9, 0.99), "floor": 0.01}, {}),
            # Noise
            ({"unique": (0.0, 0.9), "accuracy": (0.5, 0.99), "floor": 0.95}, {}),
            ({"unique": (0.2, 0.9), "accuracy": (0.5, 0.97)}, {"saturation": 0.98}),
            # Most rows are of one class.
            ({"unique": (0.0, 0.2), "accuracy": (0.96, 0.97), "chance": 0.96, "rows": 300}, {}),
        ],
    )
    def test_one_that_is_merely_ahead_goes_on(self, values: dict[str, Any], options: dict[str, Any]) -> None:
        rule = adaptive(**options)
        assert all(d.training == TWO for d in run(rule, [seen(10, **values), seen(20, **values)]))
        assert rule.excluded_from_readout == ()

    def test_one_that_comes_to_know_all_later_is_put_back_then(self) -> None:
        rule = after_scouting(plateau_patience=2)
        run(rule, [seen(30, accuracy=(0.6, 0.9)), seen(40, accuracy=(0.6, 0.94))])
        decision = rule.decide(seen(50, **LEADS))
        assert (decision.training, decision.reset) == ((IMAGE,), (AUDIO,))
        assert rule.excluded_from_readout == (AUDIO,)
        # Peak and plateau begin anew: the mean of both modalities says nothing of image alone.
        later = [rule.decide(seen(60 + 10 * i, accuracy=(a, 0.1))) for i, a in enumerate((0.55, 0.56, 0.5))]
        assert [d.peak for d in later] == [True, True, False]
        assert (later[-1].ends_stage, later[-1].restore) == (True, 70)

    @pytest.mark.parametrize(
        ("known_at", "options", "end"),
        [
            # 1 - 2 * 0.1 would leave too little for the fused head.
            (100, {}, 0.75),
            (150, {}, 0.7),
            (150, {"catch_up": 3.0}, 0.55),
            # It needs more than half: no change.
            (300, {}, 0.5),
            # Who asks for a share gets it.
            (150, {"max_unimodal_share": 0.5}, 0.5),
            (150, {"max_unimodal_share": 0.3}, 0.3),
        ],
    )
    def test_stage_one_is_longer_while_one_waits_that_needs_little_of_stage_two(
        self, known_at: int, options: dict[str, Any], end: float
    ) -> None:
        rule = adaptive(**options)
        assert rule.latest_end == options.get("max_unimodal_share", 0.5)
        rule.decide(seen(known_at, **LEADS))
        assert rule.latest_end == pytest.approx(end)
        last = round(1000 * end)
        if last > known_at + 10:
            assert not rule.decide(seen(last - 10, accuracy=(0.5, 0.1))).ends_stage
        over = rule.decide(seen(last, accuracy=(0.6, 0.1)))
        assert over.ends_stage
        assert f"{end:.0%} of the budget is used and stage 1 may use {end:.0%}" in over.reason

    def test_nobody_waits_for_a_stage_that_ends_here(self) -> None:
        rule = after_scouting()
        assert rule.decide(seen(490, accuracy=(0.5, 0.9))).peak
        over = rule.decide(seen(500, **LEADS))
        assert (over.ends_stage, over.reset, over.restore) == (True, (), None)
        assert rule.excluded_from_readout == ()

    def test_a_state_that_does_not_know_how_long_it_took_keeps_the_share(self) -> None:
        rule = adaptive()
        rule.decide(seen(150, **LEADS))
        older = rule.state_dict()
        # As saved before there was such a thing.
        del older["state"]["learnt_in"]
        rule = adaptive()
        rule.load_state_dict(older)
        assert (rule.excluded_from_readout, rule.latest_end) == ((AUDIO,), 0.5)

    def test_a_stage_of_given_length_is_not_made_longer(self) -> None:
        rule = adaptive(context=RunContext(ends_early=False))
        rule.decide(seen(150, **LEADS))
        assert rule.latest_end == 0.5

    def test_of_three_the_other_two_train(self) -> None:
        three = ("a", "b", "c")
        rule = make_rule("adaptive", three)
        values = {"unique": (0.9, 0.2, 0.1), "accuracy": (0.96, 0.5, 0.5), "modalities": three}
        decision = rule.decide(seen(10, **values))
        assert (decision.training, decision.reset) == (("b", "c"), ("a",))


class TestPlateau:
    def test_the_latest_weights_that_are_not_behind_start_stage_two(self) -> None:
        rule = after_scouting(plateau_patience=3)
        # Best 0.60 at 40; 0.595 ties with it at 50.
        accuracies = (0.50, 0.60, 0.595, 0.55, 0.55)
        found = [rule.decide(seen(30 + 10 * i, accuracy=(a, a))) for i, a in enumerate(accuracies)]
        assert [d.peak for d in found] == [True, True, True, False, False]
        assert [d.ends_stage for d in found] == [False] * 4 + [True]
        assert found[-1].restore == 50
        assert found[-1].reason == (
            "stage 1 ends: in 3 readings the mean accuracy of image and audio has not risen by 0.01 above 0.600 and "
            "is 0.550; stage 2 starts from the weights of step 50"
        )

    def test_the_readings_of_scouting_are_no_peak(self) -> None:
        rule = adaptive()
        run(
            rule,
            [seen(10, accuracy=(0.9, 0.9)), seen(20, accuracy=(0.9, 0.9)), seen(30, accuracy=(0.4, 0.4))],
        )
        assert rule.decide(seen(500, accuracy=(0.2, 0.2))).restore == 30

    def test_a_share_that_is_used_up_ends_it(self) -> None:
        for accuracy, restore in ((0.5, None), (0.2, 30)):
            rule = after_scouting()
            rule.decide(seen(30))
            over = rule.decide(seen(500, accuracy=(accuracy, accuracy)))
            assert (over.ends_stage, over.restore) == (True, restore)
            assert "50% of the budget is used and stage 1 may use 50%" in over.reason


class TestWithoutAStageTwo:
    def make(self, **options: Any) -> Rule:
        context = RunContext(unimodal_share=1.0, joint_follows=False)
        return adaptive(context=context, **options)

    def test_nothing_is_scouted_and_nobody_waits(self) -> None:
        rule = self.make()
        assert not rule.trains_fused_head
        found = run(rule, [seen(10 * (i + 1), dependence=0.9, **LEADS) for i in range(3)])
        assert all(d.training == TWO and not d.ends_stage and not d.reset for d in found)
        assert rule.excluded_from_readout == ()

    def test_it_ends_at_the_plateau(self) -> None:
        rule = self.make(plateau_patience=2)
        found = run(rule, [seen(10 * (i + 1), **TestNothingKnownAlone.NOTHING) for i in range(3)])
        assert [d.ends_stage for d in found] == [False, False, True]
        assert found[-1].reason.endswith("the model keeps the present weights")


SCENARIOS: dict[str, list[Reading]] = {
    "plateau": [
        seen(10 * (i + 1), accuracy=(a, a)) for i, a in enumerate((0.3, 0.4, 0.5, 0.6, 0.59, *[0.4] * 6))
    ],
    "waiting": [
        seen(10, unique=(0.3, 0.4)),
        seen(20, **LEADS),
        *(
            seen(30 + 10 * i, dependence=0.3, accuracy=(a, 0.1))
            for i, a in enumerate((0.3, 0.4, 0.35, *[0.2] * 5))
        ),
    ],
    "dependence": [seen(10), seen(20), seen(30, accuracy=(0.6, 0.6)), seen(40), seen(50, dependence=0.4)],
    "nothing": [seen(10, **TestNothingKnownAlone.NOTHING), seen(20, **TestNothingKnownAlone.NOTHING)],
    "used up": [seen(10), seen(20), seen(30), seen(40, accuracy=(0.2, 0.2)), seen(500, accuracy=(0.2, 0.2))],
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_rule_that_is_restored_at_every_reading_decides_the_same(name: str) -> None:
    rule = adaptive()
    expected = [
        (rule.trains_fused_head, rule.excluded_from_readout, rule.decide(item)) for item in SCENARIOS[name]
    ]
    assert expected[-1][2].ends_stage, "the scenario has no end"
    rule, found = adaptive(), []
    for item in SCENARIOS[name]:
        saved = json.dumps(rule.state_dict(), allow_nan=False)
        rule = adaptive()
        rule.load_state_dict(json.loads(saved))
        assert rule.state_dict() == json.loads(saved)
        found.append((rule.trains_fused_head, rule.excluded_from_readout, rule.decide(item)))
    assert found == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scouting_readings": -1}, "scouting_readings must be a whole number that is not negative, got -1"),
        ({"scouting_readings": 1.5}, "scouting_readings must be a whole number"),
        ({"scouting_readings": "2"}, "scouting_readings must be a whole number"),
        ({"dependence": 0}, "dependence must be a positive number, got 0"),
        ({"dependence": math.nan}, "dependence must be a positive number"),
        ({"saturation": 0}, r"saturation must be in \(0, 1\], got 0"),
        ({"saturation": 1.1}, r"saturation must be in \(0, 1\]"),
        ({"saturation": math.nan}, r"saturation must be in \(0, 1\]"),
        ({"ratio": -1}, "ratio must be a positive number"),
        ({"margin": "0.1"}, "margin must be a positive number"),
        ({"plateau_patience": 0}, "plateau_patience must be a positive number"),
        ({"accuracy_tolerance": -0.01}, r"accuracy_tolerance must be in \[0, 1\), got -0.01"),
        ({"accuracy_tolerance": math.nan}, r"accuracy_tolerance must be in \[0, 1\)"),
        ({"max_unimodal_share": 0}, "max_unimodal_share"),
        ({"patience": 3}, "unknown option 'patience' of the rule 'adaptive'"),
    ],
)
def test_bad_options_are_sentences(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adaptive(**options)


# ---- inside a training ----

ROWS, BATCH, EPOCHS = 96, 16, 8
PER_EPOCH = ROWS // BATCH


class Encoder(nn.Module):
    """Two layers over 16 numbers."""

    embedding_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 8))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.layers(values)


class Problem(torch.utils.data.Dataset):
    """Rows of two views.

    Args:
        kind: "usual": both views show the label under noise. "shortcut": the left one shows it without noise, the right
            one under much. "synergy": each shows a bit, and the label is whether they agree.
    """

    def __init__(self, kind: str, rows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        patterns = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(7))
        if kind == "synergy":
            shown = torch.randint(2, (2, rows), generator=generator)
            self.labels, noise = (shown[0] == shown[1]).long(), (0.3, 0.3)
        else:
            self.labels = torch.randint(3, (rows,), generator=generator)
            shown, noise = self.labels.expand(2, -1), (1.5, 2.0) if kind == "usual" else (0.0, 4.0)
        self.left, self.right = (
            patterns[side][shown[side]] + noise[side] * torch.randn(rows, 16, generator=generator)
            for side in (0, 1)
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"left": self.left[index], "right": self.right[index], "labels": int(self.labels[index])}


class Watch(TrainerCallback):
    """The fused head and the weights, before every step and at every evaluation."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.evaluations: dict[int, dict[str, torch.Tensor]] = {}

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.detach().clone() for name, p in model.named_parameters()})

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        self.evaluations.setdefault(
            state.global_step, {name: p.detach().clone() for name, p in model.named_parameters()}
        )


class Listening(FusionTrainer):
    """Remembers the loss of every training batch, and what it was made of."""

    heard: list[tuple[float, Any, torch.Tensor]]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.model.training:
            self.heard = [*getattr(self, "heard", []), (float(loss.detach()), outputs, labels)]
        return (loss, outputs) if return_outputs else loss


# What makes the rule's decision certain in each problem, however well so short a training goes. In two noisy views the
# probe sees some dependence by chance: no threshold is that high. A view without noise says all there is to know about
# the label, so it leads whatever its accuracy is by then. The one bit of the third problem needs nothing.
RULE_OPTIONS: dict[str, dict[str, float]] = {
    "usual": {"dependence": 9.0, "saturation": 1.0, "margin": 9.0},
    "shortcut": {"dependence": 9.0, "saturation": 0.01},
    "synergy": {},
}


def trainer(folder: Path, kind: str, *, more: dict[str, Any] | None = None, **options: Any) -> Listening:
    torch.manual_seed(0)
    labels = 2 if kind == "synergy" else 3
    encoders = {name: Encoder() for name in ("left", "right")}
    arguments = {
        "output_dir": str(folder),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": 200,
        "learning_rate": 3e-2 if kind == "shortcut" else 1e-2,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "report_to": "none",
        "seed": 3,
        "strategy_options": RULE_OPTIONS[kind],
    }
    return Listening(
        model=FusionForClassification.from_modality_pretrained(encoders, num_labels=labels, fusion="mlp"),
        args=FusionTrainingArguments(**{**arguments, **options}),
        train_dataset=Problem(kind, ROWS, 0),
        eval_dataset=Problem(kind, 200, 1),
        **(more or {}),
    )


def plain_loss(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("own_loss", [None, plain_loss])
def test_while_it_scouts_the_loss_is_that_of_stage_two(tmp_path: Path, own_loss: Callable | None) -> None:
    watch = Watch()
    run = trainer(tmp_path, "usual", more={"compute_loss_func": own_loss, "callbacks": [watch]})
    run.train()
    ends = 2 * PER_EPOCH
    assert run.record.stage_start > ends, "there is no step after scouting"
    assert [entry.trained_fused_head for entry in run.record.history][:3] == [True, True, False]
    for step, (loss, outputs, labels) in enumerate(run.heard[: run.record.stage_start]):
        alone = sum(F.cross_entropy(z, labels) for z in outputs.unimodal_logits.values())
        if step < ends:
            expected = F.cross_entropy(outputs.logits, labels) + run.plan.auxiliary_weight * alone
        else:
            assert outputs.logits is None
            expected = alone
        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    fusion = [name for name in watch.steps[0] if name.startswith("fusion.")]
    assert all(not torch.equal(watch.steps[0][n], watch.steps[ends][n]) for n in fusion)


def test_after_scouting_the_fused_head_is_the_ensemble_of_the_others(tmp_path: Path) -> None:
    watch = Watch()
    run = trainer(tmp_path, "usual", more={"callbacks": [watch]})
    run.train()
    stages = {entry.step: (entry.stage, entry.trained_fused_head) for entry in run.record.history}
    assert set(stages.values()) == {("unimodal", True), ("unimodal", False), ("joint", True)}
    for step, where in stages.items():
        weights = watch.evaluations[step]
        heads = torch.cat([weights[f"heads.{name}.weight"] for name in ("left", "right")], dim=1)
        is_ensemble = torch.equal(weights["fusion.linear.linear.weight"], heads)
        assert is_ensemble == (where == ("unimodal", False)), (step, where)


def test_where_only_both_together_know_the_label_they_train_jointly_after_scouting(tmp_path: Path) -> None:
    run = trainer(tmp_path, "synergy")
    run.train()
    assert run.record.stage_start <= 2 * PER_EPOCH
    end = next(entry for entry in run.record.history if entry.restored is not None)
    assert (
        "learn from them together" in end.decision.reason
        or "nothing shows that they learn alone" in end.decision.reason
    )
    assert end.restored == end.step == run.record.stage_start
    assert {entry.stage for entry in run.record.history if entry.trained_fused_head} == {"unimodal", "joint"}
    assert run.measurements["validation"].scores["fused"] > 0.9
    run.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "jointly: stage 1 ended while it scouted, and no modality was trained by itself" in card


@pytest.fixture(scope="module")
def shortcut(tmp_path_factory) -> tuple[Listening, Watch]:
    watch = Watch()
    run = trainer(tmp_path_factory.mktemp("shortcut"), "shortcut", more={"callbacks": [watch]})
    run.train()
    return run, watch


def test_a_view_that_shows_the_label_waits_at_its_initial_weights(shortcut) -> None:
    run, watch = shortcut
    start = next(e.step for e in run.record.history if e.training == ("right",)) - PER_EPOCH
    assert start <= 2 * PER_EPOCH
    left = [name for name in watch.steps[0] if name.startswith(("encoders.left.", "heads.left."))]
    assert any(not torch.equal(watch.steps[start - 1][n], watch.steps[0][n]) for n in left), "never trained"
    for step in range(start + 1, run.record.stage_start + 1):
        # The reset is carried out in the step itself.
        assert all(torch.equal(watch.steps[step][name], watch.steps[0][name]) for name in left), step
    peak = load_file(Path(run.args.output_dir) / "unimodal" / "model.safetensors")
    assert all(torch.equal(peak[name], watch.steps[0][name]) for name in left)
    assert any(not torch.equal(watch.steps[-1][name], watch.steps[0][name]) for name in left)


def test_its_head_has_no_weight_beside_others_and_answers_alone(shortcut) -> None:
    run, _ = shortcut
    weights = {frozenset(w): w for w in run.model.config.readout["weights"]}
    assert weights[frozenset({FUSED, "left", "right"})]["left"] == 0
    assert weights[frozenset({"left", "right"})]["left"] == 0
    assert weights[frozenset({"left"})]["left"] > 0
    rows = Problem("shortcut", 50, 2)
    with torch.no_grad():
        both = run.model.eval()(left=rows.left, right=rows.right)
        alone = run.model(left=rows.left)
    assert (alone.probabilities.argmax(dim=1) == rows.labels).float().mean() > 0.95
    assert not torch.equal(both.probabilities, alone.probabilities)
    # The peak of stage 1 carries the same rule in its own readout.
    peak = json.loads((Path(run.args.output_dir) / "unimodal" / "config.json").read_text())
    assert next(w["left"] for w in peak["readout"]["weights"] if len(w) == 3) == 0


def test_card_and_picture_say_what_happened(shortcut) -> None:
    run, _ = shortcut
    run.create_model_card()
    card = (Path(run.args.output_dir) / "README.md").read_text()
    assert "left waits for stage 2, from its initial weights" in card
    assert "left was paused in stage 1, so that the other modalities could learn." in card
    assert (
        "first each modality by itself, after some joint training to scout, then all of them jointly" in card
    )
    for name in run.model.best_heads:
        assert f"{name} with the weights of step {int(run.record.best_heads[name][0])}" in card


def test_no_folder_of_weights_is_left_over(shortcut) -> None:
    folder = Path(shortcut[0].args.output_dir)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"unimodal"}


def test_stage_one_alone_trains_no_fused_head(tmp_path: Path) -> None:
    options = {"rule": "adaptive", **RULE_OPTIONS["shortcut"]}
    run = trainer(tmp_path, "shortcut", strategy="unimodal", strategy_options=options)
    run.train()
    assert all(outputs.logits is None for _, outputs, _ in run.heard)
    assert all(entry.training == ("left", "right") for entry in run.record.history)
    weights = {frozenset(w): w for w in run.model.config.readout["weights"]}
    assert weights[frozenset({"left", "right"})]["left"] > 0


# ---- killed and resumed ----

STEPS = 5 * PER_EPOCH + 2
SAVING = {
    "max_steps": STEPS,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
}


def outcome(run: FusionTrainer) -> dict[str, Any]:
    return {
        "history": run.record.history,
        "rule": run.rule.state_dict(),
        "best heads of the record": run.record.best_heads,
        "best heads of the model": run.model.config.best_heads,
        "readout": run.model.config.readout,
        "peak": json.loads((Path(run.args.output_dir) / "unimodal" / "config.json").read_text())["readout"],
    }


@pytest.fixture(scope="module")
def wholes(tmp_path_factory) -> Callable[[str], Listening]:
    made: dict[str, Listening] = {}

    def whole(kind: str) -> Listening:
        if kind not in made:
            made[kind] = trainer(tmp_path_factory.mktemp(kind), kind, **SAVING)
            made[kind].train()
        return made[kind]

    return whole


def assert_the_same(whole: FusionTrainer, resumed: FusionTrainer) -> None:
    assert outcome(resumed) == outcome(whole)
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    peaks = [
        load_file(Path(run.args.output_dir) / "unimodal" / "model.safetensors") for run in (whole, resumed)
    ]
    assert all(torch.equal(peaks[0][name], peaks[1][name]) for name in peaks[0])


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        # Scouting, before the first reading.
        ("usual", 2),
        # Scouting, between its readings.
        ("usual", 6),
        # Its last reading, whose decision is not carried out yet.
        ("usual", 8),
        # Each alone
        ("usual", 10),
        # One has just been told to wait.
        ("shortcut", 4),
        # And waits
        ("shortcut", 6),
        # In stage 2, where its head still has no weight beside others.
        ("shortcut", 26),
        # Stage 1 has just ended, while it scouted.
        ("synergy", 8),
    ],
)
def test_stopped_and_resumed_it_ends_bit_for_bit_the_same(
    wholes, tmp_path: Path, kind: str, step: int
) -> None:
    whole = wholes(kind)
    stopped = trainer(tmp_path, kind, more={"callbacks": [StopAfterSaving(step)]}, **SAVING)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = trainer(tmp_path, kind, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert_the_same(whole, resumed)


def test_the_runs_that_are_stopped_are_where_they_should_be(wholes) -> None:
    usual, shortcut, synergy = (wholes(kind).record for kind in ("usual", "shortcut", "synergy"))
    assert [e.step for e in usual.history if e.stage == "unimodal" and e.trained_fused_head] == [4, 8]
    assert usual.stage_start > 10
    assert next(e.step for e in shortcut.history if e.training == ("right",)) == 8
    assert 6 < shortcut.stage_start < 26
    assert synergy.stage_start == 8


@pytest.mark.parametrize("count", [1, 4])
def test_killed_while_best_heads_are_replaced_it_ends_the_same(
    wholes, tmp_path: Path, monkeypatch, count: int
) -> None:
    calls: list[str] = []

    def killer(new: str, folder: str) -> None:
        calls.append(folder)
        if len(calls) == count:
            # The worst moment: the old is away, the new is not there yet.
            if Path(folder).is_dir():
                Path(folder).rename(f"{folder}.old")
            raise KeyboardInterrupt
        replace_folder(new, folder)

    stopped = trainer(tmp_path, "usual", **SAVING)
    with monkeypatch.context() as patch:
        patch.setattr(best_heads_module, "replace_folder", killer)
        with pytest.raises(KeyboardInterrupt):
            stopped.train()
    assert Path(calls[-1]).name in {folder_of("left"), folder_of("right")}
    assert (tmp_path / INITIAL_FOLDER).is_dir()
    resumed = trainer(tmp_path, "usual", **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert_the_same(wholes("usual"), resumed)


def test_decisions_have_one_line_of_reason() -> None:
    for name, readings in SCENARIOS.items():
        for decision in run(adaptive(), readings):
            assert isinstance(decision, Decision), name
            assert "\n" not in decision.reason


@pytest.mark.slow
def test_two_processes_killed_while_they_scout_end_the_same(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # Few rows: the probe sees noise, which must not decide.
    options = {
        "moves": False,
        "strategy_options": {"scouting_readings": 3, "dependence": 9.0, "margin": 9.0},
    }
    assert killed_run.ends(killed_run.start(whole, False, 2, **options)) == [0, 0]
    assert (
        killed_run.ends(killed_run.start(killed, False, 2, "_save_rng_state", 4, **options))
        == [-signal.SIGKILL] * 2
    )
    assert killed_run.ends(killed_run.start(killed, True, 2, **options)) == [0, 0]
    decisions = killed_run.outcome(whole)["decisions"]
    assert [entry["step"] for entry in decisions if "each alone" in entry["reason"]] == [6]
    assert killed_run.differences(killed_run.outcome(whole), killed_run.outcome(killed)) == []
