"""The controller under stress: how soon does it react, how often wrongly, and what does that do to accuracy?

    OMP_NUM_THREADS=1 python benchmarks/controller_response.py runs --seeds 3       # hours of one core, resumable
    OMP_NUM_THREADS=1 python benchmarks/controller_response.py report

Lines go to benchmarks/results/controller_response.jsonl, each with the name of its part.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from protocol.results import append_line, read_lines
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"


def one_run(stress: str, method: str, seed: int) -> dict[str, Any]:
    """One run, in a process of its own."""
    import torch

    torch.set_num_threads(1)  # as many processes as cores
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  probes are in the trajectory
    from stress.runs import stressed_run

    return stressed_run(stress, method, seed)


def run_all(path: Path, seeds: int, jobs: int) -> None:
    """Train what is not there yet; every line is on disk as soon as it is there."""
    from stress.runs import plan

    done = {
        (line["stress"], line["method"], line["seed"]) for line in read_lines(path) if line["part"] == "run"
    }
    missing = [run for run in plan(range(seeds)) if run not in done]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(one_run, *run) for run in missing]
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            append_line(path, {"benchmark": "controller_response", "part": "run", **future.result()})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("runs",))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    path = args.output / "controller_response.jsonl"
    run_all(path, args.seeds, args.jobs)


if __name__ == "__main__":
    main()
