"""What a run remembers: plateaus, probes and measurements as JSON text, and the records of older versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import killed_run
import pytest
from older_records import entry_of_format_1, record_of_format_1
from readings import make_information, make_measurement, make_probe, make_reading

from ecsfusion.controller import Decision, Reading, make_rule
from ecsfusion.controller.plateau import is_behind, plateau, readings_without_rise
from ecsfusion.controller.pretrain_then_reset import PretrainThenReset
from ecsfusion.controller.probe import Probe
from ecsfusion.evaluation.measurement import Information, Measurement, Scale
from ecsfusion.training.best_heads import folder_of
from ecsfusion.training.checkpoints import seal
from ecsfusion.training.record import StageRecord, check_saved_record
from ecsfusion.training.record_formats import FORMAT

RECORDS = Path(__file__).parent / "records"
"""As version 0.1.0 saved them in format 1, at commit 92e2608: the run of `killed_run.py` under these rules."""
TWO = ("image", "audio")


def through_text(values: dict[str, Any]) -> Any:
    """What a file of JSON gives back."""
    return json.loads(json.dumps(values, allow_nan=False))


class TestPlateau:
    def state(self) -> dict[str, Any]:
        return {"best_accuracy": None, "not_risen": 0}

    def test_the_first_reading_is_the_best_so_far(self) -> None:
        state = self.state()
        assert not is_behind(state, 0.0, 0.01)
        assert readings_without_rise(state, 0.0, 0.01) == 0
        assert state == {"best_accuracy": 0.0, "not_risen": 0}

    def test_only_a_rise_by_more_than_the_tolerance_counts(self) -> None:
        state = self.state()
        # 0.5625 is above 0.5 by the tolerance and not by more; 0.625 is above it by twice as much.
        accuracies = (0.5, 0.5, 0.5625, 0.25, 0.625, 0.5625)
        assert [readings_without_rise(state, accuracy, 0.0625) for accuracy in accuracies] == [
            0,
            1,
            2,
            3,
            0,
            1,
        ]
        assert state == {"best_accuracy": 0.625, "not_risen": 1}

    def test_a_slow_rise_counts_from_the_best_that_was_counted(self) -> None:
        state = self.state()
        # Each is above the one before by less than the tolerance; 0.625 is more than the tolerance above 0.5.
        accuracies = (0.5, 0.53125, 0.5625, 0.59375, 0.625)
        assert [readings_without_rise(state, accuracy, 0.0625) for accuracy in accuracies] == [0, 1, 2, 0, 1]

    def test_behind_is_below_the_best_by_more_than_the_tolerance(self) -> None:
        state = {"best_accuracy": 0.5, "not_risen": 2}
        assert [is_behind(state, accuracy, 0.0625) for accuracy in (0.9, 0.5, 0.4375, 0.43)] == [
            False,
            False,
            False,
            True,
        ]
        assert state == {"best_accuracy": 0.5, "not_risen": 2}, "to look changes nothing"

    def test_in_words(self) -> None:
        assert plateau({"best_accuracy": 0.5, "not_risen": 3}, 0.4375, 0.01, ["image", "audio"]) == (
            "in 3 readings the mean accuracy of image and audio has not risen by 0.01 above 0.500 and is 0.438"
        )

    def test_the_state_is_json(self) -> None:
        state, restored = self.state(), self.state()
        for accuracy in (0.3, 0.4, 0.4, 0.35):
            restored = through_text(restored)
            assert readings_without_rise(state, accuracy, 0.01) == readings_without_rise(
                restored, accuracy, 0.01
            )
        assert restored == state


class TestProbe:
    @pytest.mark.parametrize(
        ("values", "restored"),
        [
            ({}, None),
            # A peak is kept, and stage 1 goes on.
            ({"peak": True}, None),
            # The rule would end stage 1, whose length is given.
            ({"overdue": True}, None),
            # Some, or all, start again within stage 1.
            ({"reset": ("image",), "next_training": ("audio",)}, None),
            ({"reset": TWO}, None),
            # The present weights start stage 2.
            ({"ends_stage": True, "peak": True}, 100),
            # Those of an earlier reading do, be it the very first.
            ({"ends_stage": True, "restore": 40}, 40),
            ({"ends_stage": True, "restore": 0}, 0),
            # One modality is reset, the others keep the present weights.
            ({"ends_stage": True, "reset": ("image",)}, 100),
            # All are: the initial weights do, whatever was kept.
            ({"ends_stage": True, "reset": TWO, "peak": True}, 0),
            # Stage 2 ends nothing.
            ({"stage": "joint", "ends_stage": True}, None),
            ({"stage": "joint"}, None),
        ],
    )
    def test_what_was_restored(self, values: dict[str, Any], restored: int | None) -> None:
        assert make_probe(100, **values).restored == restored

    @pytest.mark.parametrize(
        ("stage", "trained_fused_head", "phase"),
        [
            ("unimodal", False, "unimodal"),
            ("unimodal", True, "scouting"),
            ("joint", True, "joint"),
            # A strategy may freeze the fused head.
            ("joint", False, "joint"),
        ],
    )
    def test_the_phase_it_ended(self, stage: str, trained_fused_head: bool, phase: str) -> None:
        assert make_probe(stage=stage, trained_fused_head=trained_fused_head).phase == phase

    def test_it_tells_what_its_reading_tells(self) -> None:
        probe = make_probe(70, stage="joint", training=("audio",), next_training=TWO)
        assert (probe.step, probe.stage, probe.training) == (70, "joint", ("audio",))
        assert probe.decision.training == TWO


INFORMATION = make_information(
    interval={"image": (0.1, 0.3), "redundancy": (0.0, 0.5), "synergy": (0.25, 0.75)},
    num_clusters=(3, 4),
    plugin={"redundancy": 1.0, "unique": {"image": 0.1, "audio": 0.2}, "synergy": 1 / 3},
)
MEASUREMENTS = {
    "usual": make_measurement(),
    "all values": make_measurement(
        information=INFORMATION,
        complete_rows=900,
        reliability={"fused": {"confidence": [0.5, 0.9], "accuracy": [0.4, 1.0], "rows": [10, 20]}},
        seconds=1.5,
    ),
    "regression": make_measurement(
        score="r2", accuracy={"image": -0.3, "audio": 0.1, "fused": 0.5, "calibrated": 0.6}, chance=0.0
    ),
    "by heads": make_measurement(
        conditional_mutual_information=None, num_clusters=(), measured_dependence=0.125
    ),
    "without a decomposition": make_measurement(information=None),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
class TestText:
    """Every record is the same after it was written as JSON text and read again."""

    def test_measurement(self, name: str) -> None:
        measurement = MEASUREMENTS[name]
        found = Measurement.from_json(through_text(measurement.to_json()))
        assert found == measurement
        # It does not count when measurements are compared.
        assert found.seconds == measurement.seconds
        assert isinstance(found.scale, Scale)
        if measurement.information is not None:
            assert isinstance(found.information, Information)
            assert isinstance(found.information.num_clusters, tuple)
            assert all(isinstance(ends, tuple) for ends in found.information.interval.values())

    def test_reading(self, name: str) -> None:
        reading = make_reading(30, training=("audio",), measurement=MEASUREMENTS[name])
        found = Reading.from_json(through_text(reading.to_json()))
        assert found == reading
        assert isinstance(found.training, tuple)

    @pytest.mark.parametrize("trained_fused_head", [False, True])
    def test_probe(self, name: str, trained_fused_head: bool) -> None:
        probe = make_probe(
            30,
            measurement=MEASUREMENTS[name],
            training=TWO,
            next_training=("audio",),
            reset=("image",),
            trained_fused_head=trained_fused_head,
        )
        found = Probe.from_json(through_text(probe.to_json()))
        assert found == probe
        assert (found.phase, found.restored) == (probe.phase, probe.restored)


@pytest.mark.parametrize(
    "decision",
    [
        Decision(TWO, "all train"),
        Decision(("audio",), "image starts again", reset=("image",)),
        Decision(TWO, "stage 1 ends", ends_stage=True, restore=40),
        Decision(TWO, "stage 1 ends", ends_stage=True, peak=True, reset=TWO),
        Decision(TWO, "stage 1 goes on", peak=True, overdue=True),
    ],
)
def test_a_decision_is_the_same_after_text(decision: Decision) -> None:
    found = Decision.from_json(through_text(decision.to_json()))
    assert found == decision
    assert isinstance(found.training, tuple)
    assert isinstance(found.reset, tuple)


def test_a_whole_record_is_the_same_after_text() -> None:
    rule = make_rule("adaptive", TWO)
    record = StageRecord(
        stage="unimodal",
        training=["audio"],
        stage_start=0,
        peak_step=20,
        pending=Decision(TWO, "stage 1 ends", ends_stage=True, restore=20),
        best_heads={"image": [10, 0.5, -0.25]},
        processes=2,
        rule=rule.state_dict(),
        strategy={"order": ["audio", "image"]},
        history=[make_probe(10), make_probe(20, peak=True), make_probe(30, ends_stage=True, restore=20)],
        warnings=[{"step": 10, "diagnostic": "few rows", "about": "", "sentence": "few rows."}],
    )
    saved = through_text(record.to_json())
    assert saved["format"] == FORMAT
    assert StageRecord.from_json(saved) == record


# ---- records of older versions ----


def saved_by_format_1(name: str) -> dict[str, Any]:
    return json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))


NAMES = sorted(path.stem for path in RECORDS.glob("*.json"))
BOTH = ("left", "right")
WAITS = {"saturation": 0.3, "ratio": 0.01, "margin": 0.001, "dependence": 5.0}
PAUSES = {"ratio": 0.05, "margin": 0.001, "patience": 1, "stop_patience": 4}
RESETS = {"ratio": 0.01, "margin": 0.001, "min_epochs": 0.2, "max_epochs": 2.0}
RULES_OF: dict[str, dict[str, Any]] = {
    "adaptive-10": {"rule": "adaptive"},
    "adaptive-waits-15": {"rule": "adaptive", **WAITS},
    "peak-synergy-8": {"rule": "peak-synergy", **PAUSES},
    "peak-synergy-12": {"rule": "peak-synergy", **PAUSES},
    "weak-first-6": {"rule": "weak-first", **RESETS},
}
"""The rules of the recorded runs, with the options that those had."""


def test_every_recorded_rule_is_tested() -> None:
    assert set(NAMES) == set(RULES_OF)


@pytest.mark.parametrize("name", NAMES)
class TestFormat1:
    def test_stage_and_steps(self, name: str) -> None:
        saved = saved_by_format_1(name)
        assert saved["format"] == 1
        record = StageRecord.from_json(saved)
        for field in (
            "stage",
            "training",
            "stage_start",
            "peak_step",
            "best_heads",
            "processes",
            "strategy",
        ):
            assert getattr(record, field) == saved[field], field

    def test_history(self, name: str) -> None:
        saved = saved_by_format_1(name)
        record = StageRecord.from_json(saved)
        assert (
            len(record.history)
            == len(saved["history"])
            == int(name.rpartition("-")[2]) // 2
            + (
                # Its stage 1 ended at step 15, between two evaluations.
                name == "adaptive-waits-15"
            )
        )
        for probe, entry in zip(record.history, saved["history"], strict=True):
            reading, decision = probe.reading, probe.decision
            assert (probe.step, probe.stage, list(probe.training)) == (
                entry["step"],
                entry["stage"],
                entry["training"],
            )
            assert reading.epoch == entry["epoch"]
            for key in ("redundancy", "unique", "synergy", "floor"):
                assert getattr(reading, key) == entry[key], key
            assert reading.mutual_information == entry["information"]
            assert reading.dependence == entry["conditional_dependence"]
            assert reading.accuracy == {**entry["accuracy"], "calibrated": entry["calibrated"]}
            assert (decision.reason, decision.peak, decision.overdue, list(decision.reset)) == (
                entry["reason"],
                entry["peak"],
                entry["overdue"],
                entry["reset"],
            )
            assert probe.restored == entry["restored"]
            assert probe.trained_fused_head == entry["fused_trains"]

    def test_who_trained_after_a_probe(self, name: str) -> None:
        record = StageRecord.from_json(saved_by_format_1(name))
        for probe, following in zip(record.history, record.history[1:], strict=False):
            assert probe.decision.training == following.training
        if record.pending is None:
            assert list(record.history[-1].decision.training) == record.training
        else:
            # The decision itself is there still: the last probe must tell the same.
            assert record.history[-1].decision == record.pending

    def test_pending_decision(self, name: str) -> None:
        saved = saved_by_format_1(name)
        pending = StageRecord.from_json(saved).pending
        if saved["pending"] is None:
            assert pending is None
            return
        assert pending is not None
        values = {**pending.to_json(), "stage_over": pending.ends_stage}
        del values["ends_stage"]
        assert values == saved["pending"]

    def test_warnings(self, name: str) -> None:
        saved = saved_by_format_1(name)
        found = StageRecord.from_json(saved).warnings
        assert len(found) == len(saved["warnings"]) > 0
        for warning, before in zip(found, saved["warnings"], strict=True):
            assert warning == {
                "step": before["step"],
                "diagnostic": before["signature"],
                "about": before["about"],
                "sentence": before["sentence"],
            }

    def test_the_rule_takes_up_its_state(self, name: str) -> None:
        record = StageRecord.from_json(saved_by_format_1(name))
        options = dict(RULES_OF[name])
        rule = make_rule(options.pop("rule"), BOTH, **options)
        fresh = rule.state_dict()
        rule.load_state_dict(record.rule)
        assert rule.state_dict() == record.rule
        # No value is missing, and none has a name that is no longer known.
        assert record.rule["state"].keys() == fresh["state"].keys()
        assert rule.peak_step == record.peak_step
        # It decides on from there.
        reading = make_reading(
            30, progress=0.4, stage=record.stage, training=record.training, modalities=BOTH
        )
        assert set(rule.decide(reading).training) <= set(BOTH)

    def test_it_is_saved_in_the_present_format(self, name: str) -> None:
        record = StageRecord.from_json(saved_by_format_1(name))
        saved = through_text(record.to_json())
        assert saved["format"] == FORMAT
        assert StageRecord.from_json(saved) == record

    def test_a_checkpoint_with_it_is_whole(self, name: str, tmp_path: Path) -> None:
        callback = {"args": {}, "attributes": {"saved_record": saved_by_format_1(name)}}
        state = {"stateful_callbacks": {"ControllerCallback": callback}}
        (tmp_path / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
        assert check_saved_record(tmp_path) == []

    def test_format_0_is_read_as_well(self, name: str) -> None:
        """It lacked five fields, and its entries four of what there is now."""
        saved = saved_by_format_1(name)
        older = {
            key: value
            for key, value in saved.items()
            if key not in ("format", "ecsfusion", "best_heads", "processes", "strategy", "warnings")
        }
        later = ("information", "conditional_dependence", "fused_trains", "overdue", "reset", "epoch")
        older["history"] = [
            {key: value for key, value in entry.items() if key not in later} for entry in saved["history"]
        ]
        record, whole = StageRecord.from_json(older), StageRecord.from_json(saved)
        assert (record.best_heads, record.processes, record.strategy, record.warnings) == ({}, 0, {}, [])
        assert (record.stage, record.training, record.peak_step) == (
            whole.stage,
            whole.training,
            whole.peak_step,
        )
        assert (record.pending, record.rule) == (whole.pending, whole.rule)
        for probe, expected in zip(record.history, whole.history, strict=True):
            assert (probe.step, probe.training, probe.restored) == (
                expected.step,
                expected.training,
                expected.restored,
            )
            assert probe.reading.unique == expected.reading.unique
            assert probe.reading.mutual_information == {}
            assert probe.trained_fused_head == (probe.stage == "joint")


def test_what_the_recorded_runs_were_about() -> None:
    records = {name: StageRecord.from_json(saved_by_format_1(name)) for name in NAMES}
    scouted = records["adaptive-10"]
    assert [probe.phase for probe in scouted.history] == ["scouting"] * 2 + ["unimodal"] * 3
    assert scouted.pending is not None
    assert scouted.pending.ends_stage
    waited = records["adaptive-waits-15"]
    assert waited.history[0].decision.reset == ("left",)
    assert waited.history[-1].restored == 12
    assert waited.rule["state"]["waiting"] == "left"
    paused = records["peak-synergy-8"]
    assert list(paused.rule["state"]["paused"]) == ["left"]
    assert paused.rule["state"]["waiting"]["not_risen"] >= 0
    assert records["peak-synergy-12"].stage == "joint"
    assert records["weak-first-6"].rule["state"]["leader"] == "left"


def test_a_state_of_peak_synergy_keeps_what_it_waited_for() -> None:
    saved = saved_by_format_1("peak-synergy-8")
    state = StageRecord.from_json(saved).rule["state"]
    before = saved["rule"]["state"]
    assert state["waiting"] == {"best_accuracy": before["waiting_accuracy"], "not_risen": before["waited"]}


def test_a_state_of_weak_first_keeps_what_it_waited_for() -> None:
    saved = saved_by_format_1("weak-first-6")
    state, before = StageRecord.from_json(saved).rule["state"], saved["rule"]["state"]
    assert (state["not_risen"], state["best_accuracy"]) == (before["waited"], before["best_accuracy"])


def test_a_rehearsal_is_pretraining_that_is_reset() -> None:
    """The rule "rehearsal" of format 1 is called "pretrain-then-reset" now; its stage 2 starts anew."""
    saved = saved_by_format_1("adaptive-10")
    saved["rule"] = {"rule": "rehearsal", "modalities": list(BOTH), "peak_step": 10, "state": {}}
    saved["history"][-1] |= {"restored": 0, "reset": list(BOTH)}
    saved["pending"] |= {"reset": list(BOTH), "restore": None}
    record = StageRecord.from_json(saved)
    rule = PretrainThenReset(BOTH)
    rule.load_state_dict(record.rule)
    assert rule.peak_step == 10
    assert record.history[-1].decision == record.pending
    assert record.history[-1].restored == 0


def test_a_record_without_probes_is_read() -> None:
    saved = {**saved_by_format_1("adaptive-10"), "history": [], "pending": None, "rule": {}, "warnings": []}
    record = StageRecord.from_json(saved)
    assert (record.history, record.pending, record.rule) == ([], None, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": FORMAT + 1}, rf"format {FORMAT + 1}.*reads formats 0 to {FORMAT}"),
        ({"format": "1"}, "format '1'"),
        ({"training": None}, "without 'training'"),
        ({"mood": "good"}, "with 'mood'"),
    ],
)
def test_what_cannot_be_read_is_named(changes: dict[str, Any], message: str) -> None:
    saved = {**saved_by_format_1("adaptive-10"), **changes}
    saved = {key: value for key, value in saved.items() if value is not None or key in ("pending",)}
    with pytest.raises(ValueError, match=message):
        StageRecord.from_json(saved)


# ---- a whole checkpoint of an older version ----


def to_format_1(checkpoint: Path) -> None:
    """Give a checkpoint the record and the names of folders that version 0.1.0 would have written."""
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    attributes = state["stateful_callbacks"]["ControllerCallback"]["attributes"]
    saved = attributes["saved_record"]
    attributes["saved_record"] = record_of_format_1(saved)
    assert set(attributes["saved_record"]) == set(saved_by_format_1("adaptive-10"))
    file.write_text(json.dumps(state), encoding="utf-8")
    for name in BOTH:
        (checkpoint / folder_of(name)).rename(checkpoint / f"best-{name}")
    seal(checkpoint)


def test_a_run_goes_on_from_a_checkpoint_of_format_1(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = {"moves": False, "strategy": "adaptive", "save_steps": 8, "save_total_limit": None}
    expected = killed_run.train(whole, False, **options)
    shutil.copytree(whole / "checkpoint-8", resumed / "checkpoint-8")
    to_format_1(resumed / "checkpoint-8")
    found = killed_run.train(resumed, True, **options)
    one, other = killed_run.outcome(whole), killed_run.outcome(resumed)
    # The probes of before have lost what format 1 did not keep.
    assert set(killed_run.differences(one, other)) <= {"decisions"}
    before = [probe for probe in expected.record.history if probe.step <= 8]
    assert found.record.history[len(before) :] == expected.record.history[len(before) :]
    assert [entry_of_format_1(probe) for probe in found.record.history] == [
        entry_of_format_1(probe) for probe in expected.record.history
    ]
    assert found.record.best_heads == expected.record.best_heads
    assert found.model.config.best_heads == expected.model.config.best_heads
    assert found.record.rule == expected.record.rule
