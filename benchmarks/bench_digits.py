"""The main job over several seeds, against joint training with and without unimodal losses.

    python benchmarks/bench_digits.py --seeds 3

Every schedule has the same number of epochs, the same initial weights per seed and the same selection (best
validation accuracy of the calibrated combination); the test rows are touched once a run. One JSON line per run goes
to benchmarks/results/digits.jsonl, the trajectory of the first two-stage run to digits.png beside it, and the table is
printed.
"""

import argparse
import copy
import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from environment import environment

# `hf_recipes` is not installed; it is imported from the checkout.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from hf_recipes.run import prepare, train

SCHEDULES = {
    "two-stage": {},
    "joint": {"strategy": "joint"},
    "joint + unimodal losses": {"strategy": "joint-auxiliary"},
}
RESULTS = Path(__file__).parent / "results" / "digits.jsonl"


def run(schedule: str, seed: int) -> dict[str, Any]:
    """Train once and say how well every head does."""
    with tempfile.TemporaryDirectory() as folder:
        job = prepare(["--seed", str(seed), "--output_dir", folder])
        start = time.perf_counter()
        trainer = train(job, copy.deepcopy(job.model), replace(job.args, **SCHEDULES[schedule]))
        if schedule == "two-stage" and seed == 0:
            shutil.copyfile(Path(folder, "trajectory.png"), RESULTS.with_suffix(".png"))
        history = trainer.record.history
        steps = [probe.step for probe in history]
        lengths = [after - before for before, after in zip([0, *steps[:-1]], steps, strict=True)]
        return {
            "benchmark": "digits",
            "schedule": schedule,
            "seed": seed,
            **{split: measurement.scores for split, measurement in trainer.measurements.items()},
            "modality_steps": sum(
                length * len(probe.training) for length, probe in zip(lengths, history, strict=True)
            ),
            "seconds": round(time.perf_counter() - start, 1),
            "epochs": trainer.args.num_train_epochs,
            **environment(),
        }


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, in %, as a Markdown table."""
    heads = list(rows[0]["test"])
    lines = ["| schedule | " + " | ".join(heads) + " |", "| --- " * (len(heads) + 1) + "|"]
    for schedule in SCHEDULES:
        chosen = [row["test"] for row in rows if row["schedule"] == schedule]
        cells = []
        for head in heads:
            values = [100 * row[head] for row in chosen]
            cells.append(f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else ""))
        lines.append(f"| {schedule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    RESULTS.parent.mkdir(exist_ok=True)
    rows = [run(schedule, seed) for seed in range(seeds) for schedule in SCHEDULES]
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(table(rows))


if __name__ == "__main__":
    main()
