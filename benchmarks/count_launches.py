"""How many launches a probe by heads is on a GPU, and where they are made. No GPU is needed.

    python benchmarks/count_launches.py [--rows 20000] [--classes 10] [--parts 20]

counts a probe of two modalities by heads, as in training (two heads and one that reads both), with all that it
returns, intervals included. An op of PyTorch counts as one launch, though some, such as a sort, are several. The
default estimate of embeddings reads on the host what is worth computing: its launches are counted on a GPU, by
benchmarks/bench_probe.py.
"""

import argparse
import sys
from collections import Counter

import torch
from ecsfusion_kernels.launches import Launch, launches

from ecsfusion.pid.head_posteriors import head_pids


def by_heads(rows: int, classes: int) -> list[Launch]:
    """The launches of a probe by the heads of two modalities and a joint one."""
    first, second, both = (torch.empty(rows, classes, device="meta") for _ in range(3))
    labels = torch.empty(rows, dtype=torch.int64, device="meta")
    named = {"first": first, "second": second}
    return launches(head_pids, named, both, labels, [("first", "second")])


def main() -> int:
    """Print the count and the most frequent launches, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for option, default in (("rows", 20_000), ("classes", 10), ("parts", 20)):
        parser.add_argument(f"--{option}", type=int, default=default)
    chosen = parser.parse_args()
    found = by_heads(chosen.rows, chosen.classes)
    print(f"by heads: {len(found)} launches")
    kinds = Counter(("kernel " if each.kernel is not None else "") + each.name.strip("_") for each in found)
    for kind, count in kinds.most_common(chosen.parts):
        print(f"  {count:6} x {kind}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
