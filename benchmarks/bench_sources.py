"""Rows of few sources, such as sensors that some subjects wore: are the intervals right, and how wide are they?

    OMP_NUM_THREADS=1 python benchmarks/bench_sources.py --processes 2

1200 rows of 2 to 60 sources, 3 or 7 classes and 8 or 24 columns a modality, half of the problems with an offset of each
source in both modalities. What is known is known exactly, for rows of a new source. One JSON line for each problem in
benchmarks/results/sources.jsonl; sources.png shows how many atoms the intervals hold, and their width.
"""

import argparse
import json
import math
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from ecsfusion.pid.estimate import fast_pid

RESULTS = Path(__file__).parent / "results"
ROWS, DRAWN = 1200, 40_000
SOURCES = (2, 3, 4, 6, 10, 24, 60)
OFFSETS = (0.0, 1.0)
"""Standard deviations of the offset of a source."""
ATOMS = ("redundancy", "unique 1", "unique 2", "synergy")

Rows = NDArray[Any]


class Drawn:
    """Sources, labels, and columns that say nothing of the label, to which a kind adds what it knows."""

    def __init__(self, sources: int, offset: float, generator: np.random.Generator) -> None:
        self.generator = generator
        self.classes, columns = int(generator.choice([3, 7])), int(generator.choice([8, 24]))
        self.source = generator.integers(0, sources, ROWS)
        self.labels = generator.integers(0, self.classes, ROWS)
        self.variance = 1 + offset**2
        own = offset * generator.normal(size=(2, sources, columns))
        self.first, self.second = own[:, self.source] + generator.normal(size=(2, ROWS, columns))

    def means(self, scale: float) -> Rows:
        """Of the classes, (C, D)."""
        return scale * self.generator.normal(size=(self.classes, self.first.shape[1]))

    def told(self, means: Rows, share: float = 1.0) -> float:
        """Bits about the label of a row of a new source, where a share of the sources has the means."""
        labels = self.generator.integers(0, self.classes, DRAWN)
        has = self.generator.random(DRAWN) < share
        rows = has[:, None] * means[labels] + math.sqrt(self.variance) * self.generator.normal(
            size=(DRAWN, means.shape[1])
        )
        likelihood = -((rows[:, None] - means) ** 2).sum(-1) / (2 * self.variance)
        if share < 1:
            without = -(rows**2).sum(-1, keepdims=True) / (2 * self.variance)
            likelihood = np.logaddexp(likelihood + math.log(share), without + math.log(1 - share))
        posterior = likelihood - np.logaddexp.reduce(likelihood, 1, keepdims=True)
        return math.log2(self.classes) + float(posterior[np.arange(DRAWN), labels].mean()) / math.log(2)


def noise(drawn: Drawn) -> list[float]:
    """Neither knows anything; every source has all classes."""
    return [0.0] * 4


def labels_of_sources(drawn: Drawn) -> list[float]:
    """Neither knows anything; classes are as frequent as each source has them."""
    concentration = drawn.generator.choice([0.3, 1.0, 5.0])
    sources = drawn.source.max() + 1
    shares = drawn.generator.dirichlet(np.full(drawn.classes, concentration), sources)
    drawn.labels = np.array([drawn.generator.choice(drawn.classes, p=shares[one]) for one in drawn.source])
    return [0.0] * 4


def signal(drawn: Drawn) -> list[float]:
    """The first knows, the second does not."""
    means = drawn.means(float(drawn.generator.choice([0.3, 0.6])))
    drawn.first += means[drawn.labels]
    return [0.0, drawn.told(means), 0.0, 0.0]


def turned_copy(drawn: Drawn) -> list[float]:
    """The second is the first in other axes."""
    _, alone, _, _ = signal(drawn)
    columns = drawn.first.shape[1]
    drawn.second = drawn.first @ np.linalg.qr(drawn.generator.normal(size=(columns, columns)))[0]
    return [alone, 0.0, 0.0, 0.0]


def some_sources(drawn: Drawn) -> list[float]:
    """The first knows for every other source only, by chance."""
    means = drawn.means(0.6)
    has = drawn.generator.random(drawn.source.max() + 1) < 0.5
    drawn.first += has[drawn.source][:, None] * means[drawn.labels]
    return [0.0, drawn.told(means, 0.5), 0.0, 0.0]


KINDS: dict[str, Callable[[Drawn], list[float]]] = {
    "noise": noise,
    "noise, labels of sources": labels_of_sources,
    "signal": signal,
    "turned copy": turned_copy,
    "signal of some sources": some_sources,
}


def measure(kind: str, sources: int, offset: float, seed: int) -> dict[str, Any]:
    """One line."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    generator = np.random.default_rng([seed, sources, list(KINDS).index(kind), OFFSETS.index(offset)])
    drawn = Drawn(sources, offset, generator)
    truth = KINDS[kind](drawn)
    rows = [torch.from_numpy(part).float() for part in (drawn.first, drawn.second)]
    pid = fast_pid(rows, drawn.labels, groups=drawn.source)
    values = torch.stack([pid.redundancy, *pid.unique, pid.synergy])
    intervals = torch.stack([pid.redundancy_interval, *pid.unique_interval, pid.synergy_interval])
    return {
        "kind": kind,
        "sources": sources,
        "offset": offset,
        "seed": seed,
        "classes": drawn.classes,
        "truth": dict(zip(ATOMS, (round(value, 4) for value in truth), strict=True)),
        "found": dict(zip(ATOMS, (round(value, 4) for value in values.tolist()), strict=True)),
        "intervals": [[round(end, 4) for end in ends] for ends in intervals.tolist()],
        "floor": round(float(pid.synergy_floor), 4),
    }


def held(line: dict[str, Any]) -> list[bool]:
    """Which atoms are in their intervals, to a ten-thousandth."""
    return [
        low - 1e-4 <= truth <= high + 1e-4
        for truth, (low, high) in zip(line["truth"].values(), line["intervals"], strict=True)
    ]


def width(line: dict[str, Any]) -> float:
    """The mean width of the intervals, in parts of log2 C."""
    return float(np.mean([high - low for low, high in line["intervals"]])) / math.log2(line["classes"])


def report(lines: list[dict[str, Any]]) -> str:
    """Kinds and numbers of sources, and all."""
    told = []
    for kind in KINDS:
        for sources in SOURCES:
            some = [line for line in lines if line["kind"] == kind and line["sources"] == sources]
            if some:
                error = np.mean(
                    [abs(line["found"][atom] - line["truth"][atom]) for line in some for atom in ATOMS]
                )
                told.append(
                    f"{kind:26} {sources:2} sources: intervals hold "
                    f"{100 * np.mean([held(line) for line in some]):5.1f} %, mean width "
                    f"{np.mean([width(line) for line in some]):.2f} log2 C, mean error {error:.3f} bits, "
                    f"floor {np.mean([line['floor'] for line in some]):.3f}"
                )
    told.append(f"all: intervals hold {100 * np.mean([held(line) for line in lines]):.1f} %")
    return "\n".join(told)


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Held atoms and widths against the number of sources, a line a kind."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for kind in KINDS:
        some = [[x for x in lines if x["kind"] == kind and x["sources"] == number] for number in SOURCES]
        if not all(some):
            continue
        left.plot(SOURCES, [100 * np.mean([held(x) for x in each]) for each in some], "o-", ms=4, label=kind)
        right.plot(SOURCES, [np.mean([width(x) for x in each]) for each in some], "o-", ms=4)
    left.axhline(95, color="grey", linestyle=":", linewidth=1)
    left.set_ylabel("atoms in their 95 % intervals, %")
    right.set_ylabel("mean width of an interval, in log2 C")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(SOURCES, [str(number) for number in SOURCES])
        axes.minorticks_off()
        axes.set_xlabel("sources of the 1200 rows")
        axes.spines[["top", "right"]].set_visible(False)
    right.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", frameon=False, fontsize=8, ncols=3)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10, help="of each kind, number of sources and offset")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    machine = environment()
    asked = list(product(KINDS, SOURCES, OFFSETS, range(options.seeds)))
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        found = pool.map(measure, *zip(*asked, strict=True))
        lines = [line | machine for line in tqdm(found, total=len(asked), unit=" problems")]
    (options.output / "sources.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(report(lines))
    draw(lines, options.output / "sources.png")


if __name__ == "__main__":
    main()
