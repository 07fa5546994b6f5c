"""A run in one picture: what the modalities know, which of them trained when, and how well each head predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from ecsfusion.controller.probe import Probe
from ecsfusion.extras import extra_for
from ecsfusion.model.names import CALIBRATED, FUSED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODALITY_COLORS = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
"""Of the palette of Okabe and Ito, which colour-blind readers can tell apart. Black is left for the heads that combine
all modalities."""
MODALITY_MARKERS = ("o", "s", "^", "D", "v")
SYNERGY_COLOR, REDUNDANCY_COLOR, FUSED_COLOR = "#D55E00", "#777777", "#000000"
STAGE_COLORS = {"scouting": "#E9F1DF", "unimodal": "#FFF3D6", "joint": "#E4EEF8"}
STAGE_NAMES = {"scouting": "scouting", "unimodal": "stage 1: unimodal", "joint": "stage 2: joint"}
SHORT_NAMES = {"scouting": "scout", "unimodal": "stage 1", "joint": "stage 2"}
CHARACTER_WIDTH = 0.0105
"""Width of a character of a stage's name, as a share of the width of the picture."""


def plot_trajectory(
    history: Sequence[Probe], modalities: Sequence[str], path: str | PathLike[str] | None = None
) -> Figure:
    """Draw the probes of a run over optimizer steps.

    Top: when each modality trained; hatched where it was paused. Middle: redundancy, uniqueness per modality
    and synergy in bits; dotted in the same colour, the level that noise alone would reach. Bottom:
    validation accuracy of each modality's head, of the fused head and of their calibrated combination. The
    stages are shaded, and so is the part of stage 1 in which the fused head was trained too, to scout. A vertical
    line marks the probe whose weights started stage 2.

    Args:
        history: the probes, in order. NaN and None leave a gap.
        modalities: names, in the order of drawing.
        path: where to save the picture (1200 x 800 pixels as PNG); not saved when None.

    Raises:
        ValueError: an empty history, or a probe without one of the values.
    """
    _check(history, modalities)
    with extra_for("a picture"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    ratios = (0.12 + 0.13 * len(modalities), 3, 2.6)
    lanes, information, accuracy = figure.subplots(3, 1, sharex=True, height_ratios=ratios)
    _draw_lanes(lanes, history, modalities)
    _draw_information(information, history, modalities)
    _draw_accuracy(accuracy, history, modalities)
    for axes in (information, accuracy):
        _shade_stages(axes, history)
        axes.grid(axis="y", color="#FFFFFF", linewidth=1.2)
        axes.set_axisbelow(True)
    for axes in (lanes, information, accuracy):
        _mark_restored(axes, history)
        axes.spines[["top", "right"]].set_visible(False)
    _name_stages(lanes, history)
    _name_restored(information, history)
    accuracy.set_xlabel("optimizer step")
    accuracy.set_xlim(0, 1.01 * _last_step(history) or 1)
    figure.align_ylabels([information, accuracy])
    if path is not None:
        figure.savefig(path)
    return figure


def _last_step(history: Sequence[Probe]) -> int:
    return max(probe.step for probe in history)


def _check(history: Sequence[Probe], modalities: Sequence[str]) -> None:
    if not history:
        raise ValueError("history is empty: there is no probe to draw.")
    for number, probe in enumerate(history):
        if probe.reading.measurement.information is None:
            raise ValueError(f"history[{number}] lacks the decomposition.")
        needed = (
            ("unique", probe.reading.unique, modalities),
            ("accuracy", probe.reading.accuracy, (*modalities, FUSED)),
            ("floor", probe.reading.floor, (*modalities, "redundancy", "synergy")),
        )
        for kind, values, names in needed:
            for name in names:
                if name not in values:
                    raise ValueError(f"history[{number}] lacks {kind}[{name!r}].")


def _look(modalities: Sequence[str], name: str) -> dict[str, Any]:
    index = list(modalities).index(name)
    return {
        "color": MODALITY_COLORS[index % len(MODALITY_COLORS)],
        "marker": MODALITY_MARKERS[index % len(MODALITY_MARKERS)],
    }


def _intervals(history: Sequence[Probe], values: Sequence[Any]) -> list[tuple[int, int, Any]]:
    """The start, end and value of each stretch of steps over which the value of the probes does not change."""
    stretches: list[tuple[int, int, Any]] = []
    start = 0
    for probe, value in zip(history, values, strict=True):
        end = probe.step
        if stretches and stretches[-1][2] == value:
            stretches[-1] = (stretches[-1][0], end, value)
        elif end > start:
            stretches.append((start, end, value))
        start = end
    return stretches


def _phases(history: Sequence[Probe]) -> list[tuple[int, int, str]]:
    return _intervals(history, [probe.phase for probe in history])


def _draw_lanes(axes: Axes, history: Sequence[Probe], modalities: Sequence[str]) -> None:
    total = _last_step(history)
    for lane, name in enumerate(modalities):
        color = _look(modalities, name)["color"]
        for start, end, trains in _intervals(history, [name in probe.training for probe in history]):
            width = end - start
            if trains:
                axes.barh(lane, width, left=start, height=0.7, color=color, label=f"{name} trains")
                continue
            paused = {"facecolor": "#FFFFFF", "edgecolor": color, "hatch": "////", "linewidth": 1}
            axes.barh(lane, width, left=start, height=0.7, label=f"{name} paused", **paused)
            if width > 0.07 * total:
                box = {"facecolor": "#FFFFFF", "edgecolor": "none", "pad": 1.5}
                axes.text(start + width / 2, lane, "paused", ha="center", va="center", fontsize=9, bbox=box)
    axes.set_yticks(range(len(modalities)), list(modalities))
    axes.set_ylim(len(modalities) - 0.4, -0.6)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)


def _series(
    axes: Axes, history: Sequence[Probe], values: Sequence[float | None], label: str, **look: Any
) -> None:
    numbers = [math.nan if value is None else value for value in values]
    style = {"marker": "o", "markersize": 4, "linewidth": 2, **look}
    axes.plot([probe.step for probe in history], numbers, label=label, **style)


def _draw_information(axes: Axes, history: Sequence[Probe], modalities: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    readings = [probe.reading for probe in history]
    looks = {name: _look(modalities, name) for name in modalities}
    floor_style: dict[str, Any] = {"marker": "", "linestyle": ":", "linewidth": 1.3, "alpha": 0.8}
    for name, look in looks.items():
        _series(axes, history, [reading.unique[name] for reading in readings], f"unique to {name}", **look)
    for name, color, marker in (("synergy", SYNERGY_COLOR, "P"), ("redundancy", REDUNDANCY_COLOR, "X")):
        looks[name] = {"color": color, "marker": marker}
        _series(axes, history, [getattr(reading, name) for reading in readings], name, **looks[name])
    for name, look in looks.items():
        floors = [reading.floor[name] for reading in readings]
        _series(axes, history, floors, f"_noise floor of {name}", **{**look, **floor_style})
    handles, labels = axes.get_legend_handles_labels()
    noise = Line2D([], [], color="#333333", **floor_style)
    axes.legend([*handles, noise], [*labels, "noise floor\n(same colour)"], **_legend_place())
    bottom, top = axes.get_ylim()
    # This leaves room for the name of the restored peak.
    axes.set_ylim(bottom, top + 0.14 * (top - bottom))
    axes.set_ylabel("information about the label [bits]")


def _draw_accuracy(axes: Axes, history: Sequence[Probe], modalities: Sequence[str]) -> None:
    from matplotlib.ticker import PercentFormatter

    scores = [probe.reading.accuracy for probe in history]
    for name in modalities:
        values = [each[name] for each in scores]
        _series(axes, history, values, f"{name} alone", **_look(modalities, name))
    fused = [each[FUSED] for each in scores]
    _series(axes, history, fused, "fused head", color=FUSED_COLOR, marker="*", markersize=7)
    # Probes of older versions may lack it.
    calibrated = [each.get(CALIBRATED) for each in scores]
    if any(value is not None for value in calibrated):
        look = {"color": FUSED_COLOR, "marker": ".", "linestyle": "--", "linewidth": 1.6}
        _series(axes, history, calibrated, "all heads,\ncalibrated", **look)
    axes.legend(**_legend_place())
    axes.set_ylabel("validation accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def _legend_place() -> dict[str, Any]:
    return {"loc": "upper left", "bbox_to_anchor": (1.005, 1.0), "frameon": False, "fontsize": 10}


def _text_place(axes: Axes) -> dict[str, Any]:
    """Positions in data units along x and in shares of the panel along y, with an offset in points."""
    return {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}


def _shade_stages(axes: Axes, history: Sequence[Probe]) -> None:
    for start, end, stage in _phases(history):
        axes.axvspan(
            start, end, color=STAGE_COLORS[stage], zorder=0, linewidth=0, label=f"_{STAGE_NAMES[stage]}"
        )


def _name_stages(axes: Axes, history: Sequence[Probe]) -> None:
    total = _last_step(history)
    style: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 12, "weight": "bold"}
    for start, end, stage in _phases(history):
        names = (STAGE_NAMES[stage], SHORT_NAMES[stage])
        fitting = [name for name in names if CHARACTER_WIDTH * len(name) * total <= end - start]
        if fitting:
            axes.annotate(fitting[0], ((start + end) / 2, 1.0), (0, 4), **_text_place(axes), **style)


def _end_of_unimodal_stage(history: Sequence[Probe]) -> Probe | None:
    return next((probe for probe in history if probe.restored is not None), None)


def _mark_restored(axes: Axes, history: Sequence[Probe]) -> None:
    end = _end_of_unimodal_stage(history)
    if end is not None and end.restored is not None:
        axes.axvline(
            end.restored, color="#333333", linestyle="--", linewidth=1.5, label="_stage 2 starts from here"
        )


def _name_restored(axes: Axes, history: Sequence[Probe]) -> None:
    end = _end_of_unimodal_stage(history)
    if end is None or end.restored is None:
        return
    step = end.restored
    if all(probe.stage == "unimodal" for probe in history):
        text = f"the model keeps\nthe weights of step {step}"
    elif step == 0:
        text = "stage 2 starts anew,\nfrom the initial weights"
    elif step != end.step:
        text = f"peak restored: stage 2\nstarts from step {step}"
    else:
        text = "stage 2 starts\nfrom these weights"
    is_room_left = step > 0.25 * _last_step(history)
    offset, side = ((-5, -3), "right") if is_room_left else ((5, -3), "left")
    axes.annotate(text, (step, 1.0), offset, ha=side, va="top", fontsize=10, **_text_place(axes))
