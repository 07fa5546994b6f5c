"""Is the estimate right where the truth is known? `fast_pid` and the published probe on the problems of known_truth/.

    OMP_NUM_THREADS=1 python benchmarks/bench_known_truth.py --rows 500 2000 20000
    OMP_NUM_THREADS=1 python benchmarks/bench_known_truth.py --development --rows 2000 --estimator posteriors
    python benchmarks/bench_known_truth.py --report                # only the summary and the picture

One JSON line per (problem, N, estimator) in benchmarks/results/known_truth.jsonl; a line that is there already is
replaced when the same cell is run again. known_truth.png shows, per kind of problem, the truth and the estimates.

A cell is one number (I1, I2, I12, R, U1, U2 or S) of one problem at one N. It is right within 0.05 bits or 5 % of
H(Y), whichever is more.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from known_truth.problems import DEVELOPMENT, Problem, problems
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from published import PublishedPID, published_probe
from torch import Tensor

from ecsfusion.pid.clusters import FewSamplesWarning
from ecsfusion.pid.decomposition import PID
from ecsfusion.pid.estimate import fast_pid

RESULTS = Path(__file__).parent / "results"
ROWS = (500, 2000, 20_000)
VALUES = ("I1", "I2", "I12", "R", "U1", "U2", "S")
MIN_LEAD = 0.1
Record = dict[str, Any]
Estimator = Callable[[Tensor, Tensor, Tensor], PID | PublishedPID]


def estimator_of(name: str) -> Estimator:
    """The published probe, or `fast_pid` by a method."""

    def estimator(x1: Tensor, x2: Tensor, y: Tensor) -> PID | PublishedPID:
        if name == "published":
            return published_probe(x1.numpy(), x2.numpy(), y.numpy())
        return fast_pid([x1, x2], y, method=name)

    return estimator


def values_of(pid: PID | PublishedPID) -> dict[str, float]:
    if isinstance(pid, PublishedPID):
        atoms = {"R": pid.redundancy, "U1": pid.unique1, "U2": pid.unique2, "S": pid.synergy}
        single = {"I1": pid.redundancy + pid.unique1, "I2": pid.redundancy + pid.unique2}
        return {**single, "I12": sum(atoms.values()), **atoms}
    return {
        "I1": float(pid.mutual_information[0]),
        "I2": float(pid.mutual_information[1]),
        "I12": float(pid.joint_mutual_information),
        "R": float(pid.redundancy),
        "U1": float(pid.unique[0]),
        "U2": float(pid.unique[1]),
        "S": float(pid.synergy),
    }


def intervals_of(pid: PID | PublishedPID) -> dict[str, list[float]]:
    """The ends, of those numbers that have an interval."""
    if isinstance(pid, PublishedPID):
        return {}
    found: dict[str, Tensor | None] = {"R": pid.redundancy_interval, "S": pid.synergy_interval}
    for i in range(2):
        found[f"U{i + 1}"] = None if pid.unique_interval is None else pid.unique_interval[i]
    return {name: [round(float(v), 5) for v in ends] for name, ends in found.items() if ends is not None}


def measure(problem: Problem, rows: int, name: str, estimator: Estimator, seed: int = 0) -> Record:
    """One line: what `estimator` says of `rows` rows of `problem`, and what is true."""
    x1, x2, y = problem.draw(rows, seed)
    start = time.process_time()  # of this process alone, whatever runs beside it
    pid = estimator(x1, x2, y)
    seconds = time.process_time() - start
    truth = problem.truth()
    return {
        "problem": problem.name,
        "kind": problem.kind,
        "rows": rows,
        "estimator": name,
        "seed": seed,
        "suite_seed": problem.suite_seed,
        "classes": problem.num_classes,
        "dims": problem.dims,
        "entropy": round(truth.entropy, 5),
        "truth": {value: round(getattr(truth, value), 5) for value in VALUES},
        "truth_error": truth.error,
        "estimate": {value: round(v, 5) for value, v in values_of(pid).items()},
        "interval": intervals_of(pid),
        "seconds": round(seconds, 4),
    }


def run(
    chosen: Iterable[Problem],
    rows: Sequence[int],
    estimators: dict[str, Estimator],
    seeds: int = 1,
    note: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """All cells; `note` gets every line as soon as it is measured."""
    records = []
    for problem in chosen:
        for number in rows:
            for name, estimator in estimators.items():
                for seed in range(seeds):
                    records.append(measure(problem, number, name, estimator, seed))
                    note(records[-1])
    return records


def tolerance(record: Record) -> float:
    return max(0.05, 0.05 * record["entropy"])


def errors(record: Record) -> dict[str, float]:
    return {value: record["estimate"][value] - record["truth"][value] for value in VALUES}


def leader_is_right(record: Record) -> bool | None:
    """None where no modality leads by 0.1 bits."""
    lead, seen = (record[side]["U1"] - record[side]["U2"] for side in ("truth", "estimate"))
    return None if abs(lead) < MIN_LEAD else lead * seen > 0


def summary(records: Sequence[Record]) -> Record:
    """The numbers to quote, of any selection of lines."""
    sizes = [abs(e) / tolerance(r) for r in records for e in errors(r).values()]
    leaders = [right for r in records if (right := leader_is_right(r)) is not None]
    held, widths = [], []
    for record in records:
        for value, (low, high) in record["interval"].items():
            truth, margin = record["truth"][value], record["truth_error"] + 1e-3
            held.append(low - margin <= truth <= high + margin)
            widths.append(high - low)
    worst = max(records, key=lambda r: max(abs(e) for e in errors(r).values()) / tolerance(r))
    name, error = max(errors(worst).items(), key=lambda item: abs(item[1]))
    return {
        "lines": len(records),
        "right": share(size <= 1 for size in sizes),
        "right within 3": share(size <= 3 for size in sizes),
        "worst": f"{name} {error:+.2f} of {worst['problem']}",
        "leader right": share(leaders),
        "interval holds": share(held),
        "width": round(float(np.mean(widths)), 4) if widths else None,
        "seconds": round(float(np.mean([r["seconds"] for r in records])), 3),
    }


def share(values: Iterable[bool]) -> float | None:
    values = list(values)
    return round(sum(values) / len(values), 4) if values else None


def report(records: Sequence[Record]) -> str:
    """The summary, per estimator and N, then per kind."""
    head = f"{'':30s} {'lines':>5} {'right':>6} {'<= 3x':>6} {'leader':>6} {'holds':>6} {'width':>6} {'s':>7}  worst"
    lines = [head]
    for estimator in sorted({r["estimator"] for r in records}):
        for number in sorted({r["rows"] for r in records}):
            group = [r for r in records if (r["estimator"], r["rows"]) == (estimator, number)]
            if not group:
                continue
            lines.append(_line(f"{estimator}, N = {number}", summary(group)))
            for kind in dict.fromkeys(r["kind"] for r in group):
                lines.append(_line(f"    {kind}", summary([r for r in group if r["kind"] == kind])))
    return "\n".join(lines)


def _line(name: str, s: Record) -> str:
    def percent(value: float | None) -> str:
        return f"{'-':>6}" if value is None else f"{100 * value:5.1f}%"

    shares = " ".join(percent(s[n]) for n in ("right", "right within 3", "leader right", "interval holds"))
    width = f"{'-':>6}" if s["width"] is None else f"{s['width']:6.3f}"
    return f"{name:30s} {s['lines']:5d} {shares} {width} {s['seconds']:7.2f}  {s['worst']}"


LOOKS = {
    "published": ("#ddaa33", "the published probe"),
    "clusters": ("#cc3311", "clusters, without the bias of counting"),
    "posteriors": ("#0077bb", "held-out posteriors"),
}


def draw_picture(records: Sequence[Record], path: Path) -> None:
    """Rows are kinds, panels are numbers; black: the truth, points: the estimates (means over the problems)."""
    estimators = {number: {r["estimator"] for r in records if r["rows"] == number} for number in ROWS}
    # Beside one another where all of them were measured.
    number = max(ROWS, key=lambda rows: (len(estimators[rows]), rows))
    shown = [r for r in records if r["rows"] == number]
    kinds = list(dict.fromkeys(r["kind"] for r in shown))
    panels: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("known by both together, I12", ("I12",)),
        ("redundant, R", ("R",)),
        ("unique, U1 + U2", ("U1", "U2")),
        ("synergy, S", ("S",)),
    )
    figure = Figure(figsize=(13, 1.6 + 0.34 * len(kinds)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True)

    def mean(kind: str, side: str, names: tuple[str, ...], estimator: str | None) -> float | None:
        rows = [r for r in shown if r["kind"] == kind and estimator in (None, r["estimator"])]
        return float(np.mean([sum(r[side][n] for n in names) for r in rows])) if rows else None

    for axis, (title, names) in zip(axes, panels, strict=True):
        for place, kind in enumerate(kinds):
            truth = mean(kind, "truth", names, None)
            axis.barh(place, truth, 0.62, color="#d9d9d9", zorder=1)
            axis.plot([truth, truth], [place - 0.31, place + 0.31], color="black", linewidth=2.5, zorder=2)
            for estimator, (color, _) in LOOKS.items():
                value = mean(kind, "estimate", names, estimator)
                if value is not None:
                    axis.plot(value, place, "o", color=color, markersize=9, zorder=3)
        axis.set_title(title, fontsize=12)
        axis.set_xlabel("bits")
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(left=0)
    axes[0].set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds], fontsize=11)
    axes[0].invert_yaxis()
    axes[0].plot([], [], color="black", linewidth=2.5, label="truth")
    for estimator, (color, label) in LOOKS.items():
        if any(r["estimator"] == estimator for r in shown):
            axes[0].plot([], [], "o", color=color, markersize=9, label=label)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=12,
        title=f"{number} rows, mean over the problems of a kind",
    )
    figure.savefig(path, dpi=130)


def key(record: Record) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("problem", "rows", "estimator", "seed", "suite_seed"))


def stored_lines(path: Path) -> list[Record]:
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "problem" in line]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--kinds", nargs="*", help="only problems of these kinds")
    parser.add_argument("--names", nargs="*", help="only these problems")
    parser.add_argument("--development", action="store_true", help="only a few problems of every kind")
    parser.add_argument("--limit", type=int, help="only the first so many problems")
    parser.add_argument("--estimator", nargs="+", choices=tuple(LOOKS), default=list(LOOKS))
    parser.add_argument("--seeds", type=int, default=1, help="samples of every problem")
    parser.add_argument("--suite-seed", type=int, default=0, help="fresh problems of the same kinds")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "known_truth.jsonl"
    warnings.simplefilter("ignore", FewSamplesWarning)
    records = {key(record): record for record in stored_lines(path)}
    if not options.report:
        torch.set_num_threads(1)
        names = DEVELOPMENT if options.development else options.names
        chosen = [p for p in problems(options.suite_seed, options.kinds) if not names or p.name in names]
        chosen = chosen[: options.limit]
        estimators = {name: estimator_of(name) for name in options.estimator}
        cells = {
            (p.name, number, name, seed, options.suite_seed)
            for p in chosen
            for number in options.rows
            for name in estimators
            for seed in range(options.seeds)
        }
        records = {cell: record for cell, record in records.items() if cell not in cells}
        with open(path, "w") as out:

            def note(record: Record) -> None:
                records[key(record)] = record
                out.write(json.dumps(record) + "\n")
                out.flush()

            out.write(json.dumps({"environment": environment("scikit-learn")}) + "\n")
            for record in list(records.values()):
                note(record)
            run(chosen, options.rows, estimators, options.seeds, note)
    if not records:
        raise SystemExit("no lines to report")
    print(report(list(records.values())))
    draw_picture(list(records.values()), options.output / "known_truth.png")


if __name__ == "__main__":
    main()
