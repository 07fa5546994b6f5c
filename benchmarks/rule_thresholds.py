"""Do the rules' thresholds suit what heads show on natural data? Read from runs that are recorded; nothing is trained.

    python benchmarks/rule_thresholds.py

`peak-synergy`, `weak-first` and `adaptive` take a modality for a clear leader when its uniqueness is more than 3 times
that of the next, and 0.15 bits more; `peak-synergy` takes differences of synergy up to 0.05 bits for none. Here both
are held against the runs of `compare.py` in which every modality trains alone, to the end, and no rule decides
("stage-1-only", lines that name their commit: the decomposition is that of the heads).

The table has a line per suite:

- noise: the standard deviation of one reading of the lead, and of synergy, from neighbouring readings of the second
  half of training;
- lead: in bits, at the first reading and at the last;
- same: share of runs whose first leader is also that of the last three readings;
- best: share of runs whose first leader has the best accuracy alone on the test rows;
- peak: what synergy is above the mean of its last three readings at its largest, and the share of training there.

Then, for pairs of thresholds, in how many runs a modality leads clearly within the first three readings, and how often
that is the one with the best accuracy alone. The picture is benchmarks/results/rule_thresholds.png.
"""

from ast import literal_eval
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from protocol.results import read_lines

RESULTS = Path(__file__).parent / "results"
RATIOS = (1.5, 2.0, 3.0, 5.0)
MARGINS = (0.05, 0.1, 0.15, 0.25, 0.4)
SCOUTING = 3
"""The most readings that `weak-first` scouts."""


class Unsteered(NamedTuple):
    """One run of unimodal training; M modalities, P readings."""

    suite: str
    names: tuple[str, ...]
    unique: np.ndarray
    """(M, P) bits."""
    synergy: np.ndarray
    """(P,) bits."""
    best: str
    """The modality with the best accuracy alone on the test rows."""

    @property
    def lead(self) -> np.ndarray:
        """(P,) bits by which the largest uniqueness is above the next."""
        ordered = np.sort(self.unique, axis=0)
        return ordered[-1] - ordered[-2]

    def leader(self, readings: slice) -> str:
        """The modality with the largest mean uniqueness over some readings."""
        return self.names[int(self.unique[:, readings].mean(1).argmax())]

    def clear_leader(self, ratio: float, margin: float) -> str | None:
        """The first modality that leads clearly while a rule scouts."""
        for unique in self.unique.T[:SCOUTING]:
            second, first = np.sort(unique)[-2:]
            if first > ratio * second and first - second > margin:
                return self.names[int(unique.argmax())]
        return None


def recorded() -> list[Unsteered]:
    """The runs in which every modality trained alone, of today's decomposition."""
    return [
        unsteered(line)
        for path in sorted((RESULTS / "compare").glob("*.jsonl"))
        for line in read_lines(path)
        if line["method"] == "stage-1-only" and line.get("commit")
    ]


def unsteered(line: dict[str, Any]) -> Unsteered:
    """One line of `compare.py`."""
    trajectory, test = (
        literal_eval(part) if isinstance(part, str) else part for part in (line["trajectory"], line["test"])
    )
    names = tuple(name.removeprefix("unique_") for name in trajectory if name.startswith("unique_"))
    return Unsteered(
        line["suite"],
        names,
        np.array([trajectory[f"unique_{name}"] for name in names]),
        np.array(trajectory["synergy"]),
        max(names, key=lambda name: test[name]),
    )


def noise(values: np.ndarray) -> float:
    """The standard deviation of one reading, from what neighbouring readings of the second half differ by."""
    return float((np.diff(values[len(values) // 2 :]).var() / 2) ** 0.5)


def summary(runs: list[Unsteered]) -> dict[str, float]:
    """The line of one suite."""
    end = slice(-3, None)
    return {
        "runs": len(runs),
        "noise lead": np.mean([noise(run.lead) for run in runs]),
        "noise S": np.mean([noise(run.synergy) for run in runs]),
        "lead first": np.mean([run.lead[0] for run in runs]),
        "lead last": np.mean([run.lead[-1] for run in runs]),
        "same": np.mean([run.leader(slice(1)) == run.leader(end) for run in runs]),
        "best": np.mean([run.leader(slice(1)) == run.best for run in runs]),
        "peak S": np.mean([run.synergy.max() - run.synergy[end].mean() for run in runs]),
        "peak at": np.mean([run.synergy.argmax() / (len(run.synergy) - 1) for run in runs]),
    }


def draw_picture(runs: list[Unsteered], path: Path) -> None:
    """The lead of the modality that is best alone on test rows, over training, one panel per suite."""
    suites = list(dict.fromkeys(run.suite for run in runs))
    columns = 4
    figure = Figure(figsize=(3.2 * columns, 2.4 * -(-len(suites) // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(-(-len(suites) // columns), columns, sharey=True, squeeze=False).flatten()
    for axis in axes[len(suites) :]:
        axis.set_visible(False)
    for axis, suite in zip(axes, suites, strict=False):
        for run in (run for run in runs if run.suite == suite):
            place = run.names.index(run.best)
            others = np.delete(run.unique, place, axis=0).max(0)
            axis.plot(
                np.linspace(0, 1, len(others)), run.unique[place] - others, color="#0077bb", linewidth=1.5
            )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.axhspan(-0.15, 0.15, color="#d9d9d9", zorder=0)
        axis.set_title(suite, fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("share of unimodal training", fontsize=11)
    figure.supylabel("lead in uniqueness, in bits", fontsize=11)
    figure.suptitle(
        "The lead of the modality that is best alone on test rows, one line per seed. Gray: the margin."
    )
    figure.savefig(path, dpi=120)


def main() -> None:
    runs = recorded()
    if not runs:
        raise SystemExit("benchmarks/results/compare has no run of stage-1-only that names its commit.")
    suites = {
        suite: [run for run in runs if run.suite == suite] for suite in dict.fromkeys(r.suite for r in runs)
    }
    lines = {suite: summary(own) for suite, own in suites.items()}
    print(f"{'':18s}" + "".join(f"{name:>11s}" for name in next(iter(lines.values()))))
    for suite, values in lines.items():
        print(f"{suite:18s}" + "".join(f"{value:11.3g}" for value in values.values()))
    print(f"\n{'ratio':>6s}{'margin':>8s}{'clear':>8s}{'right':>8s}   of {len(runs)} runs")
    for ratio in RATIOS:
        for margin in MARGINS:
            named = [(leader, run.best) for run in runs if (leader := run.clear_leader(ratio, margin))]
            right = np.mean([leader == best for leader, best in named]) if named else float("nan")
            print(f"{ratio:6.1f}{margin:8.2f}{len(named):8d}{100 * right:7.0f}%")
    draw_picture(runs, RESULTS / "rule_thresholds.png")


if __name__ == "__main__":
    main()
