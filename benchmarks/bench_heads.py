"""What a probe of a training run costs, by the heads of two modalities and a joint one; and the default estimate.

    python benchmarks/bench_heads.py

writes benchmarks/results/heads.jsonl, one JSON line per measurement: milliseconds as a caller waits for them (median
and spread), how long the GPU works for it, how far the atoms are from those of the same call on the CPU, in bits, and
the intervals there. On a GPU if there is one. Logits are those of a linear model of the label in noise.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import environment
from timing import timed
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ecsfusion.pid.decomposition import PID
from ecsfusion.pid.estimate import fast_pid
from ecsfusion.pid.head_posteriors import head_pids

RESULTS = Path(__file__).parent / "results"
BY_HEADS = ((1_200, 10), (5_000, 10), (20_000, 10), (5_000, 100))
"""Rows and classes."""
OF_EMBEDDINGS = ((1_280, 64), (20_000, 768))
"""Rows and columns."""
NUM_CLASSES, NUM_FACTORS = 10, 8
PROFILED = 5
"""Probes that the time on a GPU is averaged over."""
Probe = Callable[[], PID]


def by_heads(rows: int, classes: int) -> Callable[[torch.device], Probe]:
    """The probe of the heads of two modalities and their sum, on a device."""
    generator = torch.Generator().manual_seed(rows + classes)
    labels = torch.randint(classes, (rows,), generator=generator)
    told = 2 * torch.nn.functional.one_hot(labels, classes).float()
    first, second = (told + torch.randn(rows, classes, generator=generator) for _ in range(2))

    def on(device: torch.device) -> Probe:
        heads = {"first": first.to(device), "second": second.to(device)}
        joint, at = 1.3 * (heads["first"] + heads["second"]), labels.to(device)
        return lambda: head_pids(heads, joint, at, [("first", "second")])["first, second"]

    return on


def of_embeddings(rows: int, columns: int) -> Callable[[torch.device], Probe]:
    """The default estimate of two modalities, on a device."""
    generator = torch.Generator().manual_seed(rows + columns)
    labels = torch.randint(NUM_CLASSES, (rows,), generator=generator)
    means = torch.randn(NUM_CLASSES, NUM_FACTORS, generator=generator)
    directions = torch.randn(NUM_FACTORS, columns, generator=generator)

    def modality() -> Tensor:
        factors = 0.7 * means[labels] + torch.randn(rows, NUM_FACTORS, generator=generator)
        return factors @ directions + torch.randn(rows, columns, generator=generator)

    first, second = modality(), modality()

    def on(device: torch.device) -> Probe:
        embeddings, at = [first.to(device), second.to(device)], labels.to(device)
        return lambda: fast_pid(embeddings, at)

    return on


def milliseconds_on_gpu(probe: Probe, device: torch.device) -> float | None:
    """How long a GPU works for a probe, without the host; None without a GPU."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(PROFILED):
            probe()
        torch.cuda.synchronize(device)
    works = [event for event in recorded.events() if event.device_type == DeviceType.CUDA]
    return 1e-3 * sum(event.time_range.elapsed_us() for event in works) / PROFILED


def measured(
    what: dict[str, Any], run: Callable[[torch.device], Probe], device: torch.device
) -> dict[str, Any]:
    """One line."""
    probe = run(device)
    timing = timed(probe, device)
    here, on_cpu = probe(), run(torch.device("cpu"))()
    atoms = [torch.stack([p.redundancy, *p.unique, p.synergy]).double().cpu() for p in (here, on_cpu)]
    low, high = (float(end) for end in here.redundancy_interval)
    return {
        **what,
        "milliseconds": timing.milliseconds,
        "spread": timing.spread,
        "milliseconds_on_gpu": milliseconds_on_gpu(probe, device),
        "bits_from_cpu": float((atoms[0] - atoms[1]).abs().max()),
        "redundancy_interval": [low, high],
    }


def main() -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of heads.jsonl")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; the figures say nothing")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    heads, embeddings = (((60, 3),), ((90, 4),)) if given.smoke else (BY_HEADS, OF_EMBEDDINGS)
    runs = [
        *(({"probe": "by heads", "N": n, "C": c}, by_heads(n, c)) for n, c in heads),
        *(({"probe": "of embeddings", "N": n, "D": d}, of_embeddings(n, d)) for n, d in embeddings),
    ]
    given.output.mkdir(parents=True, exist_ok=True)
    with (given.output / "heads.jsonl").open("w") as file:
        for what, run in runs:
            line = {**environment("triton"), **measured(what, run, device)}
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(
                {
                    name: line[name]
                    for name in (*what, "milliseconds", "spread", "milliseconds_on_gpu", "bits_from_cpu")
                },
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
