"""Confidence and accuracy in bins, and the picture of them."""

from __future__ import annotations

import pytest
import torch

from ecsfusion.model.readout import expected_calibration_error
from ecsfusion.reporting.reliability import Reliability, plot_reliability


def answers(sure: float, right: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers of two classes, all equally sure of the first, which is right in so many rows."""
    labels = torch.ones(rows, dtype=torch.long)
    labels[:right] = 0
    return torch.tensor([[sure, 1 - sure]]).expand(rows, 2), labels


def test_bins_hold_what_was_put_in():
    p, labels = (torch.cat(pair) for pair in zip(answers(0.95, 6, 10), answers(0.62, 3, 4), strict=True))
    found = Reliability.of(p, labels)
    assert found.rows == (4, 10)
    assert found.confidence == pytest.approx((0.62, 0.95))
    assert found.accuracy == pytest.approx((0.75, 0.6))
    assert found.expected_calibration_error == pytest.approx((4 * 0.13 + 10 * 0.35) / 14)


def test_the_error_is_that_of_the_readout():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(500, 5, generator=generator).mul(3).softmax(1)
    labels = torch.randint(5, (500,), generator=generator)
    expected = expected_calibration_error(p, labels)
    assert Reliability.of(p, labels).expected_calibration_error == pytest.approx(expected)


def test_the_picture_shows_every_bin_and_names_the_errors(tmp_path):
    sure, unsure = Reliability.of(*answers(0.9, 3, 10)), Reliability.of(*answers(0.6, 6, 10))
    figure = plot_reliability(
        {"fused head": sure, "calibrated combination": unsure}, "test", tmp_path / "a.png"
    )
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
    with pytest.raises(ValueError, match="found is empty"):
        plot_reliability({}, "test")
