"""Many bad and odd inputs for every public function, and how many of them gave results and errors of ours.

    python tests/fuzz_campaign.py --cases 10000 --seed 0

The cases are shared out evenly among the functions. Prints a line per function, adds a line of JSON to
benchmarks/results/fuzz.jsonl, and ends with status 1 where a case crashed, hung or gave a wrong result.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import torch
import transformers
from fuzz_inputs import CASES, no_hang
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

OUTCOMES = ("result", "error", "failure")
RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "fuzz.jsonl"


def run(name: str, cases: int, random_seed: int) -> tuple[Counter[str], dict[str, str]]:
    """What came of the cases of one function, and one traceback of each kind of failure, by where it was raised."""
    found: Counter[str] = Counter()
    failures: dict[str, str] = {}

    @seed(random_seed)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(data=st.data())
    def campaign(data: st.DataObject) -> None:
        try:
            with no_hang():
                found[CASES[name](data.draw)] += 1
        except Exception as error:
            # Whatever a case lets through; the next one is to be run all the same.
            found["failure"] += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
            failures.setdefault(where, traceback.format_exc())

    campaign()
    return found, failures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", type=int, default=10_000, help="of all functions together (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="default: all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    given_options = parser.parse_args()
    torch.set_num_threads(1)
    each = max(given_options.cases // len(given_options.only), 1)
    started, counts, failures = time.process_time(), {}, {}
    for name in given_options.only:
        before = time.process_time()
        found, failed = run(name, each, given_options.seed)
        seconds = time.process_time() - before
        counts[name] = dict(sorted(found.items())) | {"cpu_seconds": round(seconds, 1)}
        print(
            f"{name:<24} {found['result']:>6} results {found['error']:>6} errors {seconds:8.1f} s", flush=True
        )
        for where, text in failed.items():
            failures[f"{name}: {where}"] = text.strip().splitlines()[-1]
            print(f"\n{name}: {text}", flush=True)
    line = {
        "cases": sum(sum(found[key] for key in OUTCOMES if key in found) for found in counts.values()),
        "seed": given_options.seed,
        "functions": counts,
        "failures": failures,
        "cpu_seconds": round(time.process_time() - started, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    given_options.out.parent.mkdir(parents=True, exist_ok=True)
    with given_options.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{line['cases']} cases, {len(failures)} kinds of failure, {line['cpu_seconds']} s of CPU")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
