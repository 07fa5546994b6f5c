"""From lines of results to tables and pictures; nothing in them is typed by hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from scipy.stats import t as student

from protocol.methods import CALIBRATED, CONTROLS, FUSED, METHODS, PUBLISHED, SIMPLE_READOUTS
from protocol.results import read_lines
from protocol.starts import plot_starts, starts, starts_table

OURS, JOINT = "two-stage", "joint"
TABLES = "tables.md"

Lines = Sequence[Mapping[str, Any]]


def write_report(results: Path) -> str:
    """Write `tables.md` and the pictures beside the lines, from every SUITE.jsonl in the folder; return the tables."""
    suites = suites_in(results)
    parts = ["# Every method under one protocol", "", __doc__.strip(), ""]
    if not suites:
        return "no results yet"
    parts += [summary(suites), ""]
    for name, lines in suites.items():
        parts += [f"## {name}", "", facts(lines), "", method_table(lines), ""]
        plot_suite(lines, name, results / f"{name}.png")
        if starts(lines):
            parts += [
                "Is the peak of synergy the right moment for joint training?",
                "",
                starts_table(lines),
                "",
            ]
            plot_starts(lines, name, results / f"{name}-starts.png")
    if len(suites) > 1:
        plot_overview(suites, results / "overview.png")
    text = "\n".join(parts)
    (results / TABLES).write_text(text, encoding="utf-8")
    return text


def suites_in(results: Path) -> dict[str, Lines]:
    """The lines of every suite in the folder that has any."""
    suites = {path.stem: read_lines(path) for path in sorted(results.glob("*.jsonl"))}
    # The file of a suite whose runs all failed is empty.
    return {name: lines for name, lines in suites.items() if lines}


def by_method(lines: Lines) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Lines by method and seed, methods in the order of `METHODS`."""
    methods: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for line in lines:
        methods[line["method"]][line["seed"]] = line
    return {name: methods[name] for name in METHODS if name in methods}


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The mean and the half width of its confidence interval (Student); infinite with one value."""
    if len(values) < 2:
        return mean(values), float("inf")
    half = float(student.ppf((1 + confidence) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return mean(values), half


def suites_table(suites: Mapping[str, Lines]) -> str:
    """Test accuracy of ours, plain joint training and the controls on every suite, and what it comes to."""
    shown = (OURS, JOINT, *CONTROLS, "published")
    rows = [
        f"| suite | {' | '.join(METHODS[name].label for name in shown)} | ours - joint |",
        "| --- " * (len(shown) + 2) + "|",
    ]
    for suite, lines in suites.items():
        methods, gain = by_method(lines), paired(lines, OURS, JOINT)
        cells = [spread([line["test_accuracy"] for line in methods.get(name, {}).values()]) for name in shown]
        rows.append(f"| {suite} | {' | '.join(cells)} | {'' if gain is None else difference(gain)} |")
    return "\n".join([*rows, "", *verdicts(suites)])


def difference(gain: tuple[float, float, int]) -> str:
    """A paired difference; without an interval where there is one seed only."""
    return f"{gain[0]:+.1f}" + (f" ± {gain[1]:.1f}" if gain[2] > 1 else "")


def paired(
    lines: Lines, method: str, other: str, readout: str | None = None
) -> tuple[float, float, int] | None:
    """Mean difference in points of test accuracy over the seeds that both have, its half interval, and their number."""
    methods = by_method(lines)
    if method not in methods or other not in methods:
        return None
    seeds = sorted(set(methods[method]) & set(methods[other]))
    if not seeds:
        return None

    def value(line: Mapping[str, Any]) -> float:
        return line["test_accuracy"] if readout is None else line["test"][readout]

    return (
        *interval([100 * (value(methods[method][s]) - value(methods[other][s])) for s in seeds]),
        len(seeds),
    )


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation in %."""
    if not values:
        return ""
    return f"{100 * mean(values):.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")


def facts(lines: Lines) -> str:
    """What a suite ran on."""
    first = lines[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    machine = f"{first['processor']}, {first['device']}, {first['threads']} thread per run"
    return f"{first['description']} {machine}; {versions}."


def method_table(lines: Lines) -> str:
    """One row per method: its answer, on shifted test sets too, the same calibrated, every head, what it cost."""
    modalities = [key.removeprefix("unique_") for key in lines[0]["trajectory"] if key.startswith("unique_")]
    shifted = list(lines[0].get("shifted", ()))
    columns = [
        "answer",
        *shifted,
        "calibrated",
        *modalities,
        "ours - it",
        "rate",
        "modality-steps",
        "seconds",
    ]
    rows = [f"| method | seeds | {' | '.join(columns)} |", "| --- " * (len(columns) + 2) + "|"]
    for name, seeds in by_method(lines).items():
        method, chosen = METHODS[name], list(seeds.values())
        gain = paired(lines, OURS, name)
        cells = [
            spread([line["test_accuracy"] for line in chosen]),
            *(spread([line["shifted"][test][method.answer] for line in chosen]) for test in shifted),
            spread([line["test"][CALIBRATED] for line in chosen]) if method.has_heads else "",
            *(spread([line["test"][m] for line in chosen]) if method.has_heads else "" for m in modalities),
            "" if gain is None or name == OURS else difference(gain),
            f"{chosen[0]['setting']['learning_rate']:g}",
            f"{mean(line['modality_steps'] for line in chosen):.0f}",
            f"{mean(line['seconds'] for line in chosen):.0f}",
        ]
        rows.append(f"| {method.label} | {len(chosen)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def summary(suites: Mapping[str, Lines]) -> str:
    """Ours against each rival on each suite, in points of test accuracy, and the means over suites."""
    names = list(suites)
    rows = [f"| ours minus | {' | '.join(names)} | mean |", "| --- " * (len(names) + 2) + "|"]
    for method in METHODS:
        if method == OURS:
            continue
        gains = {suite: paired(lines, OURS, method) for suite, lines in suites.items()}
        known = [value[0] for value in gains.values() if value is not None]
        if not known:
            continue
        cells = ["" if value is None else difference(value) for value in gains.values()]
        rows.append(f"| {METHODS[method].label} | {' | '.join(cells)} | {mean(known):+.1f} ({len(known)}) |")
    text = [
        "Test accuracy of ours minus that of each method, in points, with the 95 % interval of paired seeds.",
        "",
        *rows,
        "",
    ]
    return "\n".join([*text, *verdicts(suites)])


def verdicts(suites: Mapping[str, Lines]) -> list[str]:
    """The three claims of the default, as numbers; a suite with another optimizer counts as one of its own."""
    sentences = []
    over_joint = {suite: paired(lines, OURS, JOINT) for suite, lines in suites.items()}
    gains = {suite: d[0] for suite, d in over_joint.items() if d is not None}
    if gains:
        largest = max(gains, key=lambda suite: gains[suite])
        sentences.append(
            f"- Ours minus plain joint training: {mean(gains.values()):+.2f} points on average of {len(gains)} suites; "
            f"median {median(gains.values()):+.2f}, largest {gains[largest]:+.1f} ({largest})."
        )
    behind, compared = [], 0
    for suite, lines in suites.items():
        for rival in (*CONTROLS, *SIMPLE_READOUTS):
            d = paired(lines, OURS, rival)
            if d is None or d[2] < 2:
                continue
            compared += 1
            if d[0] + d[1] < 0:
                behind.append(f"{suite}, {METHODS[rival].label} {difference(d)}")
    if compared:
        where = "; ".join(behind) if behind else "nowhere"
        sentences.append(
            f"- Behind a simple rival beyond the 95 % interval of paired seeds, of {compared} comparisons: {where}."
        )
    known = {rival: [paired(lines, OURS, rival) for lines in suites.values()] for rival in PUBLISHED}
    means = {
        rival: mean(d[0] for d in gains if d is not None) for rival, gains in known.items() if any(gains)
    }
    if means:
        listed = ", ".join(f"{METHODS[rival].label} {value:+.1f}" for rival, value in means.items())
        sentences.append(
            f"- Ours minus published methods, on average over the suites that each was run on: {listed}."
        )
    return sentences


def plot_suite(lines: Lines, name: str, path: Path) -> None:
    """Every method's test accuracy: its own answer, and calibrated; one small mark per seed."""
    methods = by_method(lines)
    order = sorted(
        methods, key=lambda method: mean(line["test_accuracy"] for line in methods[method].values())
    )
    figure, axes = plt.subplots(figsize=(7, 0.26 * len(order) + 1.2), layout="constrained")
    for place, method in enumerate(order):
        chosen = list(methods[method].values())
        values = [100 * line["test_accuracy"] for line in chosen]
        color = "C1" if method == OURS else "C7" if method == JOINT else "C0"
        axes.plot(values, [place] * len(values), "|", color=color, markersize=7, alpha=0.7)
        axes.plot(mean(values), place, "o", color=color, markersize=5)
        if METHODS[method].has_heads and METHODS[method].answer == FUSED:
            calibrated = mean(100 * line["test"][CALIBRATED] for line in chosen)
            axes.plot(calibrated, place, "o", markerfacecolor="none", color=color, markersize=6)
    axes.set_yticks(range(len(order)), [METHODS[method].label for method in order], fontsize=8)
    axes.set_xlabel(
        "test accuracy, % (filled: the method's answer, mean; bars: seeds; ring: calibrated)", fontsize=8
    )
    axes.set_title(f"{name}: {lines[0]['description']}", fontsize=8, wrap=True)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_overview(suites: Mapping[str, Lines], path: Path) -> None:
    """Ours minus the controls and plain joint training on every suite, with intervals."""
    rivals = (JOINT, *CONTROLS)
    names = list(suites)
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(names) + 1.4), layout="constrained")
    for shift, rival in enumerate(rivals):
        points = [(place, paired(suites[name], OURS, rival)) for place, name in enumerate(names)]
        points = [(place, d) for place, d in points if d is not None]
        axes.errorbar(
            [d[0] for _, d in points],
            [place + 0.14 * (shift - 2) for place, _ in points],
            xerr=[min(d[1], 50.0) for _, d in points],
            fmt="o",
            markersize=4,
            capsize=2,
            linewidth=1,
            label=METHODS[rival].label,
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(
        "test accuracy of two-stage (default) minus the rival's, points; 95 % interval of paired seeds",
        fontsize=8,
    )
    axes.legend(fontsize=7)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
