"""The controller under stress: simulated readings whose answer is known, and the events of the real runs."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

# No installed package
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from protocol.results import Run, Setting
from protocol.training import train
from stress.events import STRESSES, Disturbed, Event, FasterRate, shuffle
from stress.forecasts import judgement, rates
from stress.report import report
from stress.runs import COMPARED, decisions, plan, response
from stress.simulated import (
    END,
    PROBES,
    SCENES,
    START,
    figures,
    fluctuation,
    pausing,
    play,
    published,
    sweep,
)
from suites.imbalance import rescale
from test_compare import NAMES, TINY

from ecsfusion.controller import RULES

# 4 000 probes
EPISODES = 100
# The rule's own patience and hysteresis.
CHOSEN = partial(pausing, 2, 2 / 3)
# Bits, the largest fluctuation of the recorded runs.
AS_RECORDED = 0.053


def measured(make, scene, noise=AS_RECORDED):
    return figures(make, scene, noise, EPISODES, seed=0)


class TestBalanced:
    @pytest.mark.parametrize("scene", ["balanced", "balanced, little known"])
    def test_at_most_one_false_switch_in_100_probes(self, scene):
        assert measured(CHOSEN(), scene)["switches per 100 probes"] <= 1.0

    @pytest.mark.parametrize("name", ["adaptive", "weak-first"])
    def test_nor_do_the_rules_that_reset(self, name):
        rule = partial(RULES[name], ("first", "second"))
        episode = play(rule, SCENES["balanced"], AS_RECORDED, np.random.default_rng(0), probes=1000)
        assert episode.switches <= 10

    def test_the_published_rule_switches_on_noise(self):
        assert measured(published, "balanced, little known")["switches per 100 probes"] > 10

    def test_without_patience_noise_pauses(self):
        nervous, patient = (
            measured(pausing(patience, 2 / 3), "balanced, little known", noise=0.1) for patience in (1, 2)
        )
        assert nervous["switches per 100 probes"] > 5 * patient["switches per 100 probes"]


class TestLead:
    def test_it_is_paused_and_resumed_after_two_probes(self):
        found = measured(CHOSEN(), "a lead comes and goes")
        assert 2.0 <= found["paused after"] < 2.2
        assert 2.0 <= found["resumed after"] < 2.2
        assert (found["missed"], found["not resumed"]) == (0.0, 0.0)
        assert found["wrong"] <= 0.1

    def test_the_published_rule_does_not_resume(self):
        assert measured(published, "a lead comes and goes")["not resumed"] > 0.9

    def test_at_the_threshold_hysteresis_keeps_a_decision(self):
        chattering = measured(pausing(2, 1.0), "at the threshold")["switches per 100 probes"]
        # one pause in 40 probes are 2.5 in 100
        assert measured(CHOSEN(), "at the threshold")["switches per 100 probes"] < 3 < chattering / 4

    def test_hysteresis_and_patience_cost_overshoot(self):
        nervous, chosen = (
            measured(make, "the slower one catches up")["overshoot"] for make in (pausing(1, 1.0), CHOSEN())
        )
        assert nervous < chosen < 6

    def test_without_noise_it_is_exact(self):
        episode = play(CHOSEN(), SCENES["a lead comes and goes"], 0.0, np.random.default_rng(0))
        paused = [t for t, who in enumerate(episode.paused, start=1) if who == {"first"}]
        # seen at 11 and 12, gone at 25 and 26
        assert paused == list(range(START + 1, END + 2))


def test_a_sweep_has_a_line_per_rule_scene_and_noise():
    lines = sweep(episodes=1, seed=0)
    keys = {
        (line["rule"], line.get("patience"), line.get("hysteresis"), line["scene"], line["noise"])
        for line in lines
    }
    assert len(keys) == len(lines) == 10 * 5 * 4
    assert all(line["probes"] == PROBES for line in lines)


def test_fluctuation_is_the_noise_about_a_line():
    generator = np.random.default_rng(0)
    column = [0.01 * t + 0.05 * generator.normal() for t in range(4000)]
    lines = [{"trajectory": {"unique_image": column, "accuracy_image": [1e6] * 4000}}]
    assert fluctuation(lines) == pytest.approx(0.05, rel=0.05)


class TestEvents:
    def state(self, step):
        return SimpleNamespace(global_step=step, max_steps=100)

    def test_it_is_on_for_a_span(self):
        event = Event(0.2, 0.4)
        on = []
        for step in range(100):
            event.on_step_begin(None, self.state(step), None)
            on.append(event.is_on)
        assert [step for step, is_on in enumerate(on) if is_on] == list(range(20, 40))

    def test_rows_are_disturbed_while_it_is_on(self):
        event, plain = Event(), TINY.train
        split = Disturbed(**vars(plain), other=rescale(plain, "right", 0.0), event=event)
        assert torch.equal(split[3]["right"], plain[3]["right"])
        event.is_on = True
        assert not split[3]["right"].any()
        assert torch.equal(split[3]["left"], plain[3]["left"])
        # what is judged after training reads all rows at once, undisturbed
        assert torch.equal(split.select(torch.arange(4)).inputs["right"], plain.inputs["right"][:4])

    def test_shuffled_labels_leave_the_other_modality_alone(self):
        shuffled = shuffle(TINY.train, "right")
        assert torch.equal(shuffled.inputs["left"], TINY.train.inputs["left"])
        moved = (shuffled.inputs["right"] != TINY.train.inputs["right"]).any(1)
        assert moved.float().mean() > 0.9
        ordered = [
            values.flatten().sort().values
            for values in (shuffled.inputs["right"], TINY.train.inputs["right"])
        ]
        assert torch.equal(*ordered)

    def test_a_rate_is_multiplied_and_comes_back(self):
        weights = {name: torch.nn.Parameter(torch.zeros(1)) for name in NAMES}
        optimizer = torch.optim.SGD(
            [{"params": [w], "name": f"{n}.no_decay"} for n, w in weights.items()], lr=0.1
        )
        scheduler = LambdaLR(optimizer, lambda step: 0.5)
        event, rates_seen = FasterRate("right"), []
        event.start, event.end = 0.2, 0.4
        for step in (10, 20, 39, 40):
            arguments = SimpleNamespace(learning_rate=0.1)
            event.on_step_begin(
                arguments, self.state(step), None, optimizer=optimizer, lr_scheduler=scheduler
            )
            optimizer.step()
            scheduler.step()
            rates_seen.append([group["lr"] for group in optimizer.param_groups])
        assert rates_seen == [
            pytest.approx(r) for r in ([0.05, 0.05], [0.05, 0.5], [0.05, 0.5], [0.05, 0.05])
        ]

    def test_probes_of_a_real_run_see_a_dead_sensor_and_its_return(self):
        """The right half of the rows is zero from a quarter to half of the run."""
        event = Event(0.25, 0.5)
        dead = {
            name: Disturbed(
                **vars(getattr(TINY, name)), other=rescale(getattr(TINY, name), "right", 0.0), event=event
            )
            for name in ("train", "validation")
        }
        suite = replace(TINY, epochs=10, **dead)
        method = COMPARED["pausing"]
        arguments = {**method.arguments, "eval_strategy": "steps", "eval_steps": 2}
        setting = Setting.of(replace(method, arguments=arguments), {}, suite, "adamw", 0.1)
        trajectory = train(suite, Run(setting, 0), [event])["trajectory"]
        accuracy = dict(zip(trajectory["step"], trajectory["accuracy_right"], strict=True))
        within = {step for step in accuracy if 10 < step <= 20}
        assert len(within) == 5
        # A third is chance.
        assert max(accuracy[step] for step in within) < 0.4
        assert min(accuracy[step] for step in accuracy if step > 30) > 0.5


class TestResponse:
    def line(self, paused, stress="noise", leader="left", stages=None):
        """A probe every 10 steps; the event is on from step 20 to 50. `paused`: after each probe."""
        return {
            "stress": stress,
            "leader": leader,
            "event": [20, 50],
            "trajectory": {
                "step": [10 * k for k in range(1, len(paused) + 2)],
                "stage": stages or [1] * (len(paused) + 1),
                "paused": [[], *paused],
            },
        }

    def test_delays_are_counted_from_the_first_probe_that_can_show_it(self):
        # probes at 10, 20 before; 30, 40, 50 within; 60, 70 after
        line = self.line([[], [], [], ["left"], ["left"], ["left"], []])
        assert decisions(line)[3] == (40, frozenset({"left"}))
        found = response(line)
        assert (found["paused"], found["resumed"]) == (2, 2)
        assert (found["wrong"], found["false"], found["probes"]) == (0, 0, 2)

    def test_other_pauses_are_wrong_or_false(self):
        found = response(self.line([["right"], [], ["right"], [], [], []]))
        assert (found["paused"], found["resumed"], found["wrong"], found["false"]) == (None, None, 1, 2)

    def test_where_nothing_happens_every_switch_is_false(self):
        found = response(self.line([[], [], ["left"], ["left"], [], []], stress="nothing", leader=None))
        assert (found["false"], found["probes"], found["wrong"]) == (2, 6, 0)

    def test_stage_2_decides_nothing(self):
        line = self.line([[], [], [], ["left"], ["left"], []], stages=[1, 1, 1, 1, 1, 2, 2])
        assert [step for step, _ in decisions(line)] == [10, 20, 30, 40]
        assert response(line)["resumed"] is None


class TestForecasts:
    def test_it_is_judged_by_what_came_of_it(self):
        runs = [
            {
                "a": [1.0, 1.1, 1.2, 1.2],
                "b": [0.1, 0.4, 0.8, 1.1],
                # Slow, and b gains 0.2 an epoch by epoch 2.
            },
            # Weak
            {"a": [1.0, 1.1, 1.2, 1.2], "b": [0.1, 0.1, 0.1, 0.2]},
            {
                "a": [1.0, 1.1, 1.2, 1.2],
                "b": [0.0, 0.0, 0.5, 1.0],
                # Slow, and for two epochs it does not look so.
            },
            # Nobody knows anything
            {"a": [0.0, 0.0, 0.0, 0.0], "b": [0.0, 0.0, 0.0, 0.0]},
        ]
        assert judgement(runs[0], 2) == {"behind": "b", "says slow": True, "is slow": True}
        assert judgement(runs[3], 2) is None
        after_two, after_three = rates(runs)[1:3]
        assert (after_two["slow runs"], after_two["slow"]) == (2, 0.5)
        assert (after_two["weak runs"], after_two["weak"]) == (1, 1.0)
        assert (after_three["slow"], after_three["weak"]) == (1.0, 1.0)


def test_report_makes_tables_and_pictures_of_what_is_there(tmp_path):
    lines = [{"part": "simulated", **line} for line in sweep(episodes=1, seed=0)]
    lines += [
        {
            "part": "forecast rates",
            "runs": "fresh",
            "after": 1,
            "slow": 0.5,
            "weak": 1.0,
            "slow runs": 2,
            "weak runs": 3,
        }
    ]
    for stress in STRESSES:
        for method in COMPARED:
            line = TestResponse().line([[], [], ["left"], [], [], []], stress=stress)
            for name in NAMES:
                line["trajectory"][f"unique_{name}"] = [0.5] * 7
            lines.append({"part": "run", "method": method, "seed": 0, "test_accuracy": 0.75, **line})
    text = report(lines, tmp_path)
    assert "| noise | peak synergy | 1 | 1 | - | 0 |" in text
    assert text.count("| 75.0 |") >= len(STRESSES)
    assert "| fresh | 1 | 50% of 2 | 100% of 3 | 75% |" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        "controller_response.png",
        "controller_response_runs.png",
    }


def test_the_plan_has_every_event_and_method():
    runs = plan(range(3))
    assert len(runs) == len(set(runs))
    assert {stress for stress, _, _ in runs} == set(STRESSES)
    assert {method for _, method, _ in runs} == set(COMPARED)
