"""What each modality contributes to the answers of a trained model: a sentence and a picture."""

from __future__ import annotations

import itertools
from os import PathLike
from typing import TYPE_CHECKING, Any

from ecsfusion.evaluation.measurement import Measurement
from ecsfusion.extras import extra_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of the palette of Okabe and Ito, one for each modality."""


def contributions_sentence(measurement: Measurement) -> str:
    """Each modality's contribution, such as "image 31.2 and audio 12.0 points of accuracy beyond the 10.0 of chance".

    It is empty where the measurement has no contributions. A modality that no row has is left out.
    """
    found = evaluated_contributions(measurement)
    if not found:
        return ""
    base = measurement.scores["calibrated"] - sum(found["score"].values())
    if measurement.score == "accuracy":
        parts = [f"{name} {100 * share:.1f}" for name, share in found["score"].items()]
        sentence = f"{_listed(parts)} points of accuracy beyond the {100 * base:.1f} of the commonest answer"
    else:
        parts = [f"{name} {share:.2f}" for name, share in found["score"].items()]
        sentence = f"{_listed(parts)} of R² beyond the {base:.2f} of the mean of the fit"
    if found["bits"]:
        sentence += f"; {_listed([f'{name} {bits:.2f}' for name, bits in found['bits'].items()])} bits"
    return sentence


def evaluated_contributions(measurement: Measurement) -> dict[str, Any] | None:
    """The contributions of the modalities that some row of the evaluation has: the others could not contribute."""
    found = measurement.contributions
    if not found:
        return None
    return {
        key: {name: value for name, value in values.items() if name in measurement.scores}
        for key, values in found.items()
    }


def plot_contributions(
    measurement: Measurement, split: str, path: str | PathLike[str] | None = None
) -> Figure:
    """Draw what each modality adds to the score, and in bits beside what it knows alone and only it knows.

    Args:
        measurement: with `contributions`; what modalities know is drawn where it has `information`.
        split: name of the rows that were evaluated.
        path: where to save the picture; not saved when None.

    Raises:
        ValueError: the measurement has no contributions.
    """
    found = evaluated_contributions(measurement)
    if not found:
        raise ValueError("the measurement has no contributions: there is nothing to draw.")
    with extra_for("a picture"):
        from matplotlib.figure import Figure
    names = list(found["score"])
    panels = 2 if found["bits"] else 1
    figure = Figure(figsize=(4.6 * panels, 3.4), dpi=100, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    total = measurement.scores["calibrated"]
    left, unit = total - sum(found["score"].values()), "%" if measurement.score == "accuracy" else ""
    factor = 100 if unit else 1
    _steps(axes[0], names, [factor * found["score"][name] for name in names], factor * left, unit)
    score = measurement.score if unit else "R²"
    axes[0].set_title(f"{score} on {split}, modality by modality", fontsize=10, loc="left")
    if panels == 2:
        _bits(axes[1], names, found["bits"], measurement)
        axes[1].set_title("bits about the label", fontsize=10, loc="left")
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    if path is not None:
        figure.savefig(path)
    return figure


def _steps(axes: Axes, names: list[str], values: list[float], start: float, unit: str) -> None:
    """Bars that start where the one before ends, from the score without any modality to that with all."""
    labels = ["none", *names, "all"]
    axes.bar(0, start, color="#999999")
    height = start
    for place, value in enumerate(values, start=1):
        axes.bar(place, value, bottom=height, color=COLORS[(place - 1) % len(COLORS)])
        axes.annotate(
            f"{value:+.1f}" if unit else f"{value:+.2f}",
            (place, max(height, height + value)),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
        height += value
    axes.bar(len(labels) - 1, height, color="#555555")
    for place, value in ((0, start), (len(labels) - 1, height)):
        text = f"{value:.1f}" if unit else f"{value:.2f}"
        axes.annotate(
            text, (place, max(value, 0.0)), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9
        )
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylabel("%" if unit else "R²")
    # Bars that start where another one ends leave no margin by themselves, and labels need one.
    reached = [0.0, start, *itertools.accumulate(values, initial=start)]
    low, high = min(reached), max(reached)
    margin = 0.12 * (high - low or 1.0)
    axes.set_ylim(low - (margin if low < 0 else 0.0), high + margin)
    if low < 0:
        axes.axhline(0, color="#555555", linewidth=0.8)


def _bits(axes: Axes, names: list[str], bits: dict[str, float], measurement: Measurement) -> None:
    """By modality, its contribution beside its information and its uniqueness."""
    series: list[tuple[str, dict[str, float], Any]] = [("contribution to the answer", bits, None)]
    information = measurement.information
    if information is not None:
        series += [
            ("known to it", information.mutual_information, "//"),
            ("known to it alone", information.unique, ".."),
        ]
    width = 0.8 / len(series)
    for number, (label, values, hatch) in enumerate(series):
        for place, name in enumerate(names):
            axes.bar(
                place + (number - (len(series) - 1) / 2) * width,
                values[name],
                width=width,
                color=COLORS[place % len(COLORS)],
                alpha=1.0 if hatch is None else 0.45,
                hatch=hatch,
                edgecolor="white",
                label=label if place == 0 else None,
            )
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set_xticks(range(len(names)), names)
    axes.legend(frameon=False, fontsize=8)
    if information is not None:
        shared = f"redundancy {information.redundancy:.2f}, synergy {information.synergy:.2f}"
        axes.set_xlabel(shared, fontsize=9)


def _listed(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
