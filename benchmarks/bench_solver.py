"""Error against time of three solvers on the same tables and one core: ours, the published one, a cone program.

    OMP_NUM_THREADS=1 python benchmarks/bench_solver.py

writes one JSON line per measurement to benchmarks/results/solver.jsonl and draws benchmarks/results/solver.png. A
time is the median of the repeats. Errors are those of the synergy in bits, against our solver at a certified gap of
1e-7. The published solver and the cone solver are stopped by themselves, the latter also by --cone-seconds. Times
are processor time of one thread: on an idle core they are the time on the clock, on a busy machine they hold. 256
tables in one batch are compared with the published solver on some of them, one after the other; the time of all is
extrapolated from these.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cone import ConeSolution, solve_cone
from ecsfusion_kernels import broja
from environment import environment
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from published import measure, published_solver
from torch import Tensor

from ecsfusion.pid.decomposition import decompose

RESULTS = Path(__file__).parent / "results"
SIZES = [
    (2, 2, 0),
    (8, 3, 1280),
    (20, 6, 1280),
    (20, 28, 1280),
    (20, 101, 1280),
    (64, 101, 20_000),
    # K, C, N
]
TRUTH = 1e-7
TOLERANCES = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6]
BATCH, BATCH_PUBLISHED = 256, 8


def histograms(count: int, clusters: int, classes: int, samples: int, seed: int = 0) -> Tensor:
    """Counts (count, K, K, C): two noisy views of a class center and of a shared nuisance, cut into Voronoi cells."""
    generator = np.random.default_rng(seed)
    tables = np.zeros((count, clusters, clusters, classes))
    for table in tables:
        labels = generator.integers(0, classes, samples)
        shared = 0.5 * generator.normal(size=(samples, 4))
        cells = []
        for _ in range(2):
            rows = generator.normal(size=(classes, 4))[labels] + generator.normal(size=(samples, 4)) + shared
            centers = rows[generator.choice(samples, clusters, replace=False)]
            cells.append((rows @ centers.T - 0.5 * (centers**2).sum(-1)).argmax(-1))
        np.add.at(table, (*cells, labels), 1)
    return torch.from_numpy(tables)


def and_gate() -> Tensor:
    table = torch.zeros(2, 2, 2, dtype=torch.float64)
    table[0, 0, 0] = table[0, 1, 0] = table[1, 0, 0] = table[1, 1, 1] = 1
    return table


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def measure_table(table: Tensor, repeats: int, cone_seconds: float) -> list[dict[str, Any]]:
    """Measurements of the three solvers on one table."""
    size = "x".join(str(n) for n in table.shape)
    truth = decompose(table, tolerance=TRUTH, max_iterations=200_000)
    synergy = float(truth.synergy)
    results = []
    for tolerance in TOLERANCES:
        pid = decompose(table, tolerance=tolerance)
        seconds = median_seconds(lambda t=tolerance: decompose(table, tolerance=t), max(repeats, 21))
        results.append(
            {
                "table": size,
                "method": "ours",
                "tolerance": tolerance,
                "seconds": seconds,
                "gap": float(pid.gap),
                "error": abs(float(pid.synergy) - synergy),
            }
        )

    path: list[dict[str, Any]] = []

    def watch(step: int, q: Tensor) -> None:
        if step in {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000}:
            path.append({"step": step, "error": abs(measure(table, q).synergy - synergy)})

    published = published_solver(table, watch)
    seconds = median_seconds(lambda: published_solver(table), repeats)
    for point in path:
        point["seconds"] = seconds * point["step"] / published.steps
    results.append(
        {
            "table": size,
            "method": "published",
            "seconds": seconds,
            "steps": published.steps,
            "error": abs(published.synergy - synergy),
            "infeasibility": published.infeasibility,
            "path": path,
        }
    )

    # The report takes the loosest accuracy that is right to 1e-4 bits.
    for accuracy in (1e-4, 1e-6, 1e-8):
        cones: list[ConeSolution] = []
        for _ in range(repeats):
            cones.append(solve_cone(table.numpy(), cone_seconds, accuracy))
            if cones[-1].seconds > 0.1 * cone_seconds:
                break
        cone = cones[0]
        solved = math.isfinite(cone.conditional_entropy)
        p = table / table.sum()
        given_both = float(_conditional_entropy(p))
        results.append(
            {
                "table": size,
                "method": "cone",
                "accuracy": accuracy,
                "seconds": statistics.median(c.seconds for c in cones),
                "solver_seconds": statistics.median(c.solver_seconds for c in cones),
                "repeats": len(cones),
                "error": abs(cone.conditional_entropy - given_both - synergy) if solved else None,
                "status": cone.status,
            }
        )
        if not solved:
            break
    return results


def measure_batch(repeats: int) -> list[dict[str, Any]]:
    """256 tables of 20 x 20 x 6 at once against the published solver, one after the other."""
    tables = histograms(BATCH, 20, 6, 1280, seed=1)
    results = []
    for tolerance in (1e-3, 1e-4):
        pid = decompose(tables, tolerance=tolerance)
        seconds = median_seconds(lambda t=tolerance: decompose(tables, tolerance=t), repeats)
        results.append(
            {
                "table": f"{BATCH} of 20x20x6",
                "method": "ours",
                "tolerance": tolerance,
                "seconds": seconds,
                "gap": float(pid.gap.max()),
            }
        )
    start = time.process_time()
    runs = [published_solver(table) for table in tables[:BATCH_PUBLISHED]]
    spent = time.process_time() - start
    results.append(
        {
            "table": f"{BATCH} of 20x20x6",
            "method": "published",
            "seconds": spent * BATCH / len(runs),
            "extrapolated_from": len(runs),
            "error": max(abs(run.synergy - float(s)) for run, s in zip(runs, pid.synergy, strict=False)),
        }
    )
    return results


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """One panel per table: |error of S| in bits over seconds."""
    sizes = list(dict.fromkeys(r["table"] for r in results if " of " not in r["table"]))
    figure = Figure(figsize=(12, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3, sharey=True, sharex=True).flat
    smallest = 1e-9
    for axes, size in zip(panels, sizes, strict=True):
        ours, published, cone = (
            [r for r in results if r["table"] == size and r["method"] == method]
            for method in ("ours", "published", "cone")
        )
        axes.fill_between([1e-5, 1e3], smallest / 2, 1e-4, color="#228833", alpha=0.08, linewidth=0)
        seconds = [r["seconds"] for r in ours]
        axes.plot(
            seconds,
            [max(r["gap"], smallest) for r in ours],
            "o-",
            color="#4477aa",
            label="ours: certified gap",
        )
        axes.plot(
            seconds,
            [max(r["error"], smallest) for r in ours],
            "o:",
            color="#4477aa",
            mfc="white",
            label="ours: error",
        )
        (last,) = published
        way = [*last["path"], last]
        axes.plot(
            [p["seconds"] for p in way],
            [max(p["error"], smallest) for p in way],
            "-",
            color="#ee6677",
            label="published: error",
        )
        axes.plot(last["seconds"], max(last["error"], smallest), "s", color="#ee6677", markersize=8)
        solved = [r for r in cone if r["error"] is not None]
        axes.plot(
            [r["seconds"] for r in solved],
            [max(r["error"], smallest) for r in solved],
            "^-",
            color="#555555",
            label="cone program: error",
        )
        for r in cone:
            if r["error"] is None:
                axes.annotate(
                    f"cone program:\nnot finished after {r['seconds']:.0f} s",
                    (0.97, 0.05),
                    xycoords="axes fraction",
                    ha="right",
                    color="#555555",
                )
        at = next(r for r in ours if r["tolerance"] == 1e-4)
        axes.set_title(
            f"{size.replace('x', ' x ')}: {last['seconds'] / at['seconds']:.0f} times faster", fontsize=11
        )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(1e-4, 200)
        axes.set_ylim(smallest / 2, 3)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    for axes in figure.axes[3:]:
        axes.set_xlabel("processor seconds of one core")
    for axes in figure.axes[::3]:
        axes.set_ylabel("bits")
    figure.suptitle(
        "Error of the synergy against time. Square: where the published solver stops. Green: within 1e-4 bits.\n"
        "Titles: time of the published solver over ours until a certified gap of 1e-4 bits."
    )
    figure.savefig(path, dpi=110)


def report(results: list[dict[str, Any]]) -> None:
    """The comparison in words, for the screen."""
    largest = 0.0
    for size in dict.fromkeys(r["table"] for r in results):
        rows = [r for r in results if r["table"] == size]
        ours = next(r for r in rows if r["method"] == "ours" and r["tolerance"] == 1e-4)
        published = next(r for r in rows if r["method"] == "published")
        line = (
            f"{size:>16}  ours {1e3 * ours['seconds']:8.2f} ms (gap {ours['gap']:.0e})"
            f"  published {published['seconds']:8.2f} s (error {published['error']:.0e})"
            f"  {published['seconds'] / ours['seconds']:7.0f} x"
        )
        cones = [r for r in rows if r["method"] == "cone"]
        close = next((r for r in cones if r["error"] is not None and r["error"] <= 1e-4), None)
        if close is not None:
            line += f"  cone {close['seconds']:8.4f} s  {close['seconds'] / ours['seconds']:7.1f} x"
            line += f"  (solver alone {close['solver_seconds'] / ours['seconds']:7.1f} x)"
            largest = max(largest, min(r["error"] for r in cones if r["error"] is not None))
        elif cones:
            line += f"  cone > {cones[-1]['seconds']:.0f} s  > {cones[-1]['seconds'] / ours['seconds']:.0f} x"
        print(line)
    print(f"largest difference from the cone program at its tightest: {largest:.1e} bits")


def _conditional_entropy(p: Tensor) -> Tensor:
    """H(Y | X1, X2) in bits."""
    pair = p.sum(-1, keepdim=True)
    return -torch.xlogy(p, torch.where(p > 0, p / pair, 1.0)).sum() / np.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="at least; a time is their median")
    parser.add_argument("--cone-seconds", type=float, default=60.0, help="time limit of one cone program")
    parser.add_argument("--output", type=Path, default=RESULTS / "solver.jsonl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Imports and allocators are warm.
    broja(torch.full((1, 2, 2), 0.25), torch.full((1, 2, 2), 0.25))

    results = []
    for clusters, classes, samples in SIZES:
        table = and_gate() if clusters == 2 else histograms(1, clusters, classes, samples)[0]
        results += measure_table(table, arguments.repeats, arguments.cone_seconds)
        print(f"{results[-1]['table']} measured", file=sys.stderr)
    results += measure_batch(arguments.repeats)
    where = environment("clarabel")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text("".join(json.dumps({**r, **where}) + "\n" for r in results))
    draw(results, arguments.output.with_suffix(".png"))
    report(results)


if __name__ == "__main__":
    main()
