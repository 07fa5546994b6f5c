"""Every rule on hand-made readings; the expected decisions are worked out by hand in the comments."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from readings import make_reading

from ecsfusion import controller
from ecsfusion.controller import RULES, Decision, Reading, Rule, make_rule
from ecsfusion.controller.rule import RunContext

TWO = ("image", "audio")


def reading(
    step: int,
    unique: tuple[float, ...] = (0.2, 0.2),
    synergy: float = 0.3,
    accuracy: tuple[float, ...] = (0.5, 0.5),
    *,
    modalities: tuple[str, ...] = TWO,
    redundancy: float = 0.5,
    floor: float | dict[str, float] = 0.05,
    budget: int = 1000,
    stage: str = "unimodal",
    plugin_unique: tuple[float, ...] | None = None,
    plugin_synergy: float = 1.0,
    **values: Any,
) -> Reading:
    """One epoch is 10 steps; other values are those of `readings.make_reading`."""
    return make_reading(
        step,
        progress=step / budget,
        stage=stage,
        modalities=modalities,
        redundancy=redundancy,
        unique=dict(zip(modalities, unique, strict=True)),
        synergy=synergy,
        floor=floor,
        plugin={
            "redundancy": 1.0,
            "unique": dict(zip(modalities, plugin_unique or unique, strict=True)),
            "synergy": plugin_synergy,
        },
        **{
            "conditional_mutual_information": 0.0,
            # Without it the reasons hold no forecast.
            "mutual_information": {},
            "accuracy": {**dict(zip(modalities, accuracy, strict=True)), "fused": 0.1},
            **values,
        },
    )


def changed(item: Reading, *, accuracy: Any = None, **information: Any) -> Reading:
    """The reading with other scores, or other values of its decomposition."""
    measurement = item.measurement
    return replace(
        item,
        measurement=replace(
            measurement,
            scores=measurement.scores if accuracy is None else accuracy,
            information=replace(item.information, **information),
        ),
    )


def run(rule: Rule, readings: list[Reading]) -> list[Decision]:
    return [rule.decide(item) for item in readings]


class TestPublished:
    def plugin(self, step: int, u1: float, u2: float, synergy: float = 1.0) -> Reading:
        # the corrected atoms say the opposite: the published rule must not look at them
        return reading(step, unique=(u2, u1), plugin_unique=(u1, u2), plugin_synergy=synergy)

    def test_trains_the_other_side_beyond_tau_and_stays_in_between(self) -> None:
        rule = make_rule("published", TWO)
        decisions = run(
            rule,
            [
                # Rho = 3, not above tau: both.
                self.plugin(10, 0.30, 0.10),
                # Rho = 5: only audio, first change.
                self.plugin(20, 0.50, 0.10),
                # Rho = 1: audio goes on alone.
                self.plugin(30, 0.20, 0.20),
                # Rho = 9: no change.
                self.plugin(40, 0.90, 0.10),
            ],
        )
        assert [d.training for d in decisions] == [TWO, ("audio",), ("audio",), ("audio",)]
        assert not any(d.ends_stage for d in decisions)

    def test_second_change_ends_stage_one_with_the_present_weights(self) -> None:
        rule = make_rule("published", TWO)
        rule.decide(self.plugin(10, 0.5, 0.1))
        over = rule.decide(self.plugin(20, 0.1, 0.5))
        assert (over.ends_stage, over.restore, over.training) == (True, None, TWO)

    def test_synergy_under_four_fifths_of_its_best_ends_stage_one(self) -> None:
        rule = make_rule("published", TWO)
        # 0.8 x 2.0 = 1.6.
        synergies = (0.5, 2.0, 1.61, 1.59)
        decisions = run(rule, [self.plugin(10 * (i + 1), 0.2, 0.2, s) for i, s in enumerate(synergies)])
        assert [d.ends_stage for d in decisions] == [False, False, False, True]
        # The paper's code does not restore the peak.
        assert decisions[-1].restore is None

    def test_two_hundred_epochs_end_stage_one(self) -> None:
        rule = make_rule("published", TWO)
        decisions = [
            rule.decide(replace(self.plugin(1, 0.2, 0.2), epoch=e, progress=0.1)) for e in (199, 200)
        ]
        assert [d.ends_stage for d in decisions] == [False, True]

    def test_without_a_denominator_nothing_happens(self) -> None:
        rule = make_rule("published", TWO)
        rule.decide(self.plugin(10, 0.2, 0.2, 1.0))
        assert rule.decide(self.plugin(20, 0.5, 0.0, 0.1)).training == TWO
        # 1/rho is infinite
        assert rule.decide(self.plugin(30, 0.0, 0.5, 1.0)).training == ("image",)

    def test_is_for_two_modalities(self) -> None:
        with pytest.raises(ValueError, match=r"two modalities.*'a', 'b', 'c'.*peak-synergy"):
            make_rule("published", ("a", "b", "c"))

    def test_needs_the_atoms_without_correction(self) -> None:
        with pytest.raises(ValueError, match=r"plugin\['unique'\]\['image'\] is missing"):
            make_rule("published", TWO).decide(changed(reading(10), plugin={}))


class TestPeakSynergyPausing:
    def test_a_clear_leader_is_paused_after_two_readings(self) -> None:
        rule = make_rule("peak-synergy", TWO)
        first, second = run(rule, [reading(10, (0.24, 0.82)), reading(20, (0.24, 0.82))])
        assert first.training == TWO
        assert second.training == ("image",)
        assert second.reason == "audio paused: its uniqueness 0.82 bits is 3.4 times image's, floor 0.05"

    @pytest.mark.parametrize(
        ("unique", "floor"),
        [
            # Ratio 2.9
            ((0.60, 0.21), 0.05),
            # 4.5 times, but only 0.14 bits ahead.
            ((0.18, 0.04), 0.01),
            # Far ahead, but under its own noise floor.
            ((0.30, 0.01), 0.35),
            # 30 times image's 0.01, but 2.5 times what noise would show there.
            ((0.30, 0.01), 0.12),
        ],
    )
    def test_no_pause_without_a_clear_lead(self, unique: tuple[float, float], floor: float) -> None:
        rule = make_rule("peak-synergy", TWO)
        assert all(
            d.training == TWO for d in run(rule, [reading(s, unique, floor=floor) for s in (10, 20, 30)])
        )

    def test_a_leader_under_its_own_floor_is_no_leader(self) -> None:
        rule = make_rule("peak-synergy", TWO)
        floor = {"image": 0.35, "audio": 0.01, "redundancy": 0.05, "synergy": 0.05}
        readings = [changed(reading(s, (0.30, 0.02)), floor=floor) for s in (10, 20)]
        assert all(d.training == TWO for d in run(rule, readings))
        readings = [changed(r, floor={**floor, "image": 0.25}) for r in readings]
        assert run(rule, readings)[-1].training == ("audio",)

    def test_one_noisy_reading_pauses_nobody(self) -> None:
        rule = make_rule("peak-synergy", TWO)
        leads = [(0.8, 0.1), (0.3, 0.3), (0.8, 0.1), (0.1, 0.8), (0.8, 0.1)]
        assert all(
            d.training == TWO for d in run(rule, [reading(10 * (i + 1), u) for i, u in enumerate(leads)])
        )

    def test_hysteresis_keeps_a_pause_through_noise_and_a_lost_lead_ends_it(self) -> None:
        rule = make_rule("peak-synergy", TWO)
        # image's accuracy rises by 0.05 a reading, so that waiting for it stays worth while
        leads = [
            # 4 times
            (0.2, 0.8),
            # Paused
            (0.2, 0.8),
            # 2.7 times: under 3, over 2, still paused.
            (0.3, 0.8),
            # 1.8 times: once
            (0.45, 0.8),
            # 2.7 times: noise, the count starts again.
            (0.3, 0.8),
            # Once
            (0.45, 0.8),
            # Twice: resumed
            (0.45, 0.8),
        ]
        readings = [reading(10 * (i + 1), u, accuracy=(0.3 + 0.05 * i, 0.8)) for i, u in enumerate(leads)]
        decisions = run(rule, readings)
        assert ["audio" in d.training for d in decisions] == [True, False, False, False, False, False, True]
        assert decisions[-1].reason.startswith("audio resumed: its uniqueness 0.80 bits is 1.8 times image's")

    def test_a_weak_modality_that_does_not_gain_is_not_waited_for(self) -> None:
        rule = make_rule("peak-synergy", TWO, wait=3)
        decisions = run(rule, [reading(10 * i, (0.8, 0.1), accuracy=(0.8, 0.3)) for i in range(1, 9)])
        # paused at the second reading; three readings without a gain; then never again
        assert ["image" in d.training for d in decisions] == [
            True,
            False,
            False,
            False,
            True,
            True,
            True,
            True,
        ]
        assert "audio has not risen by 0.02" in decisions[4].reason

    def test_a_gain_starts_the_waiting_again(self) -> None:
        rule = make_rule("peak-synergy", TWO, wait=3)
        accuracies = (0.30, 0.30, 0.31, 0.31, 0.40, 0.40, 0.40, 0.40)
        readings = [reading(10 * (i + 1), (0.8, 0.1), accuracy=(0.8, a)) for i, a in enumerate(accuracies)]
        # paused at 2, a gain at 5, and three readings without one after it
        training = ["image" in d.training for d in run(rule, readings)]
        assert training == [True, False, False, False, False, False, False, True]

    def test_three_modalities_are_paused_one_after_the_other_but_never_all(self) -> None:
        three = ("image", "audio", "text")
        rule = make_rule("peak-synergy", three)
        readings = [
            reading(10 * i, (1.0, 0.3, 0.05), accuracy=(0.9, 0.5, 0.2 + 0.05 * i), modalities=three)
            for i in range(1, 8)
        ]
        # image leads audio 3.3 times: paused at 2. Then audio leads text 6 times: paused at 4.
        training = [d.training for d in run(rule, readings)]
        rest = [("text",)] * 4
        assert training == [three, ("audio", "text"), ("audio", "text"), *rest]


class TestPeakSynergyPeak:
    def test_the_untrained_start_is_never_the_peak(self) -> None:
        rule = make_rule("peak-synergy", TWO)
        start = rule.decide(reading(0, (0.0, 0.0), synergy=1.5, accuracy=(0.1, 0.1)))
        assert not start.peak
        # debiased synergy falls while accuracy rises: every reading is the new candidate
        falling = [
            reading(100 * i, synergy=1.0 - 0.2 * i, accuracy=(0.3 + 0.1 * i, 0.3 + 0.1 * i))
            for i in (1, 2, 3, 4)
        ]
        assert all(d.peak and not d.ends_stage for d in run(rule, falling))
        over = rule.decide(reading(500, synergy=0.1, accuracy=(0.8, 0.8)))
        assert (over.ends_stage, over.restore, over.peak) == (True, None, True)
        assert "50%" in over.reason

    def test_a_peak_within_the_noise_does_not_win_over_later_training(self) -> None:
        rule = make_rule("peak-synergy", TWO)
        synergies = (
            0.30,
            0.34,
            0.30,
            0.31,
            0.30,
            # Within synergy's floor of 0.05: all ties, the later is kept.
        )
        decisions = run(rule, [reading(100 * (i + 1), synergy=s) for i, s in enumerate(synergies)])
        assert all(d.peak for d in decisions)
        assert (decisions[-1].ends_stage, decisions[-1].restore) == (True, None)

    def test_a_real_peak_is_restored_when_it_has_passed(self) -> None:
        rule = make_rule("peak-synergy", TWO, stop_patience=3)
        synergies = (0.3, 0.6, 0.8, 0.5, 0.5, 0.4)
        decisions = run(rule, [reading(10 * (i + 1), synergy=s) for i, s in enumerate(synergies)])
        assert [d.peak for d in decisions] == [True, True, True, False, False, False]
        assert [d.ends_stage for d in decisions] == [False] * 5 + [True]
        assert decisions[-1].restore == 30
        assert "synergy 0.40 bits, best 0.80" in decisions[-1].reason
        assert "the weights of step 30" in decisions[-1].reason

    def test_the_bound_restores_the_peak_too(self) -> None:
        rule = make_rule("peak-synergy", TWO)
        decisions = run(
            rule, [reading(300, synergy=0.8), reading(400, synergy=0.4), reading(500, synergy=0.4)]
        )
        assert [d.ends_stage for d in decisions] == [False, False, True]
        assert decisions[-1].restore == 300

    def test_slow_decay_is_not_a_row_of_ties(self) -> None:
        rule = make_rule("peak-synergy", TWO)
        # each step down is under 0.05, the sum is not: 0.40, 0.36 tie with 0.40; 0.32 does not
        decisions = run(rule, [reading(10 * (i + 1), synergy=0.40 - 0.04 * i) for i in range(4)])
        assert [d.peak for d in decisions] == [True, True, False, False]

    def test_overfitting_restores_the_better_weights(self) -> None:
        rule = make_rule("peak-synergy", TWO)
        decisions = run(rule, [reading(400, accuracy=(0.8, 0.8)), reading(500, accuracy=(0.75, 0.75))])
        assert decisions[-1].restore == 400


class TestPeakSynergyNothingToLearn:
    def probe(self, step: int, synergy: float = 0.9, accuracy: float = 0.1) -> Reading:
        return reading(step, (0.02, 0.01), synergy, (accuracy, 0.1), redundancy=0.01)

    def test_pure_synergy_ends_stage_one_at_once(self) -> None:
        decisions = run(make_rule("peak-synergy", TWO), [self.probe(10), self.probe(20, accuracy=0.11)])
        assert [d.ends_stage for d in decisions] == [False, True]
        assert "teach nothing" in decisions[-1].reason
        assert "synergy 0.90 bits" in decisions[-1].reason

    def test_without_synergy_it_waits_longer(self) -> None:
        decisions = run(
            make_rule("peak-synergy", TWO), [self.probe(10 * i, synergy=0.01) for i in range(1, 6)]
        )
        assert [d.ends_stage for d in decisions] == [False, False, False, False, True]

    def test_a_rising_accuracy_is_learning(self) -> None:
        rule = make_rule("peak-synergy", TWO)
        readings = [self.probe(10 * i, accuracy=0.1 + 0.05 * i) for i in range(1, 8)]
        # the first reading has nothing before it to rise above, so it counts once; the next resets the count
        assert not any(d.ends_stage for d in run(rule, readings))


class TestWeakFirst:
    def test_leader_goes_back_and_waits_until_half_the_budget(self) -> None:
        rule = make_rule("weak-first", TWO)
        # Epoch 0.5: too early to compare.
        early = rule.decide(reading(5, (0.9, 0.1)))
        assert (early.training, early.reset) == (TWO, ())
        switch = rule.decide(reading(10, (0.9, 0.1)))
        assert (switch.training, switch.reset, switch.peak) == (("audio",), ("image",), False)
        assert "image paused and put back" in switch.reason
        assert "9.0 times audio's" in switch.reason
        # the leader's present uniqueness no longer matters
        later = run(
            rule, [reading(s, (0.0, 0.5), accuracy=(0.1, 0.3 + s / 1000)) for s in (100, 300, 499, 500)]
        )
        assert [d.training for d in later[:3]] == [("audio",)] * 3
        assert not any(d.ends_stage for d in later[:3])
        assert (later[3].ends_stage, later[3].restore, later[3].training) == (True, None, TWO)

    def test_plateau_ends_the_weak_phase_and_never_restores_the_leaders_head_start(self) -> None:
        rule = make_rule("weak-first", TWO, plateau_patience=3)
        rule.decide(reading(10, (0.9, 0.1), accuracy=(0.9, 0.9)))
        # Best 0.50 at 30; 0.495 ties with it at 40.
        accuracies = (0.30, 0.50, 0.495, 0.45, 0.45)
        decisions = run(rule, [reading(20 + 10 * i, accuracy=(0.1, a)) for i, a in enumerate(accuracies)])
        assert [d.peak for d in decisions] == [True, True, True, False, False]
        assert [d.ends_stage for d in decisions] == [False] * 4 + [True]
        assert decisions[-1].restore == 40

    @pytest.mark.parametrize("unique", [(0.60, 0.21), (0.18, 0.04), (0.3, 0.3)])
    def test_no_leader_after_three_epochs_means_joint_training(self, unique: tuple[float, float]) -> None:
        rule = make_rule("weak-first", TWO)
        decisions = run(rule, [reading(s, unique, floor=0.01) for s in (10, 20, 30)])
        assert [d.training for d in decisions] == [TWO] * 3
        assert [d.ends_stage for d in decisions] == [False, False, True]
        assert (decisions[-1].restore, decisions[-1].reset) == (None, ())

    def test_a_leader_found_at_the_third_epoch_counts(self) -> None:
        rule = make_rule("weak-first", TWO)
        decisions = run(rule, [reading(10), reading(20), reading(30, (0.1, 0.7))])
        assert (decisions[-1].training, decisions[-1].reset) == (("image",), ("audio",))

    def test_the_leader_of_three_must_lead_everyone(self) -> None:
        three = ("a", "b", "c")
        two_ahead = make_rule("weak-first", three).decide(
            reading(10, (0.9, 0.8, 0.05), accuracy=(0.5,) * 3, modalities=three)
        )
        assert two_ahead.training == three
        one_ahead = make_rule("weak-first", three).decide(
            reading(10, (0.9, 0.2, 0.05), accuracy=(0.5,) * 3, modalities=three)
        )
        assert (one_ahead.training, one_ahead.reset) == (("b", "c"), ("a",))


class TestFixedSchedule:
    def test_shares_of_the_budget(self) -> None:
        rule = make_rule("fixed", TWO, schedule=[(0.2, ["audio"]), (0.2, ["audio", "image"])])
        assert rule.initial_training == ("audio",)
        decisions = run(rule, [reading(s) for s in (0, 199, 200, 399, 400)])
        assert [d.training for d in decisions] == [("audio",), ("audio",), TWO, TWO, TWO]
        assert [d.ends_stage for d in decisions] == [False, False, False, False, True]
        assert decisions[-1].restore is None

    def test_epochs(self) -> None:
        rule = make_rule("fixed", TWO, schedule=[(2, "image"), (3, "audio")], unit="epochs")
        decisions = run(rule, [reading(s) for s in (10, 20, 40, 50)])
        assert [d.training for d in decisions] == [("image",), ("audio",), ("audio",), TWO]
        assert decisions[-1].ends_stage

    def test_the_bound_holds_for_epochs_too(self) -> None:
        rule = make_rule("fixed", TWO, schedule=[(60, "image")], unit="epochs")
        assert rule.decide(reading(500)).ends_stage

    def test_tenths_add_up(self) -> None:
        # 0.1 + 0.1 + 0.1 is 0.30000000000000004
        rule = make_rule("fixed", TWO, schedule=[(0.1, "image")] * 3)
        assert rule.decide(reading(300)).ends_stage

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"schedule": []}, "schedule is empty"),
            (
                {"schedule": [(0.4, ["image"]), (0.3, ["audio"])]},
                "0.7 of the budget.*raise max_unimodal_share",
            ),
            ({"schedule": [(0.2, ["video"])]}, r"some of \['image', 'audio'\], got \['video'\]"),
            ({"schedule": [(0.2, [])]}, "some of"),
            ({"schedule": [(0, ["image"])]}, "length > 0"),
            ({"schedule": ["image"]}, "pairs"),
            ({"schedule": [(0.2, ["image"])], "unit": "steps"}, "'share' or 'epochs', got 'steps'"),
            ({}, "needs the option 'schedule'"),
        ],
    )
    def test_bad_schedules(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_rule("fixed", TWO, **options)


OPTIONS: dict[str, dict[str, Any]] = {
    "adaptive": {"saturation": 0.6},
    "published": {},
    "peak-synergy": {"stop_patience": 3},
    "weak-first": {},
    "fixed": {"schedule": [(0.05, ["audio"]), (0.05, ["image"])]},
}


def scattered_readings() -> list[Reading]:
    """A run with a leader, a catching up, a peak and a decline."""
    rows = [
        ((0.3, 0.2), 0.5, (0.4, 0.3)),
        ((0.9, 0.2), 0.6, (0.6, 0.35)),
        ((0.9, 0.2), 0.7, (0.7, 0.4)),
        ((0.8, 0.4), 0.7, (0.7, 0.5)),
        ((0.8, 0.6), 0.8, (0.7, 0.6)),
        ((0.7, 0.6), 0.6, (0.7, 0.65)),
        ((0.7, 0.6), 0.5, (0.7, 0.65)),
        ((0.7, 0.6), 0.4, (0.7, 0.65)),
        ((0.7, 0.6), 0.4, (0.7, 0.65)),
    ]
    return [reading(10 * (i + 1), u, s, a, plugin_synergy=1.0 + s) for i, (u, s, a) in enumerate(rows)]


@pytest.mark.parametrize("name", list(RULES))
def test_a_restore_at_any_reading_gives_the_same_decisions(name: str) -> None:
    readings = scattered_readings()
    expected = run(make_rule(name, TWO, **OPTIONS[name]), readings)
    rule = make_rule(name, TWO, **OPTIONS[name])
    decisions = []
    for item in readings:
        saved = json.dumps(rule.state_dict(), allow_nan=False)
        rule = make_rule(name, TWO, **OPTIONS[name])
        rule.load_state_dict(json.loads(saved))
        assert rule.state_dict() == json.loads(saved)
        decisions.append(rule.decide(item))
    assert decisions == expected
    # The run is worth comparing.
    assert len({d.training for d in expected}) > 1


@pytest.mark.parametrize("name", list(RULES))
class TestEveryRule:
    def make(self, name: str, **options: Any) -> Rule:
        return make_rule(name, TWO, **OPTIONS[name], **options)

    def test_everything_trains_in_the_joint_stage(self, name: str) -> None:
        rule = self.make(name)
        decisions = run(rule, [replace(item, stage="joint", progress=0.9) for item in scattered_readings()])
        assert all(
            d.training == TWO and not d.ends_stage and d.restore is None and not d.peak for d in decisions
        )

    def test_stage_one_ends_at_its_share_of_the_budget(self, name: str) -> None:
        rule = self.make(name, max_unimodal_share=0.25)
        assert not rule.decide(reading(9)).ends_stage
        # 0.1 + 0.2 is 0.30000000000000004, a hair above the progress of 0.3
        assert self.make(name, max_unimodal_share=0.1 + 0.2).decide(reading(300)).ends_stage
        assert rule.decide(reading(250)).ends_stage

    def test_a_restored_step_had_its_peak_marked_last(self, name: str) -> None:
        rule, peaks = self.make(name), []
        for item in scattered_readings():
            decision = rule.decide(item)
            if decision.peak:
                peaks.append(item.step)
            if decision.ends_stage:
                assert decision.restore is None or decision.restore == peaks[-1]
                break
        else:
            last = rule.decide(reading(900))
            assert last.ends_stage
            assert last.restore is None or last.restore == peaks[-1]

    def test_every_decision_has_a_reason_in_one_line(self, name: str) -> None:
        for decision in run(self.make(name), scattered_readings()):
            assert len(decision.reason) > 10
            assert "\n" not in decision.reason

    @pytest.mark.parametrize("value", [math.nan, math.inf, None])
    @pytest.mark.parametrize("group", ["unique", "accuracy", "floor"])
    def test_a_broken_value_is_named(self, name: str, group: str, value: float | None) -> None:
        broken = changed(reading(10), **{group: {**getattr(reading(10), group), "audio": value}})
        with pytest.raises(ValueError, match=rf"{group}\['audio'\] is (nan|inf|missing)"):
            self.make(name).decide(broken)

    def test_a_broken_synergy_is_named(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"reading.synergy is nan"):
            self.make(name).decide(reading(10, synergy=math.nan))

    def test_an_unknown_stage_is_named(self, name: str) -> None:
        with pytest.raises(ValueError, match="'fusion'"):
            self.make(name).decide(reading(10, stage="fusion"))

    def test_an_unknown_option_lists_the_allowed_ones(self, name: str) -> None:
        with pytest.raises(ValueError, match=rf"'patient'.*{name}.*max_unimodal_share"):
            self.make(name, patient=3)

    def test_the_state_of_another_run_is_refused(self, name: str) -> None:
        rule = self.make(name)
        with pytest.raises(ValueError, match="rule 'other'"):
            rule.load_state_dict({**rule.state_dict(), "rule": "other"})
        with pytest.raises(ValueError, match=r"modalities \['image', 'text'\]"):
            rule.load_state_dict({**rule.state_dict(), "modalities": ["image", "text"]})

    @pytest.mark.parametrize("modalities", [("image",), "image", ("image", "image"), ("image", "fused"), ()])
    def test_bad_modalities(self, name: str, modalities: Any) -> None:
        with pytest.raises(ValueError, match="modalities"):
            make_rule(name, modalities, **OPTIONS[name])

    @pytest.mark.parametrize("share", [0, -1, 1.5, math.nan])
    def test_bad_share(self, name: str, share: float) -> None:
        with pytest.raises(ValueError, match="max_unimodal_share"):
            self.make(name, max_unimodal_share=share)


class AudioFirst(Rule):
    """The example of Rule's documentation."""

    initial_training = ("audio",)

    def decide_unimodal(self, reading: Reading) -> Decision:
        if reading.accuracy["audio"] < 0.5:
            return self.train(reading, ["audio"], "audio trains alone until its accuracy is 0.5")
        return self.end_stage(reading, "audio's accuracy has reached 0.5")


class TestOwnRule:
    def test_by_class_and_by_instance(self) -> None:
        for rule in (make_rule(AudioFirst, TWO), make_rule(AudioFirst(TWO), TWO)):
            assert rule.initial_training == ("audio",)
            alone, over = run(rule, [reading(10, accuracy=(0.9, 0.4)), reading(20, accuracy=(0.9, 0.6))])
            assert (alone.training, alone.ends_stage) == (("audio",), False)
            assert (over.training, over.ends_stage) == (TWO, True)

    def test_options_reach_a_class_that_passes_them_on(self) -> None:
        class Passing(AudioFirst):
            def __init__(self, modalities: tuple[str, ...], **options: Any) -> None:
                super().__init__(modalities, **options)

        assert make_rule(Passing, TWO, max_unimodal_share=0.3).max_unimodal_share == 0.3

    def test_a_marked_peak_is_restored_until_a_reset_forgets_it(self) -> None:
        class Resetting(Rule):
            resets = True

            def decide_unimodal(self, reading: Reading) -> Decision:
                if reading.step == 10:
                    self.mark_peak(reading)
                if reading.step == 30:
                    return self.train(reading, ["audio"], "image starts again", reset=["image"])
                return self.train(reading, TWO, "all train")

        rule = make_rule(Resetting, TWO)
        assert [rule.decide(reading(s)).peak for s in (10, 20)] == [True, False]
        assert rule.decide(reading(600)).restore == 10
        rule.decide(reading(30))
        assert rule.decide(reading(600)).restore is None

    def test_mistakes_are_sentences(self) -> None:
        class Nobody(Rule):
            def decide_unimodal(self, reading: Reading) -> Decision:
                return self.train(reading, [], "nobody trains")

        class Resets(Rule):
            def decide_unimodal(self, reading: Reading) -> Decision:
                return self.train(reading, ["audio"], "image starts again", reset=["image"])

        with pytest.raises(ValueError, match="must be some of"):
            make_rule(Nobody, TWO).decide(reading(10))
        with pytest.raises(ValueError, match="resets = True"):
            make_rule(Resets, TWO).decide(reading(10))
        with pytest.raises(TypeError, match="must define decide_unimodal"):
            make_rule(Rule, TWO).decide(reading(10))
        with pytest.raises(ValueError, match=r"\['image', 'audio'\], the model has \['image', 'text'\]"):
            make_rule(AudioFirst(TWO), ("image", "text"))
        with pytest.raises(ValueError, match="made already"):
            make_rule(AudioFirst(TWO), TWO, max_unimodal_share=0.3)
        with pytest.raises(TypeError, match="must be a name"):
            make_rule(3, TWO)  # type: ignore[arg-type]
        with pytest.raises(
            ValueError,
            match=r"unknown rule 'peak'.*'adaptive', 'fixed', 'peak-synergy', 'published', 'weak-first'",
        ):
            make_rule("peak", TWO)


class TestStageTwo:
    leads = (0.82, 0.2)

    def decisions(self, rule: Rule) -> list[Decision]:
        first = [reading(10 * n, self.leads) for n in (1, 2)]
        return run(rule, [*first, *(reading(10 * n, self.leads, stage="joint") for n in (3, 4, 5))])

    def test_nobody_is_paused_unless_it_is_allowed(self) -> None:
        assert all(d.training == TWO for d in self.decisions(make_rule("peak-synergy", TWO))[2:])

    def test_a_clear_leader_is_paused_after_the_same_patience_as_in_stage_one(self) -> None:
        rule = make_rule("peak-synergy", TWO, context=RunContext(joint_pausing=True))
        found = self.decisions(rule)
        assert found[1].training == (TWO[1],)
        assert [d.training for d in found[2:]] == [TWO, (TWO[1],), (TWO[1],)]
        assert (
            found[3].reason
            == f"{TWO[0]} paused: its uniqueness 0.82 bits is 4.1 times {TWO[1]}'s, floor 0.05"
        )
        assert not any(d.ends_stage for d in found)

    def test_a_decision_that_stage_two_does_not_know_is_refused(self) -> None:
        class Ends(Rule):
            def decide_joint(self, reading: Reading) -> Decision:
                return self.end_stage(reading, "no reason")

        rule = Ends(TWO).in_context(RunContext(joint_pausing=True))
        with pytest.raises(ValueError, match="which stage 2 cannot do"):
            rule.decide(reading(10, stage="joint"))


def test_a_given_length_of_stage_one_outlasts_the_rule() -> None:
    rule = make_rule("fixed", TWO, context=RunContext(ends_early=False), schedule=[(0.1, [TWO[0]])])
    early, late = (rule.decide(reading(step)) for step in (200, 500))
    assert (early.ends_stage, late.ends_stage) == (False, True)
    assert early.reason == (
        "stage 1 goes on, for its length is given: otherwise it would end, the fixed schedule is over at 20% of the "
        "budget"
    )


def test_the_controller_needs_neither_torch_nor_transformers() -> None:
    # the package's own __init__ may import anything: a bare package with the same path takes its place
    code = f"""
import sys, types
package = types.ModuleType("ecsfusion")
package.__path__ = [{str(Path(controller.__file__).parents[1])!r}]
sys.modules["ecsfusion"] = package
import ecsfusion.controller
sys.exit(any(name in sys.modules for name in ("torch", "transformers", "numpy")))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
