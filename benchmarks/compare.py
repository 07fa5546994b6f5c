"""Every method under one protocol: equal budgets, the same initial weights, validation decides, test is last.

    python benchmarks/compare.py --suite digits                       # every method, 5 seeds
    python benchmarks/compare.py --suite avmnist-small cg-mnist --methods strongest --seeds 3
    python benchmarks/compare.py --suite digits --optimizer sgd --methods joint two-stage
    python benchmarks/compare.py --report                             # only tables and pictures, from SUITE.jsonl

The first seed is trained at both learning rates of the suite (and with each of a method's own options); the better
validation accuracy of the method's answer decides with what the other seeds are trained. Every run is a JSON line of
benchmarks/results/compare/runs/SUITE.jsonl (SUITE-sgd.jsonl with SGD) as soon as it is over, and what is there is not
trained again: interrupt at any time and start the same command anew. From these lines alone come compare/SUITE.jsonl,
one line per method and seed at the setting that was chosen, and from those the tables and pictures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import traceback
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from protocol.methods import ABLATIONS, METHODS, RIVALS, STRONGEST, Method
from protocol.pages import README, RESULTS_PAGE, fill
from protocol.report import suites_in, suites_table, write_report
from protocol.results import (
    Run,
    Setting,
    append_line,
    chosen_setting,
    method_lines,
    methods_path,
    read_lines,
    runs_path,
    settings_of,
)
from protocol.rivals import rivals_table
from suites import SUITES, load_suite
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results" / "compare"
GROUPS = {"all": RIVALS, "strongest": STRONGEST, "ablations": ABLATIONS}


def train_one(suite: str, run: Run) -> dict[str, Any]:
    """One run, in a process of its own."""
    import torch

    # There are as many processes as cores.
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  probes are in the trajectory
    from protocol.training import train

    return train(load_suite(suite), run)


class Comparison:
    """The runs of one suite and optimizer: what is on disk, and what is trained because it is missing."""

    def __init__(self, suite: str, optimizer: str, results: Path) -> None:
        # Loading fills the suite's cache before any process reads it.
        self.suite, self.optimizer = load_suite(suite), optimizer
        self.path = runs_path(results, suite, optimizer)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lines = read_lines(self.path)
        self.under_way: set[Run] = set()

    def grid(self, methods: Sequence[Method], seed: int) -> list[Run]:
        """The first seed at every setting."""
        return [
            Run(setting, seed)
            for method in methods
            for setting in settings_of(method, self.suite, self.optimizer)
        ]

    def chosen(self, methods: Sequence[Method], seeds: Sequence[int]) -> list[Run]:
        """The other seeds at the setting that was chosen for each method."""
        runs = []
        for method in methods:
            settings = settings_of(method, self.suite, self.optimizer)
            setting = chosen_setting(self.lines, method, settings, seeds[0])
            if setting is not None:
                runs += [Run(setting, seed) for seed in seeds[1:]]
        return runs

    def missing(self, runs: Sequence[Run], methods: Sequence[Method]) -> list[Run]:
        """Those of the runs that are neither on disk nor under way; from now on they count as under way.

        A line that lacks the answer of a method, because it is older than this answer, does not count for it.
        """
        answers: dict[Setting, set[str]] = defaultdict(set)
        for method in methods:
            for setting in settings_of(method, self.suite, self.optimizer):
                answers[setting].add(method.answer)
        done = set(self.under_way)
        for line in self.lines:
            run = Run.of_line(line)
            if answers[run.setting] <= line["validation"].keys():
                done.add(run)
        # Methods may share a run.
        missing = [run for run in dict.fromkeys(runs) if run not in done]
        self.under_way |= set(missing)
        return missing

    def keep(self, line: dict[str, Any]) -> None:
        """A run is over: its line is on disk at once."""
        append_line(self.path, line)
        self.lines.append(line)


def train_all(
    pool: ProcessPoolExecutor,
    comparisons: Sequence[Comparison],
    methods: Sequence[Method],
    seeds: Sequence[int],
) -> None:
    """Train what is missing: the first seed at every setting, and the others as soon as their setting is known."""
    under_way: dict[Future[dict[str, Any]], tuple[Comparison, Run]] = {}
    with tqdm(total=0, unit="run") as bar:

        def submit(comparison: Comparison, runs: Sequence[Run]) -> None:
            for run in comparison.missing(runs, methods):
                under_way[pool.submit(train_one, comparison.suite.name, run)] = comparison, run
                bar.total += 1

        for comparison in comparisons:
            submit(comparison, comparison.grid(methods, seeds[0]))
            submit(comparison, comparison.chosen(methods, seeds))
        while under_way:
            finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in finished:
                comparison, run = under_way.pop(future)
                bar.set_description(comparison.suite.name)
                bar.update()
                try:
                    comparison.keep(future.result())
                except Exception:
                    # A run that fails does not end the others; the next call tries it again.
                    tqdm.write(f"{run} failed\n{traceback.format_exc()}")
                submit(comparison, comparison.chosen(methods, seeds))


def write_methods(comparison: Comparison, results: Path, first_seed: int) -> None:
    """The line per method and seed, made anew from all runs of the suite."""
    suite, optimizer = comparison.suite, comparison.optimizer
    lines = method_lines(comparison.lines, METHODS.values(), suite, optimizer, first_seed)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    methods_path(results, suite.name, optimizer).write_text(text, encoding="utf-8")


def methods_named(names: Sequence[str]) -> list[Method]:
    """The methods of these names or groups.

    Raises:
        ValueError: one is unknown.
    """
    flat = [each for name in names for each in GROUPS.get(name, (name,))]
    unknown = [name for name in flat if name not in METHODS]
    if unknown:
        raise ValueError(f"--methods names {unknown[0]!r}; choose among {', '.join((*GROUPS, *METHODS))}.")
    return [METHODS[name] for name in dict.fromkeys(flat)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", nargs="+", default=[], metavar="NAME", help=", ".join(SUITES))
    parser.add_argument(
        "--methods", nargs="+", default=["all"], metavar="NAME", help=", ".join((*GROUPS, *METHODS))
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, each with one thread")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the lines")
    parser.add_argument("--report", action="store_true", help="make tables and pictures of what is there")
    args = parser.parse_args()
    if not args.suite and not args.report:
        parser.error("give --suite, or --report")
    try:
        methods = methods_named(args.methods)
        comparisons = [Comparison(suite, args.optimizer, args.results) for suite in args.suite]
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    # The libraries are imported once, by the process from which the others are forked.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["protocol.training"])
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        train_all(pool, comparisons, methods, seeds)
    for comparison in comparisons:
        write_methods(comparison, args.results, seeds[0])
    print(write_report(args.results))
    if args.results == RESULTS:
        suites = suites_in(RESULTS)
        fill(RESULTS_PAGE, "comparison", suites_table(suites))
        fill(README, "rivals", rivals_table(suites))


if __name__ == "__main__":
    main()
