"""Accuracy against budget: the main rivals at several lengths of training, each at the rate that was chosen for it.

    python benchmarks/compare.py --suite avmnist-small --methods strongest --seeds 3       # chooses the rates, once
    python benchmarks/budget.py --suite avmnist-small --seeds 3

Every method trains with a quarter, half, once and twice the suite's budget of modality-steps, with a schedule of that
length. Lines go to benchmarks/results/compare/budget/SUITE.jsonl as they come (what is there is not trained again), the
picture to SUITE.png and the table to SUITE.md beside it (of avmnist-small into docs/results.md as well), made from the
lines alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
from compare import RESULTS, train_one
from matplotlib import pyplot as plt
from protocol.methods import METHODS, Method
from protocol.pages import RESULTS_PAGE, fill
from protocol.results import Run, append_line, chosen_setting, line_of, read_lines, runs_path, settings_of
from suites import SUITES, load_suite
from tqdm import tqdm

# The suite of docs/results.md.
SUITE = "avmnist-small"
SHARES = (0.25, 0.5, 1.0, 2.0)
SHOWN = (
    "two-stage",
    "joint",
    "joint-auxiliary",
    "uni-pre-finetuned",
    "calibrated-ensemble",
    "best-single",
    "published",
)

Curves = dict[str, dict[float, list[float]]]


def planned(
    suite_name: str, methods: Sequence[Method], seeds: Sequence[int]
) -> dict[Run, list[tuple[Method, float]]]:
    """The runs, and which methods at which share of the budget read them.

    Raises:
        ValueError: no rate has been chosen for a method yet.
    """
    suite, lines = load_suite(suite_name), read_lines(runs_path(RESULTS, suite_name, "adamw"))
    runs: dict[Run, list[tuple[Method, float]]] = defaultdict(list)
    for method in methods:
        setting = chosen_setting(lines, method, settings_of(method, suite, "adamw"), seeds[0])
        if setting is None:
            raise ValueError(
                f"{suite_name} has no runs of {method.name!r} yet; start compare.py with it first."
            )
        for share in SHARES:
            for seed in seeds:
                runs[Run(replace(setting, length=round(setting.length * share, 6)), seed)].append(
                    (method, share)
                )
    return runs


def curves(lines: Sequence[Mapping[str, Any]], runs: Mapping[Run, list[tuple[Method, float]]]) -> Curves:
    """Test accuracies of each method's answer by share of the budget."""
    accuracies: Curves = defaultdict(lambda: defaultdict(list))
    for line in lines:
        for method, share in runs.get(Run.of_line(line), ()):
            accuracies[method.name][share].append(100 * line_of(method, line)["test_accuracy"])
    return accuracies


def table(accuracies: Mapping[str, Mapping[float, Sequence[float]]], steps: int) -> str:
    """Mean and standard deviation by method and budget."""
    head = [f"{share * steps:.0f} modality-steps" for share in SHARES]
    rows = [f"| method | {' | '.join(head)} |", "| --- " * (len(SHARES) + 1) + "|"]
    for name in SHOWN:
        cells = [
            f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
            if (values := accuracies[name].get(share))
            else ""
            for share in SHARES
        ]
        rows.append(f"| {METHODS[name].label} | {' | '.join(cells)} |")
    return "\n".join(rows)


def plot(
    accuracies: Mapping[str, Mapping[float, Sequence[float]]], steps: int, title: str, path: Path
) -> None:
    """One line per method, with the spread over seeds."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for number, name in enumerate(SHOWN):
        shares = [share for share in SHARES if accuracies[name].get(share)]
        values = [accuracies[name][share] for share in shares]
        style = {"linewidth": 2.4, "zorder": 3} if name == "two-stage" else {"linewidth": 1.2}
        axes.errorbar(
            [share * steps * (1 + 0.012 * (number - 3)) for share in shares],
            [mean(v) for v in values],
            yerr=[stdev(v) if len(v) > 1 else 0.0 for v in values],
            marker="o",
            markersize=4,
            capsize=2,
            label=METHODS[name].label,
            **style,
        )
    axes.set_xscale("log", base=2)
    ticks = [share * steps for share in SHARES]
    axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("budget, modality-steps (one step of one encoder)")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", default=SUITE, choices=tuple(SUITES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    try:
        runs = planned(args.suite, [METHODS[name] for name in SHOWN], range(args.seeds))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    path = RESULTS / "budget" / f"{args.suite}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {Run.of_line(line): line for line in read_lines(runs_path(RESULTS, args.suite, "adamw"))}
    lines = read_lines(path)
    known = {Run.of_line(line) for line in lines}
    # compare.py has trained these.
    taken = [line for run, line in whole.items() if run in runs and run not in known]
    for line in taken:
        append_line(path, line)
    lines += taken
    missing = [run for run in runs if run not in known and run not in whole]
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(train_one, args.suite, run) for run in missing]
        for future in tqdm(
            as_completed(futures), total=len(futures), desc=f"{args.suite}, budgets", unit="run"
        ):
            line = future.result()
            append_line(path, line)
            lines.append(line)
    accuracies = curves(lines, runs)
    suite = load_suite(args.suite)
    steps = round(suite.epochs * -(-len(suite.train) // suite.batch_size) * len(suite.modalities))
    text = table(accuracies, steps)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    plot(
        accuracies,
        steps,
        f"{args.suite}, mean and standard deviation of {args.seeds} seeds",
        path.with_suffix(".png"),
    )
    if args.suite == SUITE:
        fill(RESULTS_PAGE, "budget", text)
    print(text)


if __name__ == "__main__":
    main()
