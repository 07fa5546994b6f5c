"""First contact with a GPU, by one command in under six minutes: the tests of the kernels, their speed, the probe.

    python benchmarks/gpu.py

Nothing is installed: torch, triton, numpy, scikit-learn and matplotlib suffice, with pytest for the tests, and the
folders of the library are put on the path here. Each part is a process of its own with its own limit of time, and a
part that fails takes nothing from the others. What they print goes to benchmarks/results/gpu_PART.txt, their results to
the files of bench_kernels.py and bench_probe.py, and one line about each part with device and versions to
benchmarks/results/gpu.jsonl.

`--smoke` runs all of it at tiny sizes, for a machine without a GPU: one file of tests in Triton's interpreter.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from environment import environment

ROOT = Path(__file__).resolve().parents[1]
PATHS = [ROOT, ROOT / "kernels" / "torch-ext"]
TESTS = ROOT / "tests" / "kernels"
ON_A_GPU = (TESTS, ROOT / "tests" / "test_replayed.py", ROOT / "tests" / "test_on_a_gpu.py")
"""What needs a GPU, but for `EXECUTED`, which needs none."""
EXECUTED = TESTS / "ptx"
# Seconds for a part to end by itself after its limit, and then after it was interrupted.
GRACE = 15


class Part(NamedTuple):
    """One process: its name, its command, and the seconds that it may take."""

    name: str
    command: list[str]
    limit: int
    variables: dict[str, str]


def parts(smoke: bool, folder: Path) -> list[Part]:
    """The parts in their order; their limits and graces add up to less than six minutes."""
    files = (TESTS / "test_random.py",) if smoke else ON_A_GPU
    interpreted = {"TRITON_INTERPRET": "1"} if smoke and not torch.cuda.is_available() else {}
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "--durations=15"]
    tests += [f"--ignore={EXECUTED}", *map(str, files)]
    if not smoke and importlib.util.find_spec("xdist"):
        # Most of their time is that of Triton's compiler.
        tests += ["-n", "8"]
    found = [Part("tests", tests, 85, interpreted)]
    for name, limit in (("kernels", 95), ("probe", 85)):
        script = [str(ROOT / "benchmarks" / f"bench_{name}.py"), "--output", str(folder)]
        script += ["--smoke"] if smoke else ["--limit", str(limit)]
        found.append(Part(name, script, limit, {}))
    return found


def run(part: Part, folder: Path) -> dict[str, Any]:
    """Run one part, whatever becomes of it; how it ended."""
    paths = [*map(str, PATHS), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "Agg", **part.variables}
    log = folder / f"gpu_{part.name}.txt"
    start = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *part.command], cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT
        )
        is_late = False
        try:
            process.wait(part.limit + GRACE)
        except subprocess.TimeoutExpired:
            # Then pytest tells what it has seen, and the others keep what they have measured.
            is_late = True
            process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    ended = f"with status {process.returncode}" if process.returncode else "well"
    lines = log.read_text(errors="replace").splitlines()
    print("\n".join(lines[-25:]), flush=True)
    return {
        "part": part.name,
        "ended": "over its limit" if is_late else ended,
        "seconds": round(time.perf_counter() - start, 1),
        "last_line": lines[-1] if lines else "",
        "log": log.name,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--output", type=Path, help="folder; benchmarks/results, or /tmp for --smoke")
    chosen = parser.parse_args()
    if not torch.cuda.is_available() and not chosen.smoke:
        parser.error("there is no CUDA device; --smoke runs the same at tiny sizes on the CPU")
    smoke_folder, results = Path("/tmp/ecsfusion-smoke"), ROOT / "benchmarks" / "results"  # noqa: S108
    folder = (chosen.output or (smoke_folder if chosen.smoke else results)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    machine = environment("triton", "scikit-learn", "pytest")
    print(f"{machine['device']}; {', '.join(f'{k} {v}' for k, v in machine['versions'].items())}", flush=True)
    outcomes = []
    with (folder / "gpu.jsonl").open("w") as file:
        for part in parts(chosen.smoke, folder):
            print(f"\n== {part.name}", flush=True)
            outcomes.append(run(part, folder))
            print(json.dumps(machine | outcomes[-1]), file=file, flush=True)
    print()
    for outcome in outcomes:
        print(
            f"{outcome['part']:9}{outcome['seconds']:7.1f} s  ended {outcome['ended']}: {outcome['last_line']}"
        )
    return 0 if all(outcome["ended"] == "well" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
