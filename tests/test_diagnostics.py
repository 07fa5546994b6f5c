"""Every diagnostic on hand-made readings: one that has the failure, and healthy ones that are near and have not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from fusion_fixtures import two_views
from readings import make_information, make_measurement, make_probe, make_reading
from torch import Tensor

from ecsfusion.controller.decision import PauseThreshold
from ecsfusion.controller.probe import Probe
from ecsfusion.controller.registry import make_rule
from ecsfusion.diagnostics.duplicate import MIN_TOLD, duplicate
from ecsfusion.diagnostics.estimate import atoms_below_noise, few_rows, wide_certificate
from ecsfusion.diagnostics.finding import Finding
from ecsfusion.diagnostics.late_decision import late_end_of_stage, late_pause
from ecsfusion.diagnostics.long_warm_up import long_warm_up
from ecsfusion.diagnostics.memorization import memorized
from ecsfusion.diagnostics.no_information import information_lost, no_information
from ecsfusion.diagnostics.short_stage import only_scouting, short_stage
from ecsfusion.diagnostics.shortcut import shortcut
from ecsfusion.diagnostics.starved_heads import starved_heads
from ecsfusion.evaluation.measurement import Information, Measurement, Scale
from ecsfusion.evaluation.rounding import told_apart
from ecsfusion.pid.decomposition import decompose
from ecsfusion.pid.linear_share import linear_share
from ecsfusion.reporting.heads import compare_heads

BOTH = ("image", "audio")
THRESHOLD = PauseThreshold(ratio=3.0, margin=0.15, patience=2)
HEALTHY: dict[str, Any] = {
    "rows": 500,
    "chance": 0.1,
    "redundancy": 0.5,
    "unique": {"image": 0.8, "audio": 0.4},
    "synergy": 0.05,
    "mutual_information": {"image": 1.3, "audio": 0.9},
    "floor": {"image": 0.05, "audio": 0.05, "redundancy": 0.05, "synergy": 0.1},
    # The calibrated combination is better than all heads; no diagnostic speaks of it.
    "accuracy": {"image": 0.6, "audio": 0.45, "fused": 0.7, "calibrated": 0.8},
}
"""An evaluation in a healthy run of ten classes."""


def measurement(**values: Any) -> Measurement:
    return make_measurement(BOTH, **{**HEALTHY, **values})


def probe(step: int = 100, **values: Any) -> Probe:
    return make_probe(step, **{**HEALTHY, **values})


def stage_one(
    image: list[float],
    audio: list[float],
    bits: list[float] | None = None,
    restore: int | None = None,
    **end: Any,
) -> list[Probe]:
    """Probes with these accuracies, and bits of audio, the last of which ends stage 1."""
    history: list[Probe] = []
    for i, (a, b) in enumerate(zip(image, audio, strict=True)):
        last = i == len(image) - 1
        history.append(
            probe(
                100 * (i + 1),
                accuracy={"image": a, "audio": b, "fused": 0.7},
                mutual_information={"image": 1.3, "audio": 0.9 if bits is None else bits[i]},
                **({"ends_stage": True, "restore": restore, **end} if last else {}),
            )
        )
    return history


def decomposition(
    mutual_information: tuple[float, float] = (1.3, 0.9),
    unique: tuple[float, float] = (0.8, 0.4),
    synergy: float = 0.02,
    dependence: float = 0.02,
    **others: Any,
) -> Information:
    return make_information(
        BOTH,
        redundancy=mutual_information[0] - unique[0],
        unique=dict(zip(BOTH, unique, strict=True)),
        synergy=synergy,
        mutual_information=dict(zip(BOTH, mutual_information, strict=True)),
        conditional_mutual_information=dependence,
        floor={"redundancy": 0.03, "image": 0.05, "audio": 0.05, "synergy": 0.1},
        **others,
    )


def about(findings: Any) -> list[str]:
    return [finding.about for finding in findings]


FLAT, RISING = [0.58, 0.62, 0.59, 0.61], [0.2, 0.25, 0.35, 0.4]


class TestShortStage:
    def test_a_modality_that_was_still_learning_is_named_with_its_rise(self) -> None:
        (found,) = short_stage(stage_one(FLAT, RISING))
        assert found == Finding(
            "short stage",
            "audio",
            "stage 1 ended at step 400 while audio was still learning: on the average of two readings its accuracy of "
            "0.375 is 0.150 above that of the two readings before; give stage 1 more steps: a larger "
            "max_unimodal_share or unimodal_epochs, or more epochs in all.",
        )

    def test_in_regression_the_score_is_no_accuracy(self) -> None:
        (found,) = short_stage(stage_one(FLAT, RISING, score="r2"))
        assert "its R² of 0.375 is 0.150 above" in found.sentence

    def test_information_counts_where_accuracy_does_not_rise(self) -> None:
        (found,) = short_stage(stage_one(FLAT, [0.1] * 4, bits=[0.1, 0.2, 0.4, 0.7]))
        assert found.about == "audio"
        assert "its 0.55 bits about the label are 0.40 more" in found.sentence

    @pytest.mark.parametrize(
        ("why", "history"),
        [
            ("a plateau that jumps by the noise of 500 rows", stage_one(FLAT, [0.40, 0.44, 0.43, 0.45])),
            ("a rise of a tenth of what was learnt", stage_one([0.80, 0.82, 0.87, 0.89], FLAT)),
            ("a jump that is over", stage_one([0.2, 0.6, 0.79, 0.8], FLAT)),
            ("too few readings to tell", stage_one(FLAT[:3], RISING[:3])),
            (
                "the modalities depend on each other",
                stage_one(FLAT, RISING, conditional_mutual_information=0.4),
            ),
            ("stage 2 starts anew", stage_one(FLAT, RISING, reset=BOTH)),
            ("it was paused", stage_one(FLAT, RISING, training=["image"])),
        ],
    )
    def test_nothing_is_said_of(self, why: str, history: list[Probe]) -> None:
        assert about(short_stage(history)) == [], why

    def test_the_readings_that_count_end_at_the_restored_weights(self) -> None:
        history = stage_one([*FLAT, 0.6, 0.6], [*RISING, 0.4, 0.4], restore=400)
        assert about(short_stage(history)) == ["audio"]
        history[-1] = replace(history[-1], decision=replace(history[-1].decision, restore=None))
        assert about(short_stage(history)) == []


class TestEstimate:
    def test_too_few_rows_for_the_classes(self) -> None:
        (found,) = few_rows(decomposition(num_samples=199))
        assert "199 probed rows of 10 classes" in found.sentence
        assert "here 200" in found.sentence
        assert about(few_rows(decomposition(num_samples=200))) == []
        (parts,) = few_rows(decomposition(num_samples=199), is_regression=True)
        assert "199 probed rows of 10 classes, into which the target is cut, are too few" in parts.sentence

    def test_too_few_rows_for_the_cells(self) -> None:
        # 0.1 x 64 x 64 x 9 / ln 10 = 1 601
        (found,) = few_rows(decomposition(num_samples=1600, num_clusters=(64, 64)))
        assert "at least 1601 rows, or fewer probe_clusters" in found.sentence
        assert about(few_rows(decomposition(num_samples=1601, num_clusters=(64, 64)))) == []

    def test_a_gap_counts_above_what_was_asked_for_and_above_the_noise(self) -> None:
        (found,) = wide_certificate(decomposition(gap=0.04))
        assert "certified to 0.040 bits only, not to 0.001" in found.sentence
        # The floor of redundancy is 0.03.
        assert about(wide_certificate(decomposition(gap=0.02))) == []

    def test_a_solver_that_was_stopped(self) -> None:
        table = torch.rand(12, 12, 4, generator=torch.Generator().manual_seed(0)) ** 8
        with pytest.warns(UserWarning, match="did not reach"):
            stopped = Information.from_pid(decompose(table, max_iterations=1))
        assert stopped.gap > 1e-3
        assert len([*wide_certificate(stopped)]) == 1
        assert about(wide_certificate(Information.from_pid(decompose(table)))) == []

    def test_a_probe_that_sees_nothing_of_what_a_head_knows(self) -> None:
        blind = {"redundancy": 0.01, "synergy": 0.0, "unique": {"image": 0.04, "audio": 0.0}}
        (found,) = atoms_below_noise(measurement(**blind))
        assert "the largest, uniqueness of image, is 0.040 bits, floor 0.050" in found.sentence
        assert "the fused head has an accuracy of 0.700, chance 0.100" in found.sentence

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {
                "redundancy": 0.06,
                "synergy": 0.0,
                "unique": {"image": 0.0, "audio": 0.0},
                # One atom is enough.
            },
            # Nothing is known, and no head knows anything.
            {
                "redundancy": 0.0,
                "synergy": 0.0,
                "unique": {"image": 0.0, "audio": 0.0},
                "accuracy": {"image": 0.12, "audio": 0.1, "fused": 0.14},
            },
        ],
    )
    def test_a_probe_that_agrees_with_the_heads(self, values: dict) -> None:
        assert about(atoms_below_noise(measurement(**values))) == []


def led(readings: int, unique: tuple[float, float] = (0.9, 0.1), **values: Any) -> list[Probe]:
    return [
        probe(100 * (i + 1), unique=dict(zip(BOTH, unique, strict=True)), **values) for i in range(readings)
    ]


class TestLateDecision:
    def test_a_leader_that_trains_on_after_the_patience(self) -> None:
        (found,) = late_pause(led(3), THRESHOLD)
        assert found.about == "pause of image"
        assert "has led clearly since step 100 and still trained up to step 300, 3 readings" in found.sentence
        assert "9.0 times audio's" in found.sentence

    @pytest.mark.parametrize(
        "history",
        [
            # Within the patience
            led(2),
            # No clear lead
            led(9, unique=(0.25, 0.1)),
            # Not in a row.
            [*led(2), *led(1, unique=(0.2, 0.1)), *led(2)],
            # Paused
            led(9, training=["audio"]),
            # Resumed for good
            [*led(1, training=["audio"]), *led(9)],
            # Another stage
            [*led(2, stage="unimodal"), *led(2, stage="joint")],
        ],
    )
    def test_no_late_pause(self, history: list[Probe]) -> None:
        assert about(late_pause(history, THRESHOLD)) == []

    def test_a_stage_one_that_went_on_after_its_rule_was_done(self) -> None:
        reason = "stage 1 goes on, for its length is given: otherwise it would end, nothing has risen"
        # the last reading ends it
        late = [probe(100 * i, overdue=2 < i < 6, reason=reason) for i in range(1, 7)]
        (found,) = late_end_of_stage(late)
        assert "ended at step 600, 3 readings after the rule would have ended it" in found.sentence
        assert "(step 300: nothing has risen)" in found.sentence
        assert about(late_end_of_stage([*late[1:5], probe(600)])) == ["end of stage 1"]
        # Two readings late
        assert about(late_end_of_stage([*late[:4], probe(600)])) == []
        assert (
            about(late_end_of_stage([*late[:4], probe(450), probe(600)])) == []
            # The rule changed its mind.
        )


class TestNoInformation:
    SILENT: ClassVar[dict[str, Any]] = {
        "mutual_information": {"image": 1.3, "audio": 0.03},
        "accuracy": {"image": 0.6, "audio": 0.12, "fused": 0.6},
    }

    def test_a_modality_that_says_nothing(self) -> None:
        (found,) = no_information([probe(**self.SILENT).reading] * 3)
        assert found.about == "audio"
        assert "(0.030 bits, noise floor 0.050; its head's accuracy is 0.120, chance 0.100)" in found.sentence

    def test_of_two_classes_little_noise_may_hide_what_a_modality_knows(self) -> None:
        silent = {"mutual_information": {"image": 0.6, "audio": 0.05}, "accuracy": self.SILENT["accuracy"]}
        assert about(no_information([probe(floor=0.15, num_classes=4, **silent).reading])) == ["audio"]
        assert about(no_information([probe(floor=0.08, num_classes=2, **silent).reading])) == ["audio"]
        assert about(no_information([probe(floor=0.15, num_classes=2, **silent).reading])) == []

    @pytest.mark.parametrize(
        "other",
        [
            {},
            {"mutual_information": {"image": 1.3, "audio": 0.06}},
            {"accuracy": {"image": 0.6, "audio": 0.2, "fused": 0.6}},
            # It may say nothing alone and much with the other.
            {"synergy": 0.4},
            # It never trained
            {"training": ["image"]},
        ],
    )
    def test_one_reading_that_disagrees_is_enough(self, other: dict) -> None:
        last = probe(**{**self.SILENT, **other}) if other else probe()
        assert about(no_information([probe(**self.SILENT).reading, last.reading])) == []

    def test_a_modality_that_fell_silent(self) -> None:
        (found,) = information_lost([probe(100), probe(200, **self.SILENT), probe(300, **self.SILENT)])
        assert found.about == "audio"
        assert "said 0.90 bits about the label at step 100, with an accuracy of 0.450" in found.sentence
        assert "nothing since step 200 (accuracy 0.120, chance 0.100)" in found.sentence

    @pytest.mark.parametrize(
        "history",
        [
            [{}, {}, {}],
            # One reading may be an accident.
            [{}, {}, SILENT],
            # It came back
            [{}, SILENT, {}],
            # It never knew
            [SILENT, SILENT, SILENT],
            # It hardly knew
            [{"accuracy": {"image": 0.6, "audio": 0.17, "fused": 0.6}}, SILENT, SILENT],
            # It starts anew
            [{"reset": ["audio"]}, SILENT, SILENT],
            [{}, {**SILENT, "reset": ["audio"]}, SILENT],
        ],
    )
    def test_nothing_is_lost(self, history: list[dict]) -> None:
        probes = [probe(100 * (i + 1), **values) for i, values in enumerate(history)]
        assert about(information_lost(probes)) == []


def evaluated(information: Information, accuracy: dict[str, float]) -> Measurement:
    return make_measurement(BOTH, rows=500, chance=0.1, accuracy=accuracy, information=information)


class TestMemorization:
    def test_what_is_known_of_training_rows_only(self) -> None:
        (found,) = memorized(
            decomposition((1.4, 3.2), (0.0, 1.8)),
            {"image": 0.65, "audio": 0.99},
            evaluated(decomposition((1.3, 0.9)), {"image": 0.60, "audio": 0.44}),
        )
        assert found.about == "audio"
        assert "about these it says 3.20 bits (uniqueness 1.80, accuracy 0.990)" in found.sentence
        assert "about validation rows 0.90 (0.40, 0.440)" in found.sentence

    @pytest.mark.parametrize(
        ("training", "held_out", "accuracies"),
        [
            # A gap, but more than half is kept.
            ((1.5, 1.7), (1.3, 0.9), (0.70, 0.44)),
            # Within the sum of the floors, and of no weight.
            ((0.04, 0.08), (0.0, 0.0), (0.70, 0.44)),
            # The head has learnt no rows.
            ((1.3, 0.5), (1.3, 0.1), (0.17, 0.15)),
        ],
    )
    def test_encoders_know_their_rows_a_little_better(self, training, held_out, accuracies) -> None:
        seen, unseen = ({"image": accuracy, "audio": accuracy} for accuracy in accuracies)
        found = memorized(decomposition(training), seen, evaluated(decomposition(held_out), unseen))
        assert about(found) == []


class TestShortcut:
    def test_a_unique_modality_that_is_useless_elsewhere(self) -> None:
        elsewhere = measurement(accuracy={"image": 0.11, "audio": 0.42, "fused": 0.3})
        (found,) = shortcut(measurement(), elsewhere, "night")
        assert found.about == "image, night"
        assert "says 0.80 bits about the label that no other modality says" in found.sentence
        assert "accuracy of 0.600 on validation, but 0.110 on night (chance 0.100)" in found.sentence

    @pytest.mark.parametrize(
        ("unique", "accuracy"),
        [
            # The same data
            (0.8, 0.58),
            # Harder data
            (0.8, 0.40),
            # What it knows, others know too.
            (0.04, 0.11),
            # A set without this modality.
            (0.8, float("nan")),
        ],
    )
    def test_no_shortcut(self, unique: float, accuracy: float) -> None:
        here = measurement(unique={"image": unique, "audio": 0.4})
        elsewhere = measurement(accuracy={"image": accuracy, "audio": 0.42, "fused": 0.3})
        assert about(shortcut(here, elsewhere, "night")) == []


class TestDuplicate:
    def test_a_copy_shares_more_than_the_label_and_has_nothing_of_its_own(self) -> None:
        (found,) = duplicate(decomposition((1.3, 1.1), (0.3, 0.04), dependence=0.9))
        assert found.about == "audio, image"
        assert (
            "audio says nothing about the label that image does not (uniqueness 0.04 of 1.10"
            in found.sentence
        )

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {
                "mutual_information": (1.3, 1.3),
                "unique": (0.0, 0.0),
                # Both know the label, and nothing else in common.
            },
            # Related, each with something of its own.
            {"unique": (0.8, 0.4), "dependence": 0.9},
            {
                "mutual_information": (1.3, 0.5),
                "unique": (0.8, 0.0),
                "dependence": 0.9,
                # It knows a part of the other.
            },
            {
                "mutual_information": (0.3, 0.3),
                "unique": (0.0, 0.0),
                "dependence": 0.9,
                "synergy": 0.8,
                # Exclusive or
            },
            # Nothing to copy
            {"mutual_information": (1.3, 0.0), "unique": (1.3, 0.0), "dependence": 0.9},
            # In 16 rows of four classes two sensors seemed copies of each other, either way round.
            {
                "mutual_information": (1.3, 1.1),
                "unique": (0.3, 0.04),
                "dependence": 0.9,
                "num_samples": 16,
                "num_classes": 4,
            },
        ],
    )
    def test_modalities_that_are_related_or_agree_are_no_copies(self, values: dict) -> None:
        assert about(duplicate(decomposition(**values))) == []

    def test_related_modalities_that_clusters_call_a_copy(self) -> None:
        """Two sensors of one movement: many shared bits, and most of what each holds is its own."""
        pair = decomposition((1.3, 1.1), (0.3, 0.04), dependence=0.9)
        asked: list[tuple[str, str]] = []

        def told(share: float) -> Any:
            return lambda name, by: asked.append((name, by)) or share

        assert about(duplicate(pair, told=told(0.38))) == []
        (found,) = duplicate(pair, told=told(0.57))
        assert "0.90 bits beyond the label, 57% of what audio holds, as copies do" in found.sentence
        assert set(asked) == {("audio", "image")}


def views(alike: float, num_rows: int = 240) -> tuple[Tensor, Tensor, Tensor]:
    """Two random encoders of two views of the class, whose noise is alike to this share; and the classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_rows) % 3
    means, common = torch.randn(3, 8, generator=generator), torch.randn(num_rows, 8, generator=generator)
    encoded = []
    for _ in range(2):
        own = torch.randn(num_rows, 8, generator=generator)
        view = means[labels] + alike**0.5 * common + (1 - alike) ** 0.5 * own
        encoded.append(torch.relu(view @ torch.randn(8, 24, generator=generator)))
    return encoded[0], encoded[1], labels


class TestLinearShare:
    def test_copies_related_and_independent_views(self) -> None:
        shares = {alike: linear_share(*views(alike)) for alike in (1.0, 0.5, 0.0)}
        assert shares[1.0] > MIN_TOLD > shares[0.5] > shares[0.0]
        assert shares[0.0] == pytest.approx(0.0, abs=0.03)

    def test_known_answers(self) -> None:
        x, _, labels = views(0.0)
        turned = x @ torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(1)))[0]
        assert linear_share(x, turned, labels) == pytest.approx(1.0, abs=1e-3)
        onehot = torch.nn.functional.one_hot(labels).float()
        # Nothing is left beside the label.
        assert linear_share(x, onehot, labels) == linear_share(onehot, x, labels) == 0.0
        assert linear_share(x, torch.zeros_like(x), labels) == 0.0
        # Of several labels and of targets their linear part is taken away.
        assert linear_share(x, onehot, onehot) == linear_share(x, onehot[:, :1], onehot[:, :1]) == 0.0

    def test_rows_of_a_group_do_not_tell_each_other(self) -> None:
        generator = torch.Generator().manual_seed(0)
        groups = torch.arange(200) // 10
        # Every group has a place of its own in both, and nothing else ties them.
        a = torch.randn(20, 6, generator=generator)[groups]
        labels = torch.arange(200) % 2
        wide = torch.randn(20, 40, generator=generator)[groups]
        assert linear_share(a, wide, labels) > 0.9
        assert linear_share(a, wide, labels, groups) < 0.1
        assert linear_share(a, wide, labels, torch.zeros_like(groups)) == 0.0


class TestAdviceToLeaveOut:
    """Where the fused head is ahead of both heads, or a head tells something of its own, none is advised away."""

    FUSED_AHEAD: ClassVar[dict[str, float]] = {"image": 0.60, "audio": 0.11, "fused": 0.70}
    SILENT: ClassVar[dict[str, Any]] = {
        "mutual_information": {"image": 1.3, "audio": 0.01},
        "unique": {"image": 1.3, "audio": 0.0},
        "synergy": 0.02,
    }

    def test_no_information_with_fusion_ten_points_ahead(self) -> None:
        tied = {**self.FUSED_AHEAD, "fused": 0.61}
        assert about(no_information([probe(accuracy=tied, **self.SILENT).reading])) == ["audio"]
        assert about(no_information([probe(accuracy=self.FUSED_AHEAD, **self.SILENT).reading])) == []

    def test_a_head_that_never_trained_says_nothing_of_its_modality(self) -> None:
        """Joint training without unimodal losses: the heads answer at random, whatever the embeddings know."""
        reading = probe(accuracy={"image": 0.1, "audio": 0.1, "fused": 0.7}, **self.SILENT).reading
        (found,) = no_information([reading], trained_heads=())
        assert found.about == "audio"
        assert "accuracy" not in found.sentence

    def test_noise_that_reaches_as_much_as_a_modality_may_know_is_no_silence(self) -> None:
        floors = {"image": 0.05, "redundancy": 0.05, "synergy": 0.1}
        tied = {"image": 0.6, "audio": 0.11, "fused": 0.61}
        knows = {"mutual_information": {"image": 1.3, "audio": 0.25}, "unique": {"image": 1.3, "audio": 0.0}}
        for floor, names in ((0.3, ["audio"]), (0.45, []), (1.6, [])):
            reading = probe(accuracy=tied, synergy=0.02, floor={**floors, "audio": floor}, **knows).reading
            assert about(no_information([reading])) == names

    def test_a_copy_by_clusters_with_something_of_its_own_by_its_head(self) -> None:
        by_heads: dict[str, Any] = {"conditional_mutual_information": None, "num_clusters": ()}
        # The one that knows less, with 0.15 of 1.3 bits.
        pair = decomposition((2.0, 1.7), (0.5, 0.2), dependence=0.9)
        (alone,) = duplicate(pair)
        assert alone.sentence.startswith(
            "audio says little about the label that image does not (uniqueness 0.20 of 1.70"
        )
        assert "leave" not in alone.sentence
        nothing = {"image": 0.8, "audio": 0.02}
        tied = {"image": 0.6, "audio": 0.55, "fused": 0.6}
        assert about(duplicate(pair, measurement(unique=nothing, accuracy=tied, **by_heads))) == [
            "audio, image"
        ]
        own = {"image": 0.8, "audio": 0.25}
        assert about(duplicate(pair, measurement(unique=own, accuracy=tied, **by_heads))) == []
        ahead = {"image": 0.6, "audio": 0.55, "fused": 0.7}
        assert about(duplicate(pair, measurement(unique=nothing, accuracy=ahead, **by_heads))) == []


def test_rows_of_one_class_say_nothing_of_a_modality() -> None:
    perfect = {"image": 1.0, "audio": 0.93, "fused": 1.0}
    assert about(shortcut(measurement(), measurement(accuracy=perfect, chance=1.0), "one class")) == []
    silent = {"mutual_information": {"image": 0.0, "audio": 0.0}, "unique": {"image": 0.0, "audio": 0.0}}
    for chance, names in ((0.9, ["audio"]), (1.0, [])):
        reading = probe(accuracy=perfect, chance=chance, synergy=0.0, redundancy=0.0, **silent).reading
        assert about(no_information([reading])) == names


def test_few_rows_of_a_rare_class_are_no_silence() -> None:
    """Of a label of 0.56 bits noise reaches 0.075, and the modality may know as much."""
    knows = {"mutual_information": {"image": 0.35, "audio": 0.055}, "unique": {"image": 0.3, "audio": 0.0}}
    told = {"accuracy": {"image": 0.883, "audio": 0.864, "fused": 0.883}, "synergy": 0.04, "floor": 0.075}
    for chance, names in ((0.87, []), (0.6, ["audio"])):
        right = {**told["accuracy"], "audio": chance}
        reading = probe(num_classes=2, chance=chance, **knows, **{**told, "accuracy": right}).reading
        assert about(no_information([reading])) == names


def test_a_lead_is_a_share_of_what_there_is_to_gain() -> None:
    """Most rows of the other set are of one class, so that nobody is far ahead of chance."""
    for image, names in ((0.96, []), (0.88, ["image, night"])):
        elsewhere = measurement(accuracy={"image": image, "audio": 0.95, "fused": 0.97}, chance=0.9)
        assert about(shortcut(measurement(), elsewhere, "night")) == names


def test_no_shortcut_of_heads_that_never_trained() -> None:
    elsewhere = measurement(accuracy={"image": 0.11, "audio": 0.42, "fused": 0.3})
    assert about(shortcut(measurement(), elsewhere, "night")) == ["image, night"]
    assert about(shortcut(measurement(), elsewhere, "night", trained_heads=())) == []
    assert about(shortcut(measurement(), elsewhere, "night", trained_heads=("image",))) == ["image, night"]


@pytest.mark.parametrize(
    ("auxiliary_weight", "stage", "trained"),
    [(0.6, "joint", ("left", "right")), (0.0, "joint", ()), (0.0, "unimodal", ("left", "right"))],
)
def test_which_heads_are_trained_is_what_the_configuration_says(auxiliary_weight, stage, trained) -> None:
    model = two_views(auxiliary_weight=auxiliary_weight, stage=stage)
    # A second copy of a head that never trained has not trained either.
    part = torch.nn.ModuleDict({"encoder": model.encoders["right"], "head": model.heads["right"]})
    model.set_best_heads({"right": part.state_dict()})
    assert model.trained_heads == trained


def test_noise_above_the_atoms_is_told_by_rows_or_by_groups() -> None:
    below = {"redundancy": 0.01, "unique": {"image": 0.01, "audio": 0.0}, "synergy": 0.0}
    for groups, units in ((None, "rows"), (40, "groups")):
        (found,) = atoms_below_noise(measurement(**below, num_groups=groups))
        assert found.sentence.endswith(f"give more evaluation {units}.")


class TestOnlyScouting:
    USED = "stage 1 ends: 50% of the budget is used and stage 1 may use 50%; stage 2 starts from the present weights"

    def test_three_epochs_of_fine_tuning(self) -> None:
        history = [probe(trained_fused_head=True, ends_stage=True, reason=self.USED)]
        (found,) = only_scouting(history)
        assert (
            "ended at step 100, after 1 reading, so that no modality was trained by itself" in found.sentence
        )

    def test_a_decision_or_a_modality_that_trained_alone(self) -> None:
        why = (
            "stage 1 ends: given the label, the modalities depend on each other by 0.30 bits, more than 0.07"
        )
        assert not [*only_scouting([probe(trained_fused_head=True, ends_stage=True, reason=why)])]
        alone = [probe(trained_fused_head=True), probe(200, ends_stage=True, reason=self.USED)]
        assert not [*only_scouting(alone)]


@pytest.mark.parametrize(
    ("pair", "options", "expected"),
    [
        ((0.152, 0.15), {}, ("0.152", "0.150")),
        ((0.16, 0.15), {}, ("0.16", "0.15")),
        ((0.15, 0.15), {}, ("0.15", "0.15")),
        ((0.15000004, 0.15), {}, ("0.15000004", "0.15000000")),
        ((0.8404, 0.8401), {"digits": 1, "percent": True}, ("84.04 %", "84.01 %")),
    ],
)
def test_numbers_that_are_compared_have_the_digits_to_tell_them_apart(pair, options, expected) -> None:
    assert told_apart(*pair, **options) == expected


def test_sentences_that_compare_show_the_difference() -> None:
    reading = make_reading(200, conditional_mutual_information=0.1503, floor=0.05)
    decision = make_rule("adaptive", BOTH, scouting_readings=0).decide(reading)
    assert "by 0.1503 bits, more than 0.1500" in decision.reason
    heads = {"test": {"image": 0.8401, "audio": 0.5, "fused": 0.8404, "calibrated": 0.8404}}
    assert "84.04 % against 84.01 %" in compare_heads(heads, BOTH, {})


def test_the_scale_of_an_accuracy() -> None:
    assert Scale(100, 0.5).error(0.5) == pytest.approx(0.05)
    # Not zero
    assert Scale(100, 0.5).error(1.0) == pytest.approx(0.00995, rel=1e-3)
    assert Scale(100, 0.5).is_chance(0.65)
    assert not Scale(100, 0.5).is_chance(0.66)
    # Of an R^2
    assert Scale(100, 0.0).error(0.5) == Scale(100, 0.0).error(0.0) == pytest.approx(0.1)


def test_fresh_heads_behind_pretrained_encoders_at_a_rate_for_fine_tuning() -> None:
    def findings(rates: dict[str, float], **config: Any) -> list[Finding]:
        model = SimpleNamespace(
            sources={"text": "a/b", "image": None},
            config=SimpleNamespace(**{"_name_or_path": "", "readout": None, **config}),
        )
        return [*starved_heads(model, rates)]

    small = {"text": 2e-5, "image": 2e-5, "fusion": 2e-5}
    (found,) = findings(small)
    # The encoder of the image is not pretrained: its rate is its user's choice.
    assert found.sentence.startswith(
        "the head of text and the fused head start from nothing at a rate of 2e-05"
    )
    assert "head_learning_rate=1e-3" in found.sentence
    assert not findings({"text": 1e-3, "image": 2e-5, "fusion": 1e-3})
    assert not findings(small, _name_or_path="a/fusion-model")
    assert not findings(small, readout={})


def test_a_warm_up_of_all_steps() -> None:
    (found,) = long_warm_up("stage 2", 45, 50, "linear")
    assert found.about == "stage 2"
    assert "has 45 steps, and warms up for 50: its rate rises to the last step" in found.sentence
    assert [*long_warm_up("stage 2", 50, 50, "cosine")]
    assert not [*long_warm_up("stage 2", 51, 50, "linear")]
    # A share of one step is that step.
    assert not [*long_warm_up("stage 2", 1, 0.1, "linear")]
    assert not [*long_warm_up("stage 2", 45, 0, "linear")]
    assert not [*long_warm_up("stage 2", 45, 50, "constant")]
