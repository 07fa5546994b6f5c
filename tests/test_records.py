"""What a run remembers: plateaus, probes and measurements as JSON text, and the records of older versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from readings import make_information, make_measurement, make_probe, make_reading

from ecsfusion.controller import Decision, Reading, make_rule
from ecsfusion.controller.plateau import is_behind, plateau, readings_without_rise
from ecsfusion.controller.probe import Probe
from ecsfusion.evaluation.measurement import Information, Measurement, Scale
from ecsfusion.training.record import StageRecord
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


def names_of_records() -> list[str]:
    return sorted(path.stem for path in RECORDS.glob("*.json"))
