"""Real tables that ship with scikit-learn: does `fast_pid` know what classifiers prove of them?

    OMP_NUM_THREADS=1 python benchmarks/bench_real_tables.py

The columns of each table are cut into two modalities, in halves and in turn, and each modality and both together are
compared with the classifiers of bench_classifiers.py, each on held-out rows, with hindsight the best. Nobody made these
tables for this library. The target of `diabetes` is cut into three classes of the same size. One JSON line for each
number and seed of the folds in benchmarks/results/real_tables.jsonl; real_tables.png shows them.
"""

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import torch
from bench_classifiers import RESULTS, proven
from bench_kinds import draw, report
from environment import environment
from tqdm import tqdm

from ecsfusion.pid.estimate import fast_pid

TABLES = ("iris", "wine", "diabetes", "breast_cancer", "digits")
CLASSES_OF_REAL_TARGETS = 3


def table(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Columns (N, D) float32 and classes (N,) int64."""
    columns, target = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    if name == "diabetes":
        shares = np.arange(1, CLASSES_OF_REAL_TARGETS) / CLASSES_OF_REAL_TARGETS
        target = np.digitize(target, np.quantile(target, shares))
    return columns.astype(np.float32), target.astype(np.int64)


def measure(name: str, seeds: int) -> Iterator[dict[str, Any]]:
    """A line for each way to cut the columns, each side and each seed."""
    columns, labels = table(name)
    middle = columns.shape[1] // 2
    cuts = {
        "halves": (columns[:, :middle], columns[:, middle:]),
        "in turn": (columns[:, ::2], columns[:, 1::2]),
    }
    for cut, (first, second) in cuts.items():
        yield from compared(f"{name}, {cut}", {"first": first, "second": second}, labels, seeds)


def compared(
    kind: str, modalities: dict[str, np.ndarray], labels: np.ndarray, seeds: int
) -> Iterator[dict[str, Any]]:
    """A line for each of two modalities (N, D), for both, and for each seed."""
    sides = modalities | {"both": np.concatenate(list(modalities.values()), 1)}
    classifiers = {side: proven(rows, labels) for side, rows in sides.items()}
    for seed in range(seeds):
        pid = fast_pid(modalities, labels, seed=seed)
        if pid.held_out is None:
            raise RuntimeError("fast_pid returned no held-out values.")
        told = [
            [*part.mutual_information.tolist(), float(part.joint_mutual_information)]
            for part in (pid, pid.held_out)
        ]
        for side, limit, held_out in zip(sides, *told, strict=True):
            best = max(classifiers[side], key=lambda found: classifiers[side][found])
            yield {
                "kind": f"{kind}: {side}",
                "rows": len(labels),
                "classes": len(np.unique(labels)),
                "seed": seed,
                "limit": round(limit, 4),
                "held_out": round(held_out, 4),
                "best": max(0.0, classifiers[side][best]),
                "classifier": best,
            }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="of the folds")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="only these")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    machine = environment("scikit-learn")
    lines = [
        line | machine
        for name in tqdm(options.tables, unit=" tables")
        for line in measure(name, options.seeds)
    ]
    (options.output / "real_tables.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(report(lines))
    draw({"": lines}, options.output / "real_tables.png")


if __name__ == "__main__":
    main()
