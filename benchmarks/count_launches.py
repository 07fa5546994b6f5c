"""How many launches an estimate is on a GPU, and where they are made. No GPU is needed.

    python benchmarks/count_launches.py [--rows 20000] [--classes 10] [--parts 20]

counts, with all that is returned, intervals included:

- a probe of two modalities by heads, as in training (two heads and one that reads both);
- `fast_pid(method="clusters")` of two modalities of 768 bfloat16 numbers, 20 clusters, 32 permutation and 50 bootstrap
  replicates, from its second call on: what depends on shapes alone is kept from the first.

An op of PyTorch counts as one launch, though some, such as a sort or a concatenation of many tensors, are several;
copies to the host and back count, too. The default estimate of embeddings reads on the host what is worth computing:
its launches are counted on a GPU, by benchmarks/bench_probe.py.
"""

import argparse
import sys
from collections import Counter

import torch
from ecsfusion_kernels.launches import Launch, launches

from ecsfusion.pid import clusters
from ecsfusion.pid.discretize import MAX_ROWS
from ecsfusion.pid.head_posteriors import head_pids
from ecsfusion.pid.options import EstimatorOptions


def by_heads(rows: int, classes: int) -> list[Launch]:
    """The launches of a probe by the heads of two modalities and a joint one."""
    first, second, both = (torch.empty(rows, classes, device="meta") for _ in range(3))
    labels = torch.empty(rows, dtype=torch.int64, device="meta")
    named = {"first": first, "second": second}
    return launches(head_pids, named, both, labels, [("first", "second")])


def by_clusters(rows: int, classes: int) -> list[Launch]:
    """The launches of `fast_pid(method="clusters")` of two modalities, without its checks, which read values."""
    names = ("image", "audio")
    named = {name: torch.empty(rows, 768, dtype=torch.bfloat16, device="meta") for name in names}
    labels = torch.empty(rows, dtype=torch.int64, device="meta")
    options = EstimatorOptions("clusters", 20, 8, True, permutations=32, bootstrap=50)
    sampled = torch.empty(MAX_ROWS, dtype=torch.int64, device="meta") if rows > MAX_ROWS else None
    return launches(clusters._estimate, named, labels, sampled, 20, classes, options)


def main() -> int:
    """Print the counts, the most frequent launches and where they are made, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for option, default in (("rows", 20_000), ("classes", 10), ("parts", 20)):
        parser.add_argument(f"--{option}", type=int, default=default)
    chosen = parser.parse_args()
    for way, count in (("by heads", by_heads), ("by clusters", by_clusters)):
        found = count(chosen.rows, chosen.classes)
        print(f"{way}: {len(found)} launches")
        kinds = Counter(
            ("kernel " if each.kernel is not None else "") + each.name.strip("_") for each in found
        )
        for group in (kinds, Counter(each.place for each in found)):
            for name, number in group.most_common(chosen.parts):
                print(f"  {number:6} x {name}")
            print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
