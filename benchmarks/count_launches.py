"""How many launches a probe is on a GPU, and where they are made. No GPU is needed.

    python benchmarks/count_launches.py [--rows 20000] [--dimensions 768] [--classes 10] [--parts 20]

counts two probes of two modalities with all that they return, intervals included: by heads, as in training (two heads
and one that reads both), and of embeddings, `fast_pid` by default. An op of PyTorch counts as one launch, though some,
such as a sort, are several; what the host reads counts as one, and gives a 1 here, so what depends on it is the way of
such a probe and may be another for other values.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from ecsfusion_kernels.launches import Launch, launches
from torch.fx.experimental import _config as config

from ecsfusion.pid.head_posteriors import head_pids
from ecsfusion.pid.options import EstimatorOptions
from ecsfusion.pid.posteriors import held_out_information
from ecsfusion.pid.uncertainty import measure


def by_heads(rows: int, classes: int) -> list[Launch]:
    """The launches of a probe by the heads of two modalities and a joint one."""
    first, second, both = (torch.empty(rows, classes, device="meta") for _ in range(3))
    labels = torch.empty(rows, dtype=torch.int64, device="meta")
    named = {"first": first, "second": second}
    return launches(head_pids, named, both, labels, [("first", "second")])


def of_embeddings(rows: int, dimensions: int, classes: int) -> list[Launch]:
    """The launches of the default estimate of two modalities."""
    named = {name: torch.empty(rows, dimensions, device="meta") for name in ("first", "second")}
    labels = torch.empty(rows, dtype=torch.int64, device="meta")
    clusters = EstimatorOptions().posterior_clusters(rows)

    def estimate() -> Any:
        sides = [(["first"], ["second"])]
        return measure(held_out_information(named, labels, classes, sides, None, clusters, 1e-3, 0))

    # How many rows are picked depends on values: all.
    with config.patch(meta_nonzero_assume_all_nonzero=True):
        return launches(estimate)


def printed(name: str, find: Callable[[], list[Launch]], parts: int) -> None:
    """Print a count, and the most frequent launches."""
    found = find()
    print(f"{name}: {len(found)} launches")
    kinds = Counter(("kernel " if each.kernel is not None else "") + each.name.strip("_") for each in found)
    for kind, count in kinds.most_common(parts):
        print(f"  {count:6} x {kind}")


def main() -> int:
    """Print both counts, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for option, default in (("rows", 20_000), ("dimensions", 768), ("classes", 10), ("parts", 20)):
        parser.add_argument(f"--{option}", type=int, default=default)
    chosen = parser.parse_args()
    printed("by heads", lambda: by_heads(chosen.rows, chosen.classes), chosen.parts)
    printed(
        "of embeddings", lambda: of_embeddings(chosen.rows, chosen.dimensions, chosen.classes), chosen.parts
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
