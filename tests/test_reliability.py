"""Confidence and accuracy in bins, and the picture of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from readings import make_measurement

from ecsfusion.evaluation.scores import calibrated_answers
from ecsfusion.model.problem_types import SINGLE_LABEL
from ecsfusion.model.readout import expected_calibration_error
from ecsfusion.reporting.reliability import answers_by_confidence, plot_reliability


def answers(sure: float, right: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers of two classes, all equally sure of the first, which is right in so many rows."""
    labels = torch.ones(rows, dtype=torch.long)
    labels[:right] = 0
    return torch.tensor([[sure, 1 - sure]]).expand(rows, 2), labels


def test_bins_hold_what_was_put_in():
    p, labels = (torch.cat(pair) for pair in zip(answers(0.95, 6, 10), answers(0.62, 3, 4), strict=True))
    found = answers_by_confidence(p, labels)
    assert found["rows"] == [4, 10]
    assert found["confidence"] == pytest.approx((0.62, 0.95))
    assert found["accuracy"] == pytest.approx((0.75, 0.6))
    assert calibration_error(found) == pytest.approx((4 * 0.13 + 10 * 0.35) / 14)
    assert json.loads(json.dumps(found)) == found


def calibration_error(bins: dict[str, list]) -> float:
    rows, confidence, accuracy = (torch.tensor(bins[key]) for key in ("rows", "confidence", "accuracy"))
    return float((rows * (accuracy - confidence).abs()).sum() / rows.sum())


def test_the_bins_are_those_of_the_calibration_error():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(500, 5, generator=generator).mul(3).softmax(1)
    labels = torch.randint(5, (500,), generator=generator)
    expected = expected_calibration_error(p, labels)
    assert calibration_error(answers_by_confidence(p, labels)) == pytest.approx(expected)


def test_the_picture_shows_every_bin_and_names_the_errors(tmp_path):
    reliability = {
        "fused": answers_by_confidence(*answers(0.9, 3, 10)),
        "calibrated": answers_by_confidence(*answers(0.6, 6, 10)),
    }
    errors = {head: calibration_error(bins) for head, bins in reliability.items()}
    measurement = make_measurement(reliability=reliability, calibration_error=errors)
    figure = plot_reliability(measurement, "test", tmp_path / "a.png")
    upper, lower = figure.axes
    drawn = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in upper.lines[1:]]
    assert drawn == [([pytest.approx(0.9)], [0.3]), ([pytest.approx(0.6)], [0.6])]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[1:] == [
        "fused head: expected calibration error 0.600",
        "calibrated combination: expected calibration error 0.000",
    ]
    assert [bar.get_height() for bar in lower.patches] == [1.0, 1.0]
    assert (tmp_path / "a.png").stat().st_size > 5_000
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_reliability(make_measurement(score="r2", reliability={}), "test")


def test_rows_whose_classes_alternate_are_calibrated_as_others():
    """Every second row would be of one class, and a head that leans to it would seem to be all that is needed."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    onehot = torch.nn.functional.one_hot(labels, 2)
    heads = {name: 2 * (onehot + torch.randn(400, 2, generator=generator)) for name in ("a", "b")}
    heads["a"][:, 0] += 2.0
    heads["fused"] = heads["a"] + heads["b"]
    present = {name: np.ones(400, dtype=bool) for name in "ab"}

    def loss(order):
        rows = {name: z[order] for name, z in heads.items()}
        answers = calibrated_answers(rows, labels[order], None, present, SINGLE_LABEL)
        return float(-answers.gather(1, labels[order, None]).log2().mean())

    assert loss(torch.arange(400)) == pytest.approx(loss(labels.argsort(stable=True)), abs=0.02)
