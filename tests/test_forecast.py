"""Slow or weak: the forecast on learning curves worked out by hand, and what rules say of it."""

import json
import math

import pytest
from test_controller import TWO, reading

from ecsfusion.controller import make_rule
from ecsfusion.controller.forecast import Forecast, forecast, forecasts, remember


class TestForecast:
    @pytest.mark.parametrize(
        ("epochs", "behind", "expected"),
        [
            # one epoch: 0.3 bits an epoch, twice more: 0.9 of 2 bits
            ([1.0], [0.3], (0.15, 0.45)),
            # from 0 to 1 bit in two epochs: 0.5 an epoch
            ([1.0, 2.0], [0.2, 1.0], (0.5, 1.0)),
            # only the last two epochs count: (1.0 - 0.8) / 2 an epoch
            ([1.0, 2.0, 3.0, 4.0], [0.4, 0.8, 0.9, 1.0], (0.5, 0.6)),
            # readings of half an epoch: since epoch 1
            ([0.5, 1.0, 1.5, 2.0, 2.5, 3.0], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], (0.3, 0.5)),
            # no reading two epochs ago: since the one before
            ([1.5, 3.0, 4.5], [0.3, 0.6, 1.2], (0.6, 0.9)),
            # what is lost is lost
            ([1.0, 2.0, 3.0], [0.6, 0.5, 0.4], (0.2, 0.1)),
        ],
    )
    def test_the_pace_of_the_last_two_epochs_goes_on_for_two(self, epochs, behind, expected):
        assert forecast(epochs, behind, [2.0] * len(epochs)) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("epochs", "behind", "ahead", "message"),
        [
            ([], [], [], "at least one"),
            ([1.0, 2.0], [0.1], [1.0, 1.0], "2, 1 and 2"),
            ([1.0, 1.0], [0.1, 0.1], [1.0, 1.0], "above 0 that rise"),
            ([0.0, 1.0], [0.1, 0.1], [1.0, 1.0], "above 0 that rise"),
            ([1.0], [0.1], [0.0], "the leader must know something"),
        ],
    )
    def test_what_is_no_history_is_refused(self, epochs, behind, ahead, message):
        with pytest.raises(ValueError, match=message):
            forecast(epochs, behind, ahead)

    def test_it_is_a_sentence(self):
        assert str(Forecast("audio", "image", 0.1, 0.75)) == (
            "audio looks slow, not weak: it knows 10% of what image knows now, and at its present pace "
            "it will know 75% of that in 2 epochs"
        )
        assert "looks weak, not slow" in str(Forecast("audio", "image", 0.1, 0.6))
        assert str(Forecast("audio", "image", 0.1, -0.2)).endswith("it will know 0% of that in 2 epochs")


def informed(step, image, audio, **values):
    """A reading of 10 steps an epoch with what each modality knows about the label; image leads by uniqueness."""
    return reading(step, mutual_information={"image": image, "audio": audio}, **values)


class TestMemory:
    def test_two_epochs_and_the_reading_before_them_are_kept(self):
        seen = []
        for step in range(0, 101, 5):
            remember(seen, informed(step, 2.0, step / 100), TWO)
        # step 0 is no reading of training; the last one is at epoch 10
        assert [epoch for epoch, _ in seen] == [8.0, 8.5, 9.0, 9.5, 10.0]
        # 0.1 bits an epoch: 1.0 of 2 bits now, 1.2 in two epochs
        assert (
            "knows 50% of what image knows now, and at its present pace it will know 60% of that"
            in forecasts(seen, ["audio"], "image")
        )
        assert json.loads(json.dumps(seen)) == seen

    def test_a_broken_value_is_named(self):
        with pytest.raises(ValueError, match=r"mutual_information\['audio'\] is nan"):
            remember([], informed(10, 1.0, math.nan), TWO)
        with pytest.raises(ValueError, match=r"mutual_information\['text'\] is missing"):
            remember([], informed(10, 1.0, 1.0), (*TWO, "text"))

    def test_a_second_reading_of_the_same_moment_replaces_the_first(self):
        seen = []
        for bits in (0.1, 0.2):
            remember(seen, informed(10, 1.0, bits), TWO)
        assert seen == [[1.0, {"image": 1.0, "audio": 0.2}]]

    def test_without_information_nothing_is_said(self):
        seen = []
        remember(seen, reading(10, mutual_information={}), TWO)
        assert forecasts(seen, ["audio"], "image") == ""
        remember(seen, informed(20, 0.0, 0.0), TWO)
        assert forecasts(seen, ["audio"], "image") == ""


LEAD = {"unique": (1.0, 0.1), "accuracy": (0.8, 0.2)}


class TestRules:
    @pytest.mark.parametrize(("pace", "kind"), [(0.4, "slow, not weak"), (0.05, "weak, not slow")])
    def test_peak_synergy_says_what_the_other_looks_like(self, pace, kind):
        rule = make_rule("peak-synergy", TWO)
        readings = [informed(10 * k, 2.0, pace * k, **LEAD) for k in (1, 2)]
        *_, paused = (rule.decide(item) for item in readings)
        assert paused.training == ("audio",)
        assert f"audio looks {kind}" in paused.reason
        waited = [rule.decide(informed(10 * k, 2.0, pace * k, **LEAD)) for k in range(3, 7)]
        assert "image resumed for good" in waited[-1].reason
        assert f"audio looks {kind}" in waited[-1].reason

    @pytest.mark.parametrize(("bits", "kind"), [(0.6, "slow, not weak"), (0.1, "weak, not slow")])
    def test_weak_first_says_so_too_and_decides_the_same(self, bits, kind):
        rule = make_rule("weak-first", TWO)
        decision = rule.decide(informed(10, 2.0, bits, **LEAD))
        assert (decision.training, decision.reset) == (("audio",), ("image",))
        assert f"audio looks {kind}" in decision.reason

    @pytest.mark.parametrize("name", ["peak-synergy", "weak-first"])
    def test_a_checkpoint_from_before_goes_on(self, name):
        rule = make_rule(name, TWO)
        saved = rule.state_dict()
        del saved["state"]["information"]
        rule.load_state_dict(saved)
        assert rule.decide(informed(5, 2.0, 0.2)).training == TWO
