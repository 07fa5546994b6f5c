"""The controller under stress: how soon does it react, how often wrongly, and what does that do to accuracy?

    OMP_NUM_THREADS=1 python benchmarks/controller_response.py simulated     # a minute
    OMP_NUM_THREADS=1 python benchmarks/controller_response.py forecast      # slow or weak? minutes
    OMP_NUM_THREADS=1 python benchmarks/controller_response.py runs          # half an hour of one core
    python benchmarks/controller_response.py report                          # only tables and pictures

*Runs*: real trainings in the middle of which something happens to one modality and passes (`stress/events.py`).
*Simulated*: readings with noise straight into a rule (`stress/simulated.py`), with and without patience and hysteresis.
*Forecast*: is a slow modality told from a weak one (`stress/forecasts.py`)? Lines go to
benchmarks/results/controller_response.jsonl as they come, and what has been trained is not trained again; the tables
are printed, the pictures are controller_response.png and controller_response_runs.png.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from environment import environment
from protocol.results import append_line, read_lines
from stress import forecasts, runs, simulated
from stress.report import report
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
FILE = "controller_response.jsonl"
EPISODES = 200


def in_its_own_process(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """One run; as many processes as cores."""
    import torch

    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  probes are in the line
    return work(*arguments)


def train_missing(
    path: Path, part: str, keys: Sequence[str], work: Callable[..., dict[str, Any]], plan: Iterable, jobs: int
) -> None:
    """Do what has no line of this part yet; every line is on disk as soon as it is there."""
    done = {tuple(line[key] for key in keys) for line in read_lines(path) if line["part"] == part}
    missing = [run for run in plan if run not in done]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(in_its_own_process, work, *run) for run in missing]
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            append_line(path, {"benchmark": "controller_response", "part": part, **future.result()})


def replace_part(path: Path, part: str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write the lines of a part anew; the other parts stay."""
    others = [line for line in read_lines(path) if line["part"] != part]
    mine = [{"benchmark": "controller_response", "part": part, **line} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in (*others, *mine)), encoding="utf-8")


def comparison_lines() -> list[dict[str, Any]]:
    """All recorded runs of `compare.py` with AdamW and SGD."""
    folder = RESULTS / "compare" / "runs"
    return [line for file in sorted(folder.glob("*.jsonl")) for line in read_lines(file)]


def simulate(path: Path, seed: int) -> None:
    """The sweep, and the noise of the recorded runs that it is to be compared with."""
    by_suite: dict[str, list[dict[str, Any]]] = {}
    for line in comparison_lines():
        if line["setting"]["strategy"] in ("unimodal", "joint-auxiliary"):
            by_suite.setdefault(line["suite"], []).append(line)
    noise = {suite: round(simulated.fluctuation(lines), 4) for suite, lines in by_suite.items()}
    replace_part(path, "noise", [{"bits": noise, "runs": sum(map(len, by_suite.values()))}])
    swept = simulated.sweep(EPISODES, seed)
    replace_part(path, "simulated", [{**line, "versions": environment()["versions"]} for line in swept])


def rate_forecasts(path: Path) -> None:
    """How often the forecast is right on the recorded runs and on the fresh ones."""
    fresh = [line["bits"] for line in read_lines(path) if line["part"] == "forecast run"]
    groups = {"recorded": forecasts.recorded(comparison_lines()), "fresh": fresh}
    found = [{"runs": name, **row} for name, bits in groups.items() for row in forecasts.rates(bits)]
    replace_part(path, "forecast rates", found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("simulated", "forecast", "runs", "report"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / FILE
    if args.part == "simulated":
        simulate(path, seed=0)
    elif args.part == "forecast":
        plan = forecasts.plan(args.seeds)
        train_missing(path, "forecast run", ("case", "rate", "seed"), forecasts.fresh_run, plan, args.jobs)
        rate_forecasts(path)
    elif args.part == "runs":
        plan = runs.plan(range(args.seeds))
        train_missing(path, "run", ("stress", "method", "seed"), runs.stressed_run, plan, args.jobs)
    print(report(read_lines(path), args.output))


if __name__ == "__main__":
    main()
