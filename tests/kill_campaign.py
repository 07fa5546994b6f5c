"""Kill a tiny two-stage run at random moments, resume it, and compare its end with one that was never interrupted.

    python tests/kill_campaign.py --runs 30 --seed 0 --out benchmarks/results/kill_campaign.jsonl
    python tests/kill_campaign.py --runs 6 --seed 1 --processes 2 --out benchmarks/results/kill_campaign.jsonl

One line of JSON a run, added to the file: when it was killed (seconds, the latest whole checkpoint, folders half
written), how often, and what differs at the end. A run is killed one to three times. Status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import killed_run

from ecsfusion.training.checkpoints import whole_checkpoint


def one_run(
    folder: Path, expected: dict, length: float, chance: random.Random, processes: int
) -> dict[str, object]:
    """Kill, resume, and compare."""
    kills: list[dict[str, object]] = []
    for number in range(chance.randint(1, 3)):
        ranks = killed_run.start(folder, number > 0, processes)
        after = chance.uniform(0.0, length)
        ranks[0].join(after)
        if not ranks[0].is_alive():
            finish(ranks)
            break
        for process in chance.sample(ranks, processes):
            process.kill()
        finish(ranks)
        found = whole_checkpoint(True, folder)[0] if folder.is_dir() else None
        names = [path.name for path in folder.rglob("*")]
        half = [name for name in names if name.endswith((".writing", ".old")) or name == "unfinished"]
        kills.append(
            {
                "after_seconds": round(after, 3),
                "whole": Path(found).name if found else None,
                "half_written": half,
            }
        )
    codes = finish(killed_run.start(folder, True, processes))
    differing = [] if any(codes) else killed_run.differences(expected, killed_run.outcome(folder))
    return {"processes": processes, "kills": kills, "exit": codes, "differs": differing}


def finish(ranks: list[multiprocessing.Process]) -> list[int | None]:
    """Exit codes."""
    for process in ranks:
        process.join()
    return [process.exitcode for process in ranks]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    chance = random.Random(args.seed)  # noqa: S311
    lines = []
    with tempfile.TemporaryDirectory() as place:
        whole, began = Path(place) / "whole", time.perf_counter()
        finish(killed_run.start(whole, False, args.processes))
        length, expected = time.perf_counter() - began, killed_run.outcome(whole)
        for number in range(args.runs):
            line = {
                "run": number,
                **one_run(Path(place) / f"run{number}", expected, length, chance, args.processes),
            }
            lines.append(json.dumps(line))
            print(lines[-1], flush=True)
    if args.out is not None:
        with args.out.open("a") as file:
            file.write("\n".join(lines) + "\n")
    bad = [line for line in map(json.loads, lines) if any(line["exit"]) or line["differs"]]
    kills = sum(len(json.loads(line)["kills"]) for line in lines)
    print(
        f"{args.runs} runs, {kills} kills, {len(bad)} not the same at the end; one run takes {length:.1f} s"
    )
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
