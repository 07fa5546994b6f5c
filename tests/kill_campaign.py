"""Kill a tiny two-stage run at random moments, resume it, and compare its end with one that was never interrupted.

    python tests/kill_campaign.py --runs 30 --seed 0 --out benchmarks/results/kill_campaign.jsonl

One line of JSON a run: when it was killed (seconds, step of the latest whole checkpoint, folders half written), how
often, and what differs at the end. A run is killed one to three times. Status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import killed_run

from ecsfusion.checkpoints import whole_checkpoint


def start(folder: Path, resume: bool) -> multiprocessing.Process:
    """The run in a process of its own, forked, so that it needs no time to import anything."""
    process = multiprocessing.get_context("fork").Process(target=_train, args=(folder, resume))
    process.start()
    return process


def _train(folder: Path, resume: bool) -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    killed_run.train(folder, resume)


def one_run(folder: Path, expected: dict, length: float, chance: random.Random) -> dict[str, object]:
    """Kill, resume, and compare."""
    kills: list[dict[str, object]] = []
    for number in range(chance.randint(1, 3)):
        process = start(folder, resume=number > 0)
        after = chance.uniform(0.0, length)
        process.join(after)
        if not process.is_alive():
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = whole_checkpoint(True, folder)[0] if folder.is_dir() else None
        half = [
            p.name
            for p in folder.rglob("*")
            if p.name.endswith((".writing", ".old")) or p.name == "unfinished"
        ]
        kills.append(
            {
                "after_seconds": round(after, 3),
                "whole": Path(found).name if found else None,
                "half_written": half,
            }
        )
    process = start(folder, resume=True)
    process.join()
    differing = killed_run.differences(expected, killed_run.outcome(folder)) if process.exitcode == 0 else []
    return {"kills": kills, "exit": process.exitcode, "differs": differing}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    chance = random.Random(args.seed)  # noqa: S311
    lines = []
    with tempfile.TemporaryDirectory() as place:
        whole, began = Path(place) / "whole", time.perf_counter()
        process = start(whole, resume=False)
        process.join()
        length, expected = time.perf_counter() - began, killed_run.outcome(whole)
        for number in range(args.runs):
            line = {"run": number, **one_run(Path(place) / f"run{number}", expected, length, chance)}
            lines.append(json.dumps(line))
            print(lines[-1], flush=True)
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n")
    bad = [line for line in map(json.loads, lines) if line["exit"] != 0 or line["differs"]]
    kills = sum(len(json.loads(line)["kills"]) for line in lines)
    print(
        f"{args.runs} runs, {kills} kills, {len(bad)} not the same at the end; one run takes {length:.1f} s"
    )
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
