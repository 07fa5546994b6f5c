"""Does `fast_pid` know what scikit-learn's classifiers prove on the same rows? On the problems of known_truth/.

    OMP_NUM_THREADS=1 python benchmarks/bench_classifiers.py --processes 2
    python benchmarks/bench_classifiers.py --report                 # only the summary and the picture

A classifier proves H(Y) minus its log-loss on rows that it was not fitted on (five folds), in bits: for each modality,
and for both side by side. The classifiers are a logistic regression (its strength chosen within the training rows of
the first fold), linear discriminant analysis with shrinkage, k nearest neighbours (k = 5, 15, 45, each class counted as
if one more neighbour had the classes' frequencies) and gradient boosting (50 rounds at most; not where classes times
columns are more than 320, which takes minutes). The best of them, chosen with hindsight, is the bound.

One JSON line a problem in benchmarks/results/classifiers.jsonl. What classifiers prove is not measured again where it
is there; the estimate, which takes less than a second, is, and commit and versions of a line are those of the estimate.
classifiers.png shows the estimates against the bounds.
"""

import argparse
import json
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# Before numpy looks: a process a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from environment import environment
from known_truth.problems import problems
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from ecsfusion.pid.estimate import fast_pid

RESULTS = Path(__file__).parent / "results"
FOLDS = 5
SIDES = ("I1", "I2", "I12")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
NEIGHBOURS = (5, 15, 45)
MAX_BOOSTED = 320
"""Classes times columns."""
SLACK = 0.05
"""Bits that an estimate may be under the bound."""

SELECTION_FOLDS = 3
Rows = NDArray[Any]
Told = Callable[[Rows, Rows, Rows], Rows]


def logistic(rows: Rows, labels: Rows) -> Told:
    """A logistic regression whose strength is chosen on these rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def model(strength: float) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=100))

    # A class with fewer rows would be missing from one of the folds.
    chosen = np.bincount(labels)[labels] >= SELECTION_FOLDS
    scores = [
        cross_val_score(
            model(strength), rows[chosen], labels[chosen], cv=SELECTION_FOLDS, scoring="neg_log_loss"
        ).mean()
        for strength in STRENGTHS
    ]
    best = STRENGTHS[int(np.nanargmax(scores))]
    return lambda train, targets, test: model(best).fit(train, targets).predict_log_proba(test)


def discriminant(train: Rows, targets: Rows, test: Rows) -> Rows:
    """Linear discriminant analysis, the covariance shrunk."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
    return np.asarray(model.fit(train, targets).predict_log_proba(test))


def boosting(train: Rows, targets: Rows, test: Rows) -> Rows:
    """Gradient boosting that stops where its own held-out rows say so."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(max_iter=50, early_stopping=True, random_state=0)
    return np.log(np.clip(model.fit(train, targets).predict_proba(test), 1e-9, 1.0))


def neighbours(k: int) -> Told:
    """k nearest neighbours, and one more that has the classes' frequencies."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    def told(train: Rows, targets: Rows, test: Rows) -> Rows:
        scale = StandardScaler().fit(train)
        share = np.bincount(targets) / len(targets)
        share = share[share > 0]
        found = (
            KNeighborsClassifier(k).fit(scale.transform(train), targets).predict_proba(scale.transform(test))
        )
        return np.log((k * found + share) / (k + 1))

    return told


def proven(rows: Rows, labels: Rows, max_boosted: int = MAX_BOOSTED) -> dict[str, float]:
    """Bits that each classifier proves of the labels on held-out rows; boosting of so many classes times columns."""
    from sklearn.model_selection import StratifiedKFold

    share = np.bincount(labels) / len(labels)
    share = share[share > 0]
    entropy = -(share * np.log2(share)).sum()
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(rows, labels))
    first = folds[0][0]
    classifiers: dict[str, Told] = {
        "logistic": logistic(rows[first], labels[first]),
        "discriminant": discriminant,
    }
    classifiers |= {f"neighbours {k}": neighbours(k) for k in NEIGHBOURS}
    if len(share) * rows.shape[1] <= max_boosted:
        classifiers["boosting"] = boosting
    found = {}
    for name, classifier in classifiers.items():
        log_likelihood = 0.0
        for train, test in folds:
            log_posterior = np.asarray(classifier(rows[train], labels[train], rows[test]))
            known = np.unique(labels[train])
            is_known = np.isin(labels[test], known)
            place = np.searchsorted(known, labels[test][is_known])
            log_likelihood += log_posterior[np.flatnonzero(is_known), place].sum()
            # Of a class that it has not seen a classifier may say that it comes next.
            log_likelihood -= (~is_known).sum() * np.log(len(train) + 1)
        found[name] = round(float(entropy + log_likelihood / len(labels) / np.log(2)), 4)
    return found


def measure(place: int, rows: int, suite_seed: int, before: dict[str, Any] | None) -> dict[str, Any]:
    """One line: what classifiers prove, what `fast_pid` says, and what is true; the first of an earlier line."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    problem = problems(suite_seed)[place]
    first, second, labels = problem.draw(rows, 0)
    sides = zip(SIDES, (first, second, torch.cat([first, second], 1)), strict=True)
    if before is None:
        classifiers = {side: proven(x.numpy(), labels.numpy()) for side, x in sides}
    else:
        classifiers = before["classifiers"]
    pid = fast_pid([first, second], labels)
    if pid.held_out is None:
        raise RuntimeError("fast_pid returned no held-out values.")

    def known(part: Any) -> dict[str, float]:
        values = [*part.mutual_information.tolist(), float(part.joint_mutual_information)]
        return {side: round(value, 4) for side, value in zip(SIDES, values, strict=True)}

    truth = problem.truth()
    return {
        "problem": problem.name,
        "kind": problem.kind,
        "rows": rows,
        "suite_seed": suite_seed,
        "truth": {side: round(getattr(truth, side), 4) for side in SIDES},
        "limit": known(pid),
        "held_out": known(pid.held_out),
        "classifiers": classifiers,
    }


def key(line: dict[str, Any]) -> tuple[str, int, int]:
    """What tells a line from the others."""
    return line["problem"], line["rows"], line["suite_seed"]


def report(lines: list[dict[str, Any]]) -> str:
    """How many numbers are at least the bound, and those that are not."""
    told, late = [], []
    for number in sorted({line["rows"] for line in lines}):
        cells = [(line, side) for line in lines if line["rows"] == number for side in SIDES]
        under = [(line, side) for line, side in cells if line["limit"][side] < best(line, side) - SLACK]
        proof = [1 for line, side in cells if line["held_out"][side] < best(line, side) - SLACK]
        told.append(
            f"{number} rows, {len(cells)} numbers: the limit is {SLACK} bits or more under the best classifier in "
            f"{len(under)}, what is proven in {len(proof)}"
        )
        for line, side in sorted(under, key=lambda cell: cell[0]["limit"][cell[1]] - best(*cell)):
            name = max(line["classifiers"][side], key=line["classifiers"][side].get)
            late.append(
                f"  {line['problem']:28} {side:4} truth {line['truth'][side]:.2f}, limit {line['limit'][side]:.2f}, "
                f"proven {line['held_out'][side]:.2f}, {name} {best(line, side):.2f}"
            )
    return "\n".join([*told, *late])


def best(line: dict[str, Any], side: str) -> float:
    """The bound: what the best classifier proves, at least nothing."""
    return max(0.0, *line["classifiers"][side].values())


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Every number against its bound."""
    figure = Figure(figsize=(7.5, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bound = [best(line, side) for line in lines for side in SIDES]
    for part, look, label in (
        ("limit", "o", "fast_pid: the limit for many rows"),
        ("held_out", ".", "fast_pid: proven on held-out rows"),
    ):
        axes.plot(bound, [line[part][side] for line in lines for side in SIDES], look, alpha=0.6, label=label)
    top = max(bound) * 1.02
    axes.plot([0, top], [0, top], color="black", linewidth=1, label="equal")
    axes.set(xlabel="best of scikit-learn's classifiers, held out (bits)", ylabel="fast_pid (bits)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    rows = ", ".join(f"{number:,}" for number in sorted({line["rows"] for line in lines}))
    figure.suptitle(f"I1, I2 and I12 of the problems whose truth is known, {rows} rows")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--limit", type=int, help="only the first so many problems")
    parser.add_argument("--suite-seed", type=int, default=0, help="fresh problems of the same kinds")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "classifiers.jsonl"
    # Of a problem that was measured twice the later line counts.
    lines = {
        key(line): line for line in map(json.loads, path.read_text().splitlines() if path.exists() else [])
    }
    if not options.report:
        machine = environment("scikit-learn")
        names = [problem.name for problem in problems(options.suite_seed)][: options.limit]
        with (
            ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool,
            path.open("a") as file,
        ):
            asked = options.rows, options.suite_seed
            tasks = [
                pool.submit(measure, place, *asked, lines.get((name, *asked)))
                for place, name in enumerate(names)
            ]
            for task in tqdm(as_completed(tasks), total=len(tasks), unit=" problems"):
                line = task.result() | machine
                lines[key(line)] = line
                print(json.dumps(line), file=file, flush=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    if not lines:
        raise SystemExit("no lines to report")
    print(report(list(lines.values())))
    draw(list(lines.values()), options.output / "classifiers.png")


if __name__ == "__main__":
    main()
