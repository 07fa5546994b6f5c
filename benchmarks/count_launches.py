"""How many launches an estimate is on a GPU, and where they are made. No GPU is needed.

    python benchmarks/count_launches.py [--rows 20000] [--classes 10] [--parts 20] [--embeddings]

counts, with all that is returned, intervals included:

- a probe of two modalities by heads, as in training (two heads and one that reads both);
- `fast_pid(method="clusters")` of two modalities of 768 bfloat16 numbers, 20 clusters, 32 permutation and 50 bootstrap
  replicates, from its second call on: what depends on shapes alone is kept from the first.

- with `--embeddings`, the default estimate of the same embeddings, around the centers of their classes, with
  `--strength` of them. The host reads there what is worth computing, so it depends on the values; this takes a quarter
  of a minute.

An op of PyTorch counts as one launch, though some, such as a sort or a concatenation of many tensors, are several;
copies to the host and back count, too.
"""

import argparse
import sys
import warnings
from collections import Counter

import torch
from bench_probe import modalities
from ecsfusion_kernels.launches import Launch, launches
from launches_with_values import launches_with_values

from ecsfusion.pid import clusters
from ecsfusion.pid.discretize import MAX_ROWS
from ecsfusion.pid.estimate import _by_posteriors, _warn_of_shared_sources
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


def by_embeddings(rows: int, classes: int, strength: float) -> list[Launch]:
    """The launches of the default `fast_pid` of two modalities, without its checks."""
    size = {"N": rows, "D": 768, "C": classes}
    named, labels = modalities(size, torch.device("cpu"), strength)

    def estimate(labels: torch.Tensor, *embeddings: torch.Tensor) -> None:
        given = dict(zip(named, embeddings, strict=True))
        _warn_of_shared_sources(given, labels, 0)
        _by_posteriors(given, labels, classes, None, EstimatorOptions(), None)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*samples are few")
        return launches_with_values(estimate, labels, *named.values())


def main() -> int:
    """Print the counts, the most frequent launches and where they are made, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for option, default in (("rows", 20_000), ("classes", 10), ("parts", 20)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--embeddings", action="store_true", help="the default estimate, too")
    parser.add_argument("--strength", type=float, default=0.2, help="of what the embeddings tell")
    chosen = parser.parse_args()
    sizes = chosen.rows, chosen.classes
    ways = {"by heads": by_heads(*sizes), "by clusters": by_clusters(*sizes)}
    if chosen.embeddings:
        ways["by embeddings"] = by_embeddings(*sizes, chosen.strength)
    for way, found in ways.items():
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
