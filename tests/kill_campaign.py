"""Kill a tiny two-stage run at random moments, resume it, and compare its end with one that was never interrupted.

    python tests/kill_campaign.py --kills 200 --seed 0 --out benchmarks/results/kill_campaign.jsonl
    python tests/kill_campaign.py --kills 40 --seed 1 --processes 2 --out benchmarks/results/kill_campaign.jsonl

Lines of JSON, added to the file: first what it ran on, then one for each run with when it was killed (seconds), the
latest checkpoint before and after, the folders half written, and what differs at the end. A run is killed one to three
times, at the start, while it trains, saves, or resumes; of several processes all are killed, or one, and the others
must end by themselves. Status 1 if anything that was saved is lost, or anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
# No installed package
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import killed_run
from environment import environment

from ecsfusion.training.checkpoints import latest_checkpoint, whole_checkpoint
from ecsfusion.training.saving import UNFINISHED


def one_run(
    folder: Path, expected: dict, length: float, chance: random.Random, processes: int
) -> dict[str, object]:
    """Kill, resume, and compare."""
    kills: list[dict[str, object]] = []
    for number in range(chance.randint(1, 3)):
        ranks = killed_run.start(folder, number > 0, processes)
        after, victims = chance.uniform(0.0, length), chance.sample(ranks, chance.randint(1, processes))
        ranks[0].join(after)
        if not ranks[0].is_alive():
            killed_run.ends(ranks)
            break
        before = latest_checkpoint(folder)
        for process in victims:
            process.kill()
        codes = killed_run.ends(ranks)
        found = whole_checkpoint(True, folder)[0] if folder.is_dir() else None
        names = [path.name for path in folder.rglob("*")]
        kills.append(
            {
                "after_seconds": round(after, 3),
                "killed": len(victims),
                "exit": codes,
                "before": before and before.name,
                "whole": found and Path(found).name,
                "lost": before is not None and (found is None or step(found) < step(before)),
                "half_written": [
                    name for name in names if name.endswith((".writing", ".old")) or name == UNFINISHED
                ],
            }
        )
    codes = killed_run.ends(killed_run.start(folder, True, processes))
    differing = (
        []
        if any(code != 0 for code in codes)
        else killed_run.differences(expected, killed_run.outcome(folder))
    )
    return {"processes": processes, "kills": kills, "exit": codes, "differs": differing}


def step(folder: str | Path) -> int:
    """Of a folder checkpoint-STEP."""
    return int(Path(folder).name.rpartition("-")[2])


def campaign(kills: int, processes: int, seed: int) -> Iterator[dict[str, object]]:
    """What it ran on, and a line for each run, until there are so many kills."""
    chance, run, done = random.Random(seed), 0, 0  # noqa: S311
    with tempfile.TemporaryDirectory() as place:
        whole, began = Path(place) / "whole", time.perf_counter()
        killed_run.ends(killed_run.start(whole, False, processes))
        length, expected = time.perf_counter() - began, killed_run.outcome(whole)
        yield {
            "seed": seed,
            "whole_run_seconds": round(length, 1),
            **environment("transformers", "accelerate"),
        }
        while done < kills:
            folder = Path(place) / f"run{run}"
            line = one_run(folder, expected, length, chance, processes)
            yield {"run": run, **line}
            shutil.rmtree(folder)
            run, done = run + 1, done + len(line["kills"])


def is_bad(line: dict) -> bool:
    """Whether a run lost something, did not end, or ended otherwise."""
    return "kills" in line and bool(
        any(code != 0 for code in line["exit"])
        or line["differs"]
        or any(kill["lost"] or None in kill["exit"] for kill in line["kills"])
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    lines = []
    for line in campaign(args.kills, args.processes, args.seed):
        lines.append(line)
        text = json.dumps(line)
        print(text, flush=True)
        if args.out is not None:
            with args.out.open("a") as file:
                file.write(text + "\n")
    kills = sum(len(line.get("kills", ())) for line in lines)
    bad = sum(map(is_bad, lines))
    print(f"{len(lines) - 1} runs, {kills} kills, {bad} that lost something or were not the same at the end")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
