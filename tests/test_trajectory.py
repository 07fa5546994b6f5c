"""The picture of a run: which series, spans and marks it holds."""

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from readings import make_measurement, make_probe

from ecsfusion.controller.probe import Probe
from ecsfusion.reporting.trajectory import plot_trajectory

TWO = ("image", "audio")


def probe(step: int, stage: str = "unimodal", training: tuple[str, ...] = TWO, **values: Any) -> Probe:
    defaults = {
        "redundancy": 0.01 * step,
        "unique": {"image": 0.5 + 0.001 * step, "audio": 0.1, "text": 0.2},
        "synergy": 0.3 - 0.001 * step,
        "floor": {"image": 0.04, "audio": 0.05, "text": 0.06, "redundancy": 0.02, "synergy": 0.09},
        "accuracy": accuracy(step),
    }
    return make_probe(step, stage=stage, training=training, **{**defaults, **values})


def accuracy(step: int, **values: Any) -> dict[str, float | None]:
    return {"image": 0.5, "audio": 0.4, "text": 0.3, "fused": 0.001 * step, "calibrated": 0.6, **values}


HISTORY = [
    probe(10),
    probe(20, training=("audio",), peak=True),
    probe(30, training=("audio",)),
    probe(40, ends_stage=True, restore=20),
    probe(50, "joint"),
    probe(60, "joint"),
]


def series(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def spans(axes: Axes) -> dict[str, tuple[float, float]]:
    """Label: (start, end) of every patch; labels are unique."""
    found = [
        (patch.get_label(), (patch.get_x(), patch.get_x() + patch.get_width())) for patch in axes.patches
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def lane_bars(axes: Axes) -> list[tuple[str, float, float, bool]]:
    """(label, start, end, hatched) of every bar in the lanes."""
    return [
        (container.get_label(), bar.get_x(), bar.get_x() + bar.get_width(), bool(bar.get_hatch()))
        for container in axes.containers
        for bar in container
    ]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_information_and_its_noise_floor() -> None:
    _, information, _ = plot_trajectory(HISTORY, TWO).axes
    drawn = series(information)
    steps = [10, 20, 30, 40, 50, 60]
    assert drawn["redundancy"] == (steps, pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    assert drawn["unique to image"] == (steps, pytest.approx([0.51, 0.52, 0.53, 0.54, 0.55, 0.56]))
    assert drawn["unique to audio"] == (steps, [0.1] * 6)
    assert drawn["synergy"] == (steps, pytest.approx([0.29, 0.28, 0.27, 0.26, 0.25, 0.24]))
    for name, level in (("image", 0.04), ("audio", 0.05), ("redundancy", 0.02), ("synergy", 0.09)):
        assert drawn[f"_noise floor of {name}"] == (steps, [level] * 6)
    assert "bits" in information.get_ylabel()


def test_accuracies_of_all_heads() -> None:
    *_, accuracies = plot_trajectory(HISTORY, TWO).axes
    drawn = series(accuracies)
    assert drawn["image alone"][1] == [0.5] * 6
    assert drawn["audio alone"][1] == [0.4] * 6
    assert drawn["fused head"][1] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    assert drawn["all heads,\ncalibrated"][1] == [0.6] * 6
    assert [t.get_text() for t in accuracies.get_legend().get_texts()] == list(drawn)[:4]


def test_stages_are_shaded_and_named() -> None:
    figure = plot_trajectory(HISTORY, TWO)
    for axes in figure.axes[1:]:
        assert spans(axes) == {"_stage 1: unimodal": (0, 40), "_stage 2: joint": (40, 60)}
    assert {"stage 1: unimodal", "stage 2: joint"} <= set(texts(figure))


def test_scouting_is_a_part_of_stage_one_of_its_own() -> None:
    scouting, unimodal = {"trained_fused_head": True}, {"trained_fused_head": False}
    history = [
        probe(10, **scouting),
        probe(20, **scouting),
        probe(60, **unimodal),
        probe(70, "joint", **scouting),
        probe(100, "joint", **scouting),
    ]
    figure = plot_trajectory(history, TWO)
    for axes in figure.axes[1:]:
        assert spans(axes) == {
            "_scouting": (0, 20),
            "_stage 1: unimodal": (20, 60),
            "_stage 2: joint": (60, 100),
        }
    assert {"scouting", "stage 1: unimodal", "stage 2: joint"} <= set(texts(figure))


def test_a_name_that_does_not_fit_is_shortened_or_left_out() -> None:
    history = [probe(3, trained_fused_head=True), probe(12), probe(100, "joint")]
    found = texts(plot_trajectory(history, TWO))
    assert {"stage 1", "stage 2: joint"} <= set(found)
    assert not {"scouting", "scout", "stage 1: unimodal"} & set(found)


def test_lanes_show_who_trains_and_who_is_paused() -> None:
    lanes = plot_trajectory(HISTORY, TWO).axes[0]
    # a probe tells who trained up to it: image was paused from step 10 to step 30
    assert lane_bars(lanes) == [
        ("image trains", 0, 10, False),
        ("image paused", 10, 30, True),
        ("image trains", 30, 60, False),
        ("audio trains", 0, 60, False),
    ]
    assert [label.get_text() for label in lanes.get_yticklabels()] == list(TWO)
    assert "paused" in [text.get_text() for text in lanes.texts]


def test_the_restored_peak_is_marked_in_every_panel() -> None:
    figure = plot_trajectory(HISTORY, TWO)
    for axes in figure.axes:
        assert series(axes)["_stage 2 starts from here"][0] == [20, 20]
    assert any("peak restored" in text and "step 20" in text for text in texts(figure))


def test_a_stage_that_ended_with_its_present_weights_is_not_called_restored() -> None:
    history = [probe(10), probe(20, ends_stage=True), probe(30, "joint")]
    figure = plot_trajectory(history, TWO)
    assert series(figure.axes[1])["_stage 2 starts from here"][0] == [20, 20]
    assert not any("restored" in text for text in texts(figure))


def test_joint_training_has_no_mark() -> None:
    figure = plot_trajectory([probe(10, "joint"), probe(20, "joint")], TWO)
    assert spans(figure.axes[1]) == {"_stage 2: joint": (0, 20)}
    assert "_stage 2 starts from here" not in series(figure.axes[1])


def test_three_modalities_look_different() -> None:
    lanes, information, accuracies = plot_trajectory(HISTORY, (*TWO, "text")).axes
    assert "unique to text" in series(information)
    assert "text alone" in series(accuracies)
    assert len(lanes.get_yticks()) == 3
    named = [line for line in information.lines if not line.get_label().startswith("_")]
    assert len({line.get_color() for line in named}) == len({line.get_marker() for line in named}) == 5


def test_missing_values_leave_gaps() -> None:
    history = [
        probe(10, accuracy=accuracy(10, calibrated=None)),
        probe(20, synergy=math.nan),
        probe(30, synergy=None),
    ]
    _, information, accuracies = plot_trajectory(history, TWO).axes
    assert np.isnan(series(information)["synergy"][1]).tolist() == [False, True, True]
    assert np.isnan(series(accuracies)["all heads,\ncalibrated"][1]).tolist() == [True, False, False]
    uncalibrated = {head: value for head, value in accuracy(10).items() if head != "calibrated"}
    without = [probe(10, accuracy=uncalibrated)]
    assert "all heads,\ncalibrated" not in series(plot_trajectory(without, TWO).axes[2])


@pytest.mark.parametrize("history", [[probe(0)], [probe(10)], [probe(0), probe(10)]])
def test_short_histories(history: list[Probe], tmp_path: Path) -> None:
    plot_trajectory(history, TWO, tmp_path / "short.png")
    assert (tmp_path / "short.png").stat().st_size > 0


def test_saved_picture_and_no_global_state(tmp_path: Path) -> None:
    before = mpl.get_backend()
    figure = plot_trajectory(HISTORY, TWO, tmp_path / "trajectory.png")
    with Image.open(tmp_path / "trajectory.png") as picture:
        assert picture.size == (1200, 800)
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == []
    assert mpl.get_backend() == before


def test_bad_histories() -> None:
    with pytest.raises(ValueError, match="history is empty"):
        plot_trajectory([], TWO)
    without_decomposition = make_probe(20, measurement=make_measurement(TWO, information=None))
    with pytest.raises(ValueError, match=r"history\[1\] lacks the decomposition"):
        plot_trajectory([probe(10), without_decomposition], TWO)
    with pytest.raises(ValueError, match=r"history\[1\] lacks floor\['synergy'\]"):
        plot_trajectory([probe(10), probe(20, floor={"image": 0.1, "audio": 0.1, "redundancy": 0.1})], TWO)
    with pytest.raises(ValueError, match=r"history\[0\] lacks unique\['video'\]"):
        plot_trajectory(HISTORY, ("image", "video"))
    with pytest.raises(ValueError, match=r"history\[0\] lacks accuracy\['fused'\]"):
        plot_trajectory([probe(10, accuracy={"image": 0.5, "audio": 0.5})], TWO)
