"""How far the model of the kernels' cost is from what was measured, and the whole probe, PyTorch's ops included.

    python benchmarks/bench_cost.py

prints the table of kernels/README.md: predicted times of A100, H100, H200 and B200 beside the times that
benchmarks/results/kernels.jsonl and probe.jsonl have from an H200, for every shape that is there and for a probe by
clusters of two modalities as `fast_pid` launches it. No GPU is needed; what is compiled is kept by Triton, so the
second run takes a minute and the first one five.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from ecsfusion_kernels import cost
from ecsfusion_kernels.cost_cases import CASES, COUNTED
from ecsfusion_kernels.launches import Launch, launches

from ecsfusion.pid import clusters
from ecsfusion.pid.options import EstimatorOptions

RESULTS = Path(__file__).parent / "results"
# Walked instruction by instruction in Python: a table of 1000 classes takes a minute.
MAX_CLASSES = 101


def probe(N: int, D: int, d: int, K: int, C: int) -> list[Launch]:
    """The launches of `pid_tensors` of two bfloat16 modalities, as benchmarks/bench_probe.py measures it."""
    rows = {name: torch.empty(N, D, dtype=torch.bfloat16, device="meta") for name in ("image", "audio")}
    labels = torch.empty(N, dtype=torch.int64, device="meta")
    options = EstimatorOptions("clusters", K, d, True, 32, 0, 1e-3, 0)
    # Without the checks of `pid_tensors`, which refuse tensors without values.
    given = (*rows.values(), labels, tuple(rows), K, C, options)
    return launches(lambda: clusters.estimate_of(clusters._observe_embeddings(*given), options))


def rows_of(measured: dict[tuple[str, str, str], float]) -> list[dict[str, Any]]:
    """A row for each measured shape and each case of the model: predicted by device, and measured."""
    shapes: dict[tuple[str, str], None] = {}
    for _, name, shape in measured:
        if name in COUNTED or name == "probe graph replay":
            shapes[name, shape] = None
    for name, shape in CASES:
        shapes[name, json.dumps(shape)] = None
    found = []
    for name, text in shapes:
        shape = json.loads(text)
        if shape.get("C", 0) > MAX_CLASSES:
            continue
        started = probe(**shape) if name == "probe graph replay" else COUNTED[name](**shape)
        row = {"name": name, "shape": shape, "launches": len(started)}
        row |= {device.name: cost.microseconds(started, device) for device in cost.DEVICES}
        time = measured.get(("NVIDIA H200", name, text))
        found.append(row | {"measured": None if time is None else 1e3 * time})
        print(f"{name}, {text}", file=sys.stderr, flush=True)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, and how far the model is off."""
    names = [device.name for device in cost.DEVICES]
    lines = [f"| | size | launches | {' | '.join(names)} | H200 measured | measured / predicted |"]
    lines.append("| --- " * (len(names) + 5) + "|")
    factors = []
    for row in rows:
        size = ", ".join(f"{key} = {value}" for key, value in row["shape"].items())
        times = [f"{row[name]:.3g}" for name in names]
        last = ["", ""]
        if row["measured"] is not None:
            factors.append(row["measured"] / row["H200"])
            last = [f"{row['measured']:.3g}", f"{factors[-1]:.2f}"]
        lines.append(f"| {' | '.join([row['name'], size, str(row['launches']), *times, *last])} |")
    if factors:
        quartiles = statistics.quantiles(factors, n=4)
        lines.append(
            f"\nOf {len(factors)} shapes the measured time is {min(factors):.2f} to {max(factors):.2f} times the "
            f"predicted one, half of them {quartiles[0]:.2f} to {quartiles[2]:.2f} times, median {quartiles[1]:.2f}."
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.parse_args()
    measured: dict[tuple[str, str, str], float] = {}
    for name in ("kernels.jsonl", "probe.jsonl"):
        measured |= cost.read_measured(RESULTS / name)
    print(table(rows_of(measured)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
