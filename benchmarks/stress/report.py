"""Tables and pictures of `benchmarks/results/controller_response.jsonl`, from the lines alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from stress.events import STRESSES
from stress.runs import COMPARED, RULES, response
from stress.simulated import HYSTERESES, NOISES, PATIENCES

Lines = Sequence[Mapping[str, Any]]

LABELS = {
    "two-stage": "default",
    "pausing": "peak synergy",
    "nervous": "without hysteresis and patience",
    "published": "published",
    "joint-auxiliary": "joint + unimodal losses",
    "warm-up": "fixed half and half",
    "calibrated-ensemble": "calibrated ensemble",
}
SHOWN_NOISE = NOISES[2]


def of(lines: Lines, **wanted: Any) -> list[Mapping[str, Any]]:
    """The lines that have these values."""
    return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]


def report(lines: Lines, pictures: Path) -> str:
    """Draw the pictures of what is there, and return its tables as Markdown."""
    parts = []
    simulated, runs, forecasts = (of(lines, part=part) for part in ("simulated", "run", "forecast rates"))
    if simulated:
        parts.append(simulated_table(simulated))
        draw_simulated(simulated, forecasts, pictures / "controller_response.png")
    if runs:
        parts += [response_table(runs), accuracy_table(runs)]
        draw_runs(runs, pictures / "controller_response_runs.png")
    if forecasts:
        parts.append(forecast_table(forecasts))
    return "\n\n".join(parts)


def simulated_table(lines: Lines) -> str:
    """What patience and hysteresis buy, at twice the largest noise of the recorded runs."""
    head = (
        "rule",
        "patience",
        "hysteresis",
        "balanced",
        "balanced, little known",
        "at the threshold",
        "paused after",
        "resumed after",
        "overshoot",
    )
    rows = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for rule, patience, hysteresis in _settings():
        mine = of(lines, rule=rule, patience=patience, hysteresis=hysteresis, noise=SHOWN_NOISE)
        by_scene = {line["scene"]: line for line in mine}
        comes = by_scene["a lead comes and goes"]
        cells = [
            rule,
            "" if patience is None else str(patience),
            "" if hysteresis is None else f"{hysteresis:.2g}",
            *(
                f"{by_scene[scene]['switches per 100 probes']:.1f}"
                for scene in ("balanced", "balanced, little known", "at the threshold")
            ),
            _after(comes["paused after"], comes["missed"]),
            _after(comes["resumed after"], comes["not resumed"]),
            f"{by_scene['the slower one catches up']['overshoot']:.1f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _settings() -> list[tuple[str, int | None, float | None]]:
    own: list[tuple[str, int | None, float | None]] = [
        ("peak-synergy", p, round(h, 3)) for p in PATIENCES for h in HYSTERESES
    ]
    return [*own, ("published", None, None)]


def _after(probes: float, never: float) -> str:
    return f"{probes:.1f}" + (f" ({never:.0%} never)" if never else "")


def response_table(lines: Lines) -> str:
    """Probes from the event to the pause and from its end to the resumption, and switches that nothing called for."""
    rows = [
        "| event | rule | runs | paused after | resumed after | wrong pauses | false switches per 100 probes |",
        "| --- " * 7 + "|",
    ]
    for stress in STRESSES:
        for rule in RULES:
            found = [response(line) for line in of(lines, stress=stress, method=rule)]
            if not found:
                continue
            probes = sum(each["probes"] for each in found)
            false = 100 * sum(each["false"] for each in found) / probes if probes else 0.0
            cells = [
                stress,
                LABELS[rule],
                str(len(found)),
                *(", ".join(_number(each[key]) for each in found) for key in ("paused", "resumed")),
                str(sum(each["wrong"] for each in found)),
                f"{false:.1f} of {probes}",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def accuracy_table(lines: Lines) -> str:
    """Test accuracy in %, mean and standard deviation over seeds."""
    names = [name for name in COMPARED if of(lines, method=name)]
    rows = [f"| event | {' | '.join(LABELS[name] for name in names)} |", "| --- " * (len(names) + 1) + "|"]
    for stress in STRESSES:
        cells = [_spread(_accuracies(lines, stress, name)) for name in names]
        rows.append(f"| {stress} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _accuracies(lines: Lines, stress: str, method: str) -> list[float]:
    return [100 * line["test_accuracy"] for line in of(lines, stress=stress, method=method)]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def forecast_table(lines: Lines) -> str:
    """How often the forecast is right."""
    rows = ["| runs | after | slow: right | weak: right | mean of both |", "| --- " * 5 + "|"]
    for line in lines:
        slow, weak = line["slow"], line["weak"]
        rows.append(
            f"| {line['runs']} | {line['after']} | {slow:.0%} of {line['slow runs']} | "
            f"{weak:.0%} of {line['weak runs']} | {(slow + weak) / 2:.0%} |"
        )
    return "\n".join(rows)


def draw_simulated(lines: Lines, forecasts: Lines, path: Path) -> None:
    """Switches against noise, delay against patience, and how often the forecast is right."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    styles = {1: ":", 2: "-", 3: "--"}
    for patience in PATIENCES:
        for hysteresis, colour in zip((1.0, round(2 / 3, 3)), ("tab:red", "tab:blue"), strict=True):
            mine = of(lines, patience=patience, hysteresis=hysteresis)
            label = f"patience {patience}, {'no hysteresis' if hysteresis == 1 else 'hysteresis 2/3'}"
            _switches(left, mine, "at the threshold", color=colour, ls=styles[patience], label=label)
    _switches(left, of(lines, rule="published"), "at the threshold", color="0.5", ls="-", label="published")
    left.set(xlabel="noise, bits", ylabel="switches per 100 probes", xscale="log")
    left.set_xticks(NOISES, [f"{noise:g}" for noise in NOISES])
    left.minorticks_off()
    left.set_title("a lead exactly at the rule's threshold", fontsize=9)
    for patience in PATIENCES:
        mine = of(lines, patience=patience, hysteresis=round(2 / 3, 3))
        _switches(
            middle,
            mine,
            "balanced, little known",
            color="tab:blue",
            ls=styles[patience],
            label=f"patience {patience}, hysteresis 2/3",
        )
    _switches(
        middle, of(lines, rule="published"), "balanced, little known", color="0.5", ls="-", label="published"
    )
    middle.axhline(1, color="k", lw=0.8, ls=":")
    middle.set(xlabel="noise, bits", ylabel="false switches per 100 probes", xscale="log")
    middle.set_xticks(NOISES, [f"{noise:g}" for noise in NOISES])
    middle.minorticks_off()
    middle.set_title("nobody leads, and little is known yet (0.06 bits each)", fontsize=9)
    for name, colour in (("recorded", "tab:blue"), ("fresh", "tab:orange")):
        mine = of(forecasts, runs=name)
        for kind, line_style in (("slow", "-"), ("weak", "--")):
            right.plot(
                [line["after"] for line in mine],
                [100 * line[kind] for line in mine],
                marker="o",
                ms=4,
                color=colour,
                ls=line_style,
                label=f"{kind} modalities, {name} runs",
            )
    right.set(xlabel="epochs of training", ylabel="forecast is right, %", ylim=(0, 103))
    right.set_title("slow or weak?", fontsize=9)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7, handlelength=3.5)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _switches(axes: Any, lines: Iterable[Mapping[str, Any]], scene: str, **style: Any) -> None:
    mine = [line for line in lines if line["scene"] == scene]
    axes.plot(
        [line["noise"] for line in mine],
        [line["switches per 100 probes"] for line in mine],
        marker="o",
        ms=4,
        **style,
    )


def draw_runs(lines: Lines, path: Path) -> None:
    """One run of `pausing` per event: what is known uniquely, the event, and who is paused."""
    chosen = [run for stress in STRESSES if (run := of(lines, stress=stress, method="pausing"))]
    figure, grid = plt.subplots(2, 4, figsize=(14, 5.6), layout="constrained")
    for axes, runs in zip(grid.flat, chosen, strict=False):
        line = runs[0]
        trajectory, (start, end) = line["trajectory"], line["event"]
        steps = trajectory["step"]
        in_stage = [step for step, stage in zip(steps, trajectory["stage"], strict=True) if stage == 1]
        names = [key.removeprefix("unique_") for key in trajectory if key.startswith("unique_")]
        if line["stress"] != "nothing":
            axes.axvspan(start, end, color="0.85", label="the event")
        for name, colour in zip(names, ("tab:blue", "tab:orange"), strict=True):
            axes.plot(steps, trajectory[f"unique_{name}"], color=colour, lw=1.3, label=name)
        _draw_pauses(axes, trajectory, names)
        axes.axvline(in_stage[-1], color="k", lw=0.8, ls=":")
        axes.set_title(line["stress"], fontsize=9)
        axes.set_ylim(bottom=-0.12)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    for axes in grid.flat[len(chosen) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("uniqueness, bits")
    for axes in grid[-1]:
        axes.set_xlabel("step (dotted: stage 2 begins)")
    figure.suptitle("Peak synergy under stress, one seed: bars at the bottom are pauses", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_pauses(axes: Any, trajectory: Mapping[str, Any], names: Sequence[str]) -> None:
    """A bar for each interval up to a probe in which a modality was paused, in its colour."""
    spans = list(zip([0, *trajectory["step"]], trajectory["step"], trajectory["paused"], strict=False))
    for name, colour in zip(names, ("tab:blue", "tab:orange"), strict=True):
        bars = [(start, end - start) for start, end, paused in spans if name in paused]
        axes.broken_barh(bars, (-0.09, 0.05), color=colour, lw=0)
