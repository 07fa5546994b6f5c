"""How often are modalities taken for dependent given the label, though they are not? By rows and classes.

    OMP_NUM_THREADS=1 python benchmarks/bench_dependence.py --seeds 40

Two noisy views of the class, drawn independently of each other, so that both know nothing beyond the product of their
posteriors. "Taken" is the share of seeds in which the readouts of a probe say more than the noise floor of a probe and
the threshold of the rule `adaptive`; "asked" says whether the trainer's probe reports the estimate at all for so few
rows. One JSON line per size goes to benchmarks/results/dependence.jsonl; the table is printed.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from environment import environment
from tqdm import tqdm

from ecsfusion.controller.adaptive import DEPENDENCE
from ecsfusion.evaluation.measurement import MIN_ROWS_FOR_DEPENDENCE, MIN_ROWS_PER_CLASS_FOR_DEPENDENCE
from ecsfusion.pid.dependence import held_out_dependence
from ecsfusion.pid.uncertainty import NOISE

RESULTS = Path(__file__).parent / "results" / "dependence.jsonl"
SIZES = (
    (40, 2),
    (56, 3),
    (200, 20),
    (64, 2),
    (64, 3),
    (100, 2),
    (100, 4),
    (200, 2),
    (200, 10),
    (400, 20),
    (1200, 10),
)


def views(rows: int, classes: int, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Two views (N, 8) of the class, with the noise of each its own, and the labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(2, classes, 8, generator=generator)
    labels = torch.arange(rows) % classes
    return {
        name: means[place][labels] + noise * torch.randn(rows, 8, generator=generator)
        for place, (name, noise) in enumerate((("first", 1.5), ("second", 2.0)))
    }, labels


def measure(rows: int, classes: int, seeds: int) -> dict[str, Any]:
    """The estimates of one size over the seeds."""
    found, taken = [], 0
    for seed in range(seeds):
        embeddings, labels = views(rows, classes, seed)
        found.append(float(held_out_dependence(embeddings, labels, classes, [(["first"], ["second"])], seed)))
        taken += found[-1] > max(NOISE / (rows * math.log(2)), DEPENDENCE)
    return {
        "benchmark": "dependence",
        "rows": rows,
        "classes": classes,
        "seeds": seeds,
        "mean_bits": round(sum(found) / seeds, 4),
        "largest_bits": round(max(found), 4),
        "taken": round(taken / seeds, 4),
        "asked": rows >= max(MIN_ROWS_FOR_DEPENDENCE, MIN_ROWS_PER_CLASS_FOR_DEPENDENCE * classes),
        **environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=40)
    args = parser.parse_args()
    lines = [measure(*size, args.seeds) for size in tqdm(SIZES, unit="size")]
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(
        "| rows | classes | asked | mean, bits | largest | taken for dependent |\n| --- | --- | --- | --- | --- | --- |"
    )
    for line in lines:
        asked = "yes" if line["asked"] else "no"
        values = f"{line['mean_bits']:.3f} | {line['largest_bits']:.2f} | {line['taken']:.0%}"
        print(f"| {line['rows']} | {line['classes']} | {asked} | {values} |")


if __name__ == "__main__":
    main()
