"""Kinds of columns that tables and embeddings have: does `fast_pid` know what classifiers prove of them?

    OMP_NUM_THREADS=1 python benchmarks/bench_kinds.py --processes 2

The kinds are those of column_kinds.py, which were made for this, and those of published_kinds.py, which others
published. The classifiers are those of bench_classifiers.py, each on held-out rows, with hindsight the best. Of kinds
inside a modality it is what that modality tells, of kinds across two what both tell. One JSON line for each kind and
seed in benchmarks/results/kinds.jsonl; kinds.png shows all of them.

    OMP_NUM_THREADS=1 python benchmarks/bench_kinds.py --columns 300 --seeds 1 --processes 2

measures the kinds inside a modality among columns of noise, 300 in all, each a shuffled copy of a column that is there;
in kinds_wide.jsonl and kinds_wide.png.
"""

import argparse
import json
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_classifiers import MAX_BOOSTED, RESULTS, SLACK, proven
from column_kinds import ACROSS, KINDS, named
from environment import environment
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from published_kinds import PUBLISHED
from tqdm import tqdm

from ecsfusion.pid.estimate import fast_pid

ALL = KINDS | PUBLISHED
Columns = NDArray[np.float32]


def among_noise(columns: Columns, number: int, generator: np.random.Generator) -> Columns:
    """The columns (N, D), and so many shuffled copies of them in turn that there are `number`."""
    copied = columns[:, np.arange(number - columns.shape[1]) % columns.shape[1]]
    return np.concatenate([columns, generator.permuted(copied, axis=0)], 1)


def measure(kind: str, rows: int, seed: int, columns: int | None) -> dict[str, Any]:
    """One line."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    place = list(ALL).index(kind)
    generator = np.random.default_rng([seed, place])
    first, second, labels = ALL[kind](generator, rows)
    first, second = (np.asarray(part, dtype=np.float32) for part in (first, second))
    if columns is not None and columns > first.shape[1]:
        first = among_noise(first, columns, generator)
    labels = np.asarray(labels, dtype=np.int64)
    across = kind in named(*ACROSS)
    both = np.concatenate([first, second], 1) if across else first
    classifiers = proven(both, labels, MAX_BOOSTED if columns is None else 16 * columns)
    pid = fast_pid([torch.from_numpy(first), torch.from_numpy(second)], torch.from_numpy(labels))
    if pid.held_out is None:
        raise RuntimeError("fast_pid returned no held-out values.")
    limit, held_out = (
        float(part.joint_mutual_information if across else part.mutual_information[0])
        for part in (pid, pid.held_out)
    )
    best = max(classifiers, key=lambda name: classifiers[name])
    return {
        "kind": kind,
        "across": across,
        "rows": rows,
        "columns": first.shape[1],
        "seed": seed,
        "limit": round(limit, 4),
        "held_out": round(held_out, 4),
        "best": max(0.0, classifiers[best]),
        "classifier": best,
    }


def report(lines: list[dict[str, Any]]) -> str:
    """The kinds, and of how many the best classifier proves more."""
    told = [
        f"{line['kind']:24} seed {line['seed']}: limit {line['limit']:.2f}, proven {line['held_out']:.2f}, "
        f"{line['classifier']} {line['best']:.2f}{'  under' if line['limit'] < line['best'] - SLACK else ''}"
        for line in lines
    ]
    under = [sum(line[part] < line["best"] - SLACK for line in lines) for part in ("limit", "held_out")]
    told.append(
        f"{len(lines)} numbers: the limit is {SLACK} bits or more under the best classifier in {under[0]}, what is "
        f"proven in {under[1]}"
    )
    return "\n".join(told)


def draw(panels: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """A panel for each title, with a row for each kind: the best classifier, what is proven, and the limit."""
    kinds = [list(dict.fromkeys(line["kind"] for line in lines)) for lines in panels.values()]
    figure = Figure(figsize=(8 * len(panels), 0.27 * max(map(len, kinds)) + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    sides = figure.subplots(ncols=len(panels), sharex=True, squeeze=False)[0]
    for axes, names, (title, lines) in zip(sides, kinds, panels.items(), strict=True):
        for part, marker, size, label in (
            ("best", "|", 14, "best of scikit-learn's classifiers, held out"),
            ("held_out", "o", 5, "fast_pid: proven on held-out rows"),
            ("limit", "x", 5, "fast_pid: the limit for many rows"),
        ):
            values = [np.mean([line[part] for line in lines if line["kind"] == name]) for name in names]
            axes.plot(values, range(len(names)), marker, markersize=size, markeredgewidth=1.6, label=label)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.margins(y=0.02)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("bits about the label")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles = sides[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", frameon=False, fontsize=8, ncols=3)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=ALL, default=list(ALL), help="only these")
    parser.add_argument(
        "--columns", type=int, help="of noise and the kind together, of kinds inside a modality"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    machine = environment("scikit-learn")
    kinds = [kind for kind in options.kinds if options.columns is None or kind not in named(*ACROSS)]
    asked = [(kind, options.rows, seed, options.columns) for kind in kinds for seed in range(options.seeds)]
    name = "kinds" if options.columns is None else "kinds_wide"
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        found = pool.map(measure, *zip(*asked, strict=True))
        lines = [line | machine for line in tqdm(found, total=len(asked), unit=" problems")]
    (options.output / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(report(lines))
    panels = {
        title: [line for line in lines if line["kind"] in group]
        for title, group in (("made for this", KINDS), ("published by others", PUBLISHED))
    }
    draw({title: group for title, group in panels.items() if group}, options.output / f"{name}.png")


if __name__ == "__main__":
    main()
