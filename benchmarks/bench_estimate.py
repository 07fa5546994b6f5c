"""Bias and error of the estimate by clusters: fast_pid, the plug-in values, the published probe.

    OMP_NUM_THREADS=1 python benchmarks/bench_estimate.py

Three questions, one JSON line per answer in benchmarks/results/estimate.jsonl:

- noise: two modalities and a label that have nothing to do with each other, in five shapes; every atom is 0.
- tables: samples of 20 x 20 x C populations whose decomposition is known (certified to 1e-3 bits); error per atom, and
  how often the interval holds the truth.
- clusters: known flows into embeddings (flows.py) of 12 states, estimated with several numbers of clusters.

benchmarks/results/estimate.png shows the first two.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from flows import KINDS, draw, population
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from published import published_probe

from ecsfusion.pid.clusters import estimate
from ecsfusion.pid.decomposition import PID, decompose
from ecsfusion.pid.estimate import fast_pid
from ecsfusion.pid.options import EstimatorOptions

RESULTS = Path(__file__).parent / "results"
CLASSES = (2, 6, 28, 101)
SAMPLES = (500, 1280, 5000, 20_000, 50_000)
SHAPES = ("gaussian", "heavy tails", "anisotropic", "clustered", "same twice")
CLUSTERS = 20
ATOMS = ("redundancy", "unique 1", "unique 2", "synergy")


def atoms(pid: PID) -> list[float]:
    return [float(pid.redundancy), *pid.unique.tolist(), float(pid.synergy)]


def interval_ends(pid: PID) -> tuple[list[float], list[float]]:
    rows = [pid.redundancy_interval, *pid.unique_interval, pid.synergy_interval]
    return [float(row[0]) for row in rows], [float(row[1]) for row in rows]


def noise(shape: str, samples: int, classes: int, seed: int) -> dict[str, Any]:
    """One data set without any information, label frequencies drawn from a Dirichlet distribution."""
    generator = np.random.default_rng(seed)
    rows = [generator.normal(size=(samples, 64)).astype(np.float32) for _ in range(2)]
    if shape == "heavy tails":
        rows = [generator.standard_cauchy(size=(samples, 64)).astype(np.float32) for _ in range(2)]
    elif shape == "anisotropic":
        rows = [x * np.logspace(0, -2, 64, dtype=np.float32) for x in rows]
    elif shape == "clustered":
        centers = generator.normal(size=(2, 9, 64)).astype(np.float32)
        rows = [0.3 * x + c[generator.integers(0, 9, samples)] for x, c in zip(rows, centers, strict=True)]
    elif shape == "same twice":
        rows = [rows[0], rows[0]]
    labels = generator.choice(classes, samples, p=generator.dirichlet(np.full(classes, 5.0)))
    start = time.perf_counter()
    pid = fast_pid(rows, labels, num_classes=classes, method="clusters", seed=seed)
    seconds = time.perf_counter() - start
    low, high = interval_ends(pid)
    record = {"question": "noise", "shape": shape, "samples": samples, "classes": classes, "seed": seed}
    record |= {"truth": [0.0] * 4, "ours": atoms(pid), "low": low, "high": high, "plugin": atoms(pid.plugin)}
    record["seconds"] = seconds
    if samples <= 1280 and shape == "gaussian":
        published = published_probe(*rows, labels, seed)
        record["published"] = [published.redundancy, published.unique1, published.unique2, published.synergy]
        record["published_seconds"] = published.seconds
    return record


def independent_given_label(generator: np.random.Generator, classes: int) -> NDArray[np.float64]:
    frequency = generator.dirichlet(np.full(classes, 5.0))
    first, second = generator.dirichlet(np.full(CLUSTERS, 0.5), (2, classes))
    return np.einsum("c,ci,cj->ijc", frequency, first, second)


def noisy_sum(generator: np.random.Generator, classes: int) -> NDArray[np.float64]:
    groups = generator.integers(0, min(classes, CLUSTERS), (2, CLUSTERS))
    chance = generator.uniform(0.0, 0.9)
    mass = np.outer(*generator.dirichlet(np.full(CLUSTERS, 3.0), 2))
    table = np.repeat(mass[:, :, None], classes, 2) * chance / classes
    target = (groups[0][:, None] + groups[1][None]) % classes
    table[np.arange(CLUSTERS)[:, None], np.arange(CLUSTERS), target] += mass * (1 - chance)
    return table


def coupled_gaussians(generator: np.random.Generator, classes: int) -> NDArray[np.float64]:
    number = 1_000_000
    label = generator.integers(0, classes, number)
    means = 1.5 * generator.normal(size=(classes, 2))
    correlation = generator.uniform(-0.9, 0.9, classes)[label]
    common, own = generator.normal(size=(2, number))
    values = (
        means[label, 0] + common,
        means[label, 1] + correlation * common + np.sqrt(1 - correlation**2) * own,
    )
    cells = [np.searchsorted(np.quantile(v, np.linspace(0, 1, CLUSTERS + 1)[1:-1]), v) for v in values]
    index = np.ravel_multi_index((*cells, label), (CLUSTERS, CLUSTERS, classes))
    counts = np.bincount(index, minlength=CLUSTERS * CLUSTERS * classes)
    return counts.reshape(CLUSTERS, CLUSTERS, classes) / number


def random_table(generator: np.random.Generator, classes: int) -> NDArray[np.float64]:
    flat = generator.dirichlet(np.full(CLUSTERS * CLUSTERS * classes, generator.choice([0.2, 1.0])))
    return flat.reshape(CLUSTERS, CLUSTERS, classes)


FAMILIES: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "independent given the label": independent_given_label,
    "noisy sum": noisy_sum,
    "coupled gaussians": coupled_gaussians,
    "random table": random_table,
}


def known(family: str, samples: int, classes: int, seed: int) -> dict[str, Any]:
    """One sample of a population with a known decomposition."""
    generator = np.random.default_rng([seed, classes])
    table = FAMILIES[family](generator, classes)
    counts = generator.multinomial(samples, (table / table.sum()).ravel()).reshape(table.shape)
    truth = decompose(table, tolerance=1e-3)
    start = time.perf_counter()
    pid = estimate(torch.from_numpy(counts), EstimatorOptions("clusters", seed=seed))
    low, high = interval_ends(pid)
    return {
        "question": "tables",
        "family": family,
        "samples": samples,
        "classes": classes,
        "seed": seed,
        "truth": atoms(truth),
        "ours": atoms(pid),
        "low": low,
        "high": high,
        "plugin": atoms(pid.plugin),
        "seconds": time.perf_counter() - start,
    }


def clusters(kind: str, samples: int, number: int | None, seed: int) -> dict[str, Any]:
    """One flow of 12 states, label of 6 classes, with a given number of clusters (None: the automatic choice)."""
    flow = draw(population(kind, 0.7, 6), samples, (128, 64), seed=seed)
    pid = fast_pid(
        [flow.first, flow.second],
        flow.labels,
        method="clusters",
        num_clusters="auto" if number is None else number,
        bootstrap=0,
        seed=seed,
    )
    truth = [flow.redundancy, *flow.unique, flow.synergy]
    chosen = pid.num_clusters[0]
    record = {"question": "clusters", "kind": kind, "samples": samples, "clusters": number, "seed": seed}
    return record | {"used": chosen, "truth": truth, "ours": atoms(pid)}


def root_mean_square(records: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    """Error per atom, (4,), in bits."""
    errors = np.array([np.subtract(record[name], record["truth"]) for record in records])
    return np.sqrt((errors**2).mean(0))


def covered(records: list[dict[str, Any]]) -> NDArray[np.float64]:
    """Share of the records whose interval holds the truth, per atom, (4,)."""
    low, high, truth = (np.array([record[name] for record in records]) for name in ("low", "high", "truth"))
    return ((low - 1e-3 <= truth) & (truth <= high + 1e-3)).mean(0)


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers to quote."""
    result: dict[str, Any] = {}
    for question in ("noise", "tables"):
        selected = [record for record in records if record["question"] == question]
        for name in ("ours", "plugin"):
            errors = root_mean_square(selected, name).round(4).tolist()
            result[f"{question}, {name}: error, bits"] = dict(zip(ATOMS, errors, strict=True))
        inside = covered(selected).round(4).tolist()
        result[f"{question}, ours: truth in the interval"] = dict(zip(ATOMS, inside, strict=True))
    for samples in sorted({record["samples"] for record in records if record["question"] == "clusters"}):
        for number in (8, 12, 16, 20, 28, None):
            selected = [r for r in records if r["question"] == "clusters" and r["samples"] == samples]
            selected = [record for record in selected if record["clusters"] == number]
            error = float(np.sqrt((root_mean_square(selected, "ours") ** 2).mean()))
            name = "auto" if number is None else number
            result[f"clusters {name}, {samples} samples: error of all atoms, bits"] = round(error, 4)
    return result


def draw_picture(records: list[dict[str, Any]], path: Path) -> None:
    """Left: synergy reported for noise, over N, per C. Right: error on tables with known answers, over N."""
    figure = Figure(figsize=(11, 4.3), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    shades = ("#f4a582", "#ef8a62", "#d6604d", "#b2182b")
    pure = [r for r in records if r["question"] == "noise" and r["shape"] == "gaussian"]
    for classes, shade in zip(CLASSES, shades, strict=True):
        selected = [record for record in pure if record["classes"] == classes]
        numbers = sorted({record["samples"] for record in selected})
        for name, color, style in (("plugin", shade, "-"), ("ours", "#0077bb", "-")):
            values = [np.mean([r[name][3] for r in selected if r["samples"] == n]) for n in numbers]
            left.plot(numbers, values, color=color, linestyle=style, marker="o", markersize=3)
            if name == "plugin":
                left.annotate(
                    f"{classes} classes",
                    (numbers[0], values[0]),
                    (-6, 0),
                    ha="right",
                    va="center",
                    textcoords="offset points",
                    color=shade,
                    fontsize=9,
                )
    left.plot([], [], color=shades[2], label="plug-in, as published")
    left.plot([], [], color="#0077bb", label="fast_pid, all four")
    left.set_title("synergy reported for pure noise (truth: 0)", fontsize=11)
    left.set_xlim(150, 60_000)

    tables = [record for record in records if record["question"] == "tables"]
    numbers = sorted({record["samples"] for record in tables})
    for name, color, label in (
        ("plugin", shades[2], "plug-in, as published"),
        ("ours", "#0077bb", "fast_pid"),
    ):
        for atom, style, part in ((3, "-", "synergy"), (1, "--", "uniqueness")):
            values = [root_mean_square([r for r in tables if r["samples"] == n], name)[atom] for n in numbers]
            right.plot(
                numbers,
                values,
                color=color,
                linestyle=style,
                marker="o",
                markersize=3,
                label=f"{part}, {label}",
            )
    right.set_ylim(top=1.25 * right.get_ylim()[1])
    right.set_title("error where the answer is known, 2 to 101 classes", fontsize=11)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("samples")
        axes.set_ylabel("bits")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", message=".*samples are few")
    records: list[dict[str, Any]] = []
    with open(options.output / "estimate.jsonl", "w") as out:

        def note(record: dict[str, Any]) -> None:
            records.append(record)
            out.write(json.dumps(record) + "\n")
            out.flush()

        out.write(json.dumps({"environment": environment("scikit-learn")}) + "\n")
        for seed in range(options.seeds):
            for classes in CLASSES:
                for samples in SAMPLES:
                    for shape in SHAPES if samples <= 5000 else SHAPES[:1]:
                        note(noise(shape, samples, classes, seed))
                    if samples <= 20_000:
                        for family in FAMILIES:
                            note(known(family, samples, classes, seed))
            for kind in KINDS:
                for samples in (1280, 5000):
                    for number in (8, 12, 16, 20, 28, None):
                        note(clusters(kind, samples, number, seed))
        results = summary(records)
        out.write(json.dumps({"summary": results}) + "\n")
    print(json.dumps(results, indent=2))
    draw_picture(records, options.output / "estimate.png")


if __name__ == "__main__":
    main()
