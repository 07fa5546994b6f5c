"""Does the estimate by clusters follow the information that was put into continuous embeddings?

    OMP_NUM_THREADS=1 python benchmarks/bench_flows.py

Information of known, graded amount flows from modality 1 alone, from both alike, or from neither alone, into a label
of 4 classes (see flows.py; 256 and 128 dimensions, 2000 samples). One JSON line per data set goes to
benchmarks/results/flows.jsonl; benchmarks/results/flows.png shows the estimate against what was injected, beside the
published probe.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from flows import KINDS, draw, population
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from published import published_probe
from scipy.stats import spearmanr

from ecsfusion.pid.estimate import fast_pid

RESULTS = Path(__file__).parent / "results"
AMOUNTS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)
CLASSES = 4


def measure(kind: str, amount: float, samples: int, seed: int) -> dict[str, Any]:
    """One data set: truth, ours with interval, published."""
    flow = draw(population(kind, amount, CLASSES), samples, seed=seed)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = fast_pid(
            [flow.first, flow.second], flow.labels, num_classes=CLASSES, method="clusters", seed=seed
        )
    seconds = time.perf_counter() - start
    published = published_probe(flow.first, flow.second, flow.labels, seed)
    low, high = zip(
        *(pid.redundancy_interval.tolist(), *pid.unique_interval.tolist(), pid.synergy_interval.tolist()),
        strict=True,
    )
    return {
        "kind": kind,
        "amount": amount,
        "samples": samples,
        "seed": seed,
        "truth": [flow.redundancy, *flow.unique, flow.synergy],
        "ours": [float(pid.redundancy), *pid.unique.tolist(), float(pid.synergy)],
        "low": low,
        "high": high,
        "published": [published.redundancy, published.unique1, published.unique2, published.synergy],
        "seconds": seconds,
        "published_seconds": published.seconds,
    }


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Rank correlation and error of the injected atom, and how often the interval holds the truth."""
    result: dict[str, Any] = {}
    for kind, atom in zip(KINDS, (1, 0, 3), strict=True):
        selected = [record for record in records if record["kind"] == kind]
        truth = np.array([record["truth"] for record in selected])
        for name in ("ours", "published"):
            found = np.array([record[name] for record in selected])
            result[f"{kind}, {name}: rank correlation"] = float(spearmanr(truth[:, atom], found[:, atom])[0])
            result[f"{kind}, {name}: error of all atoms, bits"] = float(
                np.sqrt(((found - truth) ** 2).mean())
            )
        low, high = (np.array([record[end] for record in selected]) for end in ("low", "high"))
        inside = (low <= truth + 1e-3) & (truth - 1e-3 <= high)
        result[f"{kind}, ours: truth in the interval"] = float(inside.mean())
    return result


def draw_picture(records: list[dict[str, Any]], path: Path) -> None:
    """Estimated against injected bits, a panel per flow."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    titles = ("in modality 1 only: uniqueness", "in both alike: redundancy", "in neither alone: synergy")
    for axes, kind, atom, title in zip(
        figure.subplots(1, 3, sharey=True), KINDS, (1, 0, 3), titles, strict=True
    ):
        selected = [record for record in records if record["kind"] == kind]
        injected = [record["truth"][atom] for record in selected]
        axes.plot([0, 2.05], [0, 2.05], color="black", linewidth=0.8, label="what was put in")
        axes.scatter(
            injected,
            [r["published"][atom] for r in selected],
            s=26,
            marker="x",
            color="#cc3311",
            label="published probe",
        )
        ours = np.array([r["ours"][atom] for r in selected])
        ends = np.array([[r["low"][atom], r["high"][atom]] for r in selected]).T
        errors = np.abs(ends - ours)
        style = {
            "fmt": "o",
            "markersize": 4,
            "color": "#0077bb",
            "elinewidth": 1,
            "label": "fast_pid, 95 % interval",
        }
        axes.errorbar(injected, ours, errors, **style)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("bits put in")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("bits reported")
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    records = []
    with open(options.output / "flows.jsonl", "w") as out:
        out.write(json.dumps({"environment": environment("scikit-learn", "scipy")}) + "\n")
        for kind in KINDS:
            for amount in AMOUNTS:
                for seed in range(options.seeds):
                    records.append(measure(kind, amount, options.samples, seed))
                    out.write(json.dumps(records[-1]) + "\n")
        found = summary(records)
        out.write(json.dumps({"summary": found}) + "\n")
    for name, value in found.items():
        print(f"{value:8.3f}  {name}")
    draw_picture(records, options.output / "flows.png")


if __name__ == "__main__":
    main()
