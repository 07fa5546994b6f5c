"""Every fault of a run, one after the other: kills at random moments, full disks, damaged files, bad data, no Hub.

    python tests/fault_campaign.py --kills 170 --kills_of_two 35 --out benchmarks/results

The kills go to kill_campaign.jsonl in that folder (see `kill_campaign`), the others to fault_campaign.jsonl: first what
they ran on, then a line each with the message and the problems, of which there should be none. Disks are really full
where a small one can be mounted (by the superuser of a Linux). Status 1 if there is any problem.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import bad_sources
import faults
import full_disk
import kill_campaign
from environment import environment

# Bytes, of the small one.
DISK = 4 << 20
CHECKPOINT_FILES = (
    "config.json",
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "unimodal/model.safetensors",
    "unimodal/config.json",
    "best-left/model.safetensors",
    "best-left/step.json",
    "manifest.json",
)
# Bytes that are left when a checkpoint of 190 kB is begun, so that each of its files in turn is the one that fails.
FREE = (
    0,
    4_000,
    12_000,
    26_000,
    34_000,
    60_000,
    110_000,
    116_000,
    120_000,
    131_000,
    140_000,
    150_000,
    160_000,
)


def in_files() -> Iterator[tuple[str, Callable[[Path, faults.Runs], dict]]]:
    """Damaged and foreign files, bad data, no Hub: a name and what brings it about."""
    for number, name in enumerate(CHECKPOINT_FILES):
        yield f"a flipped bit in {name}", partial(faults.flipped, name, seed=number)
    for name in ("model.safetensors", "unimodal/model.safetensors", "optimizer.pt", "trainer_state.json"):
        yield f"{name} ends in the middle", partial(faults.truncated, name)
    yield "a link in a checkpoint", faults.link
    yield "the controller's state without a format", faults.older_state
    yield "the controller's state of the first version", faults.oldest_state
    yield "the controller's state of a version to come", faults.newer_state
    yield "a checkpoint of another Trainer", faults.foreign_state
    yield "samples that cannot be decoded", bad_sources.undecodable
    yield "a Parquet file that ends in the middle", bad_sources.truncated_shard
    yield "the Hub cannot be reached at the end", bad_sources.hub_away
    for where in full_disk.WRITING:
        yield f"no large files: {where}", partial(full_disk.disk_full, where)
    yield "the disk refuses to rename", full_disk.disk_refuses
    yield "no large files: two processes", full_disk.disk_full_for_two
    at_the_end = partial(full_disk.disk_full_at_the_end, disk=partial(full_disk.small_files, 1_000))
    yield "no large files: final model and card", at_the_end


def on_a_small_disk(place: Path) -> Iterator[tuple[str, Callable[[Path, faults.Runs], dict]]]:
    """Full disks that are mounted at a place."""

    def run(test: Callable, free: int, folder: Path, runs: faults.Runs) -> dict:
        with full_disk.small_disk(place, DISK):
            return test(place / "run", runs, disk=partial(full_disk.full_disk, place, free))

    full = full_disk.disk_full
    for free in FREE:
        yield f"disk full, {free} bytes left: checkpoint", partial(run, partial(full, "configuration"), free)
    for where in ("initial weights", "peak", "best head"):
        for free in (0, 8_000):
            yield (
                f"disk full, {free} bytes left: {where}",
                partial(run, partial(full, where), free),
            )
    yield "disk full: final model and card", partial(run, full_disk.disk_full_at_the_end, 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--kills_of_two", type=int, default=0, help="kills of runs by two processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args()
    bad = 0
    for kills, processes in ((args.kills, 1), (args.kills_of_two, 2)):
        for line in kill_campaign.campaign(kills, processes, args.seed + processes) if kills else ():
            bad += kill_campaign.is_bad(line)
            write(line, args.out / "kill_campaign.jsonl")
    write(environment("transformers", "datasets", "huggingface_hub"), args.out / "fault_campaign.jsonl")
    with tempfile.TemporaryDirectory() as place:
        runs = faults.make_runs(Path(place))
        cases = [*in_files(), *(on_a_small_disk(Path(place) / "disk") if os.geteuid() == 0 else ())]
        for number, (name, bring_about) in enumerate(cases):
            folder = Path(place) / f"case{number}" / "run"
            folder.parent.mkdir()
            try:
                seen = bring_about(folder, runs)
            except (
                Exception,
                SystemExit,
            ) as error:
                # A fault that nobody has thought of is a problem as well.
                seen = {"problems": [f"{type(error).__name__}: {error}"]}
            text = json.dumps({"fault": name, **seen}).replace(place, "...")
            bad += bool(seen["problems"])
            write(json.loads(text), args.out / "fault_campaign.jsonl")
    print(f"{len(cases)} faults; {bad} lines with a problem, kills among them")
    sys.exit(bool(bad))


def write(line: dict, file: Path) -> None:
    """Add a line to a file, and print it."""
    text = json.dumps(line)
    print(text, flush=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(text + "\n")


if __name__ == "__main__":
    main()
