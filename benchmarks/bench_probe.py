"""The whole probe, from embeddings on the device to the decomposition, against the published way in the same run.

    python benchmarks/bench_probe.py

writes benchmarks/results/probe.jsonl, one JSON line per measurement (a median in milliseconds with its spread, the
baseline and the speedup over it), and draws benchmarks/results/probe.png: the cost against N, D, K and C.

The way "default call" is `fast_pid` as a user calls it, by held-out posteriors, "call" `fast_pid(method="clusters")`,
both with the checks and the read of the result; "graph replay" is `pid_tensors` captured in a CUDA graph. The last two
find the clusters, count, solve, and correct with 32 permutation replicates, without bootstrap. `launches` are the
kernels that one run starts on a GPU, as torch.profiler counts them. The published way (`published.py`) moves the
embeddings to the host for scikit-learn's PCA and k-means and solves on the device; as published it takes 1280 of the
rows, here also all. "probe part" lines are the steps of "call", one by one, without the Python that launches them.

    OMP_NUM_THREADS=1 python benchmarks/bench_probe.py --one-core

measures the default estimate beside the published way on all rows, on one core and in processor time, in turn, so that
other work on the machine slows both alike; a line per size and strength of the signal in
benchmarks/results/probe_one_core.jsonl. The strength matters: the published solver takes 100 steps where the classes
are apart and 2000, its limit, where they are not.

`--smoke` runs the same code at tiny sizes, for a machine without a GPU (with TRITON_INTERPRET=1 the kernels, else
their references); its figures say nothing.
"""

import argparse
import json
import math
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ecsfusion_kernels import histogram
from environment import environment
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from published import MAX_SAMPLES, published_histogram, published_solver
from timing import Timing, timed, timed_on_device
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ecsfusion.pid.clusters import MAX_ITERATIONS, pid_tensors
from ecsfusion.pid.correction import draw_nulls
from ecsfusion.pid.decomposition import decompose_tensors
from ecsfusion.pid.discretize import ModalityPairs
from ecsfusion.pid.estimate import fast_pid

RESULTS = Path(__file__).parent / "results"
PERMUTATIONS, TOLERANCE = 32, 1e-3
# Of one modality; for more the default estimate is not measured.
MAX_DEFAULT_VALUES = 100_000 * 768

Line = dict[str, Any]
Size = dict[str, int]


def sizes(smoke: bool, rows: int) -> tuple[Size, list[Size]]:
    """The size of the figure, and those of the picture: one number at a time changed."""
    if smoke:
        base = {"N": 120, "D": 24, "d": 3, "K": 4, "C": 3}
        changes = {"N": [60], "D": [16], "K": [6], "C": [5]}
    else:
        base = {"N": rows, "D": 768, "d": 8, "K": 20, "C": 10}
        changes = {
            "N": [2_000, 8_000, 100_000, 1_000_000],
            "D": [128, 384, 1536, 4096],
            "K": [8, 32, 64],
            "C": [2, 28, 101],
        }
    return base, [base | {name: value} for name, values in changes.items() for value in values]


def modalities(
    size: Size, device: torch.device, strength: float = 0.2, random_seed: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """Two matrices (N, D) bfloat16 around the centers of C classes, and the classes (N,)."""
    generator = torch.Generator(device).manual_seed(random_seed)
    labels = torch.randint(size["C"], (size["N"],), generator=generator, device=device)
    named = {}
    for name in ("image", "audio"):
        centers = torch.randn(size["C"], size["D"], generator=generator, device=device)
        noise = torch.randn(size["N"], size["D"], generator=generator, device=device)
        named[name] = (strength * centers[labels] + noise).to(torch.bfloat16)
    return named, labels


def one_core(smoke: bool, runs: int, path: Path) -> None:
    """Write and print the processor time of the default estimate and of the published way, and their ratio."""
    torch.set_num_threads(1)
    sizes = [(240, 16)] if smoke else [(20_000, 768), (20_000, 64), (1280, 64)]

    def seconds(work: Callable[[], Any]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    with path.open("w") as file:
        for rows, columns in sizes:
            for strength in (0.1, 0.2, 0.5):
                size = {"N": rows, "D": columns, "C": 10}
                times = []
                for run in range(runs + 1):
                    # Other rows each time: which readouts are worth fitting depends on them.
                    named, labels = modalities(size, torch.device("cpu"), strength, run)
                    named = {name: rows.float() for name, rows in named.items()}
                    ours = seconds(partial(fast_pid, named, labels))
                    counts = partial(
                        published_histogram, *(x.numpy() for x in named.values()), labels.numpy()
                    )
                    times.append((ours, seconds(lambda counts=counts: published_solver(counts()))))
                # Both load modules when they are first called.
                times = times[1:]
                of_ours, of_published = zip(*times, strict=True)
                mine, theirs = statistics.median(of_ours), statistics.median(of_published)
                line = environment("scikit-learn") | {
                    "benchmark": "one core",
                    "shape": size,
                    "strength": strength,
                }
                line |= {"seconds": mine, "published_seconds": theirs, "speedup": theirs / mine, "runs": runs}
                line |= {"fastest": min(of_ours), "slowest": max(of_ours)}
                print(json.dumps(line), file=file, flush=True)
                print(
                    f"{rows:6} x {columns:3}, strength {strength}: {mine:6.3f} s"
                    f" ({min(of_ours):.3f} to {max(of_ours):.3f}), published {theirs:6.3f} s,"
                    f" {theirs / mine:5.1f} times",
                    flush=True,
                )


def options(size: Size) -> dict[str, Any]:
    return {
        "num_clusters": size["K"],
        "num_components": size["d"],
        "num_classes": size["C"],
        "permutations": PERMUTATIONS,
        "bootstrap": 0,
        "tolerance": TOLERANCE,
    }


def launches(work: Callable[[], Any], device: torch.device) -> int | None:
    """The kernels that `work()` starts on a GPU; None on the CPU."""
    if device.type != "cuda":
        return None
    work()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize(device)
    on_device = [event.name for event in profiler.events() if event.device_type == DeviceType.CUDA]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in on_device)


def measure_ways(
    size: Size, device: torch.device, seconds: float, counts: bool
) -> Iterator[tuple[str, Timing, int | None]]:
    """The default estimate and that by clusters as calls and, on a GPU, the latter as the replay of a graph.

    `counts`: whether their launches are counted, which takes seconds where they are many.
    """
    named, labels = modalities(size, device)

    def by_clusters() -> Any:
        return fast_pid(named, labels, method="clusters", **options(size))

    def by_posteriors() -> Any:
        return fast_pid(named, labels, num_classes=size["C"], tolerance=TOLERANCE)

    def count(work: Callable[[], Any]) -> int | None:
        return launches(work, device) if counts else None

    yield "call", timed(by_clusters, device, seconds), count(by_clusters)
    if size["N"] * size["D"] <= MAX_DEFAULT_VALUES:
        yield "default call", timed(by_posteriors, device, seconds), count(by_posteriors)
    if device.type != "cuda":
        return
    # A warm-up on a stream of its own: PyTorch's rule for capturing.
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            pid_tensors(named, labels, **options(size))
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = pid_tensors(named, labels, **options(size))
    graph.replay()
    if int(found.counted.min()) != size["N"]:
        raise RuntimeError(f"the replay counted {int(found.counted.min())} of {size['N']} rows")
    yield "graph replay", timed_on_device(graph.replay, device, seconds), count(graph.replay)


def measure_parts(
    size: Size, device: torch.device, seconds: float
) -> Iterator[tuple[str, Timing, int | None]]:
    """The steps of `pid_tensors`, one by one, each launched eagerly."""
    named, labels = modalities(size, device)
    clusters, number = size["K"], size["N"]
    pairs = ModalityPairs.fit(named, clusters, size["d"], 0)
    first, second = pairs.assign(named)
    counts = histogram(first, second, labels, clusters, clusters, size["C"]).double()
    table = counts / number
    steps: dict[str, Callable[[], Any]] = {
        "fit": lambda: ModalityPairs.fit(named, clusters, size["d"], 0),
        "assign": lambda: pairs.assign(named),
        "histogram": lambda: histogram(first, second, labels, clusters, clusters, size["C"]),
        "decompose": lambda: decompose_tensors(table, TOLERANCE, MAX_ITERATIONS),
        "correct": lambda: draw_nulls(counts[0], number, PERMUTATIONS, 0),
    }
    for name, step in steps.items():
        yield name, timed_on_device(step, device, seconds), launches(step, device)


def measure_published(size: Size, device: torch.device, seconds: float) -> Iterator[tuple[str, Timing]]:
    """The published way on the 1280 rows that it takes, and on all."""
    named, labels = modalities(size, device)
    for rows in sorted({min(MAX_SAMPLES, size["N"]), size["N"]}):

        def work(rows: int = rows) -> None:
            chosen = [x[:rows].float().cpu().numpy() for x in named.values()]
            table = published_histogram(*chosen, labels[:rows].cpu().numpy())
            published_solver(table.to(device))

        yield f"published, {rows} rows", timed(work, device, seconds)


def draw(lines: list[Line], base: Size, path: Path) -> None:
    """Cost of the probe against N, D, K and C, as far as they were measured."""
    whole = {(line["way"], *line["shape"].values()): line for line in lines if line["benchmark"] == "probe"}
    sizes = {name: sorted({line["shape"][name] for line in whole.values()}) for name in ("N", "D", "K", "C")}
    variables = [name for name, values in sizes.items() if len(values) > 1] or ["N"]
    figure = Figure(figsize=(3 + 3 * len(variables), 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(variables), sharey=True, squeeze=False).flat
    for axes, variable in zip(panels, variables, strict=True):
        for way, marker in (("default call", "^-"), ("call", "o-"), ("graph replay", "s--")):
            rest = base.keys() - {variable}
            found = [line for line in whole.values() if line["way"] == way]
            found = [line for line in found if all(line["shape"][name] == base[name] for name in rest)]
            found.sort(key=lambda line: line["shape"][variable])
            if found:
                x = [line["shape"][variable] for line in found]
                axes.plot(x, [line["milliseconds"] for line in found], marker, label=way)
        axes.set(xscale="log", yscale="log", xlabel=variable, ylabel="milliseconds")
        axes.set_xticks([], minor=True)
        axes.set_xticks(sizes[variable], [f"{size:,}" for size in sizes[variable]], fontsize=8)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    told = ", ".join(f"{name} = {value:,}" for name, value in base.items())
    versions = ", ".join(f"{name} {lines[0]['versions'][name]}" for name in ("torch", "triton"))
    told = f"the whole probe of two modalities\naround {told}"
    figure.suptitle(f"{lines[0]['device']}, {versions}: {told}", fontsize=10)
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", help="cuda where there is one")
    parser.add_argument("--rows", type=int, default=20_000, help="N of the figure")
    parser.add_argument(
        "--one-core", action="store_true", help="the default estimate beside the published way"
    )
    parser.add_argument(
        "--runs", type=int, default=7, help="of --one-core, each of other rows, for each size and strength"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--output", type=Path, help="folder; benchmarks/results, or /tmp for --smoke")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds; then no new size begins")
    chosen = parser.parse_args()
    if chosen.one_core:
        folder = chosen.output or (Path("/tmp/ecsfusion-smoke") if chosen.smoke else RESULTS)  # noqa: S108
        folder.mkdir(parents=True, exist_ok=True)
        warnings.filterwarnings("ignore", message=".*samples are few")
        one_core(chosen.smoke, chosen.runs, folder / "probe_one_core.jsonl")
        return 0
    if not torch.cuda.is_available() and not chosen.smoke and chosen.device != "cpu":
        parser.error(
            "there is no CUDA device; --smoke runs the same code at tiny sizes, --device cpu measures here"
        )
    device = torch.device(chosen.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folder = chosen.output or (Path("/tmp/ecsfusion-smoke") if chosen.smoke else RESULTS)  # noqa: S108
    folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", message=".*samples are few")
    base, others = sizes(chosen.smoke, chosen.rows)
    # Where time is short, more sizes tell more than more runs of each.
    seconds = 0.0 if chosen.smoke else 1.0 if chosen.limit == math.inf else 0.3
    machine = environment("triton", "scikit-learn")
    if device.type == "cpu":
        machine["device"] = machine["processor"]
    lines: list[Line] = []
    failures = 0
    started = time.perf_counter()

    with (folder / "probe.jsonl").open("w") as file:

        def write(
            benchmark: str,
            size: Size,
            way: str,
            timing: Timing,
            started_kernels: int | None,
            baselines: dict[str, Timing],
        ) -> None:
            line = machine | {"benchmark": benchmark, "way": way, "dtype": "bfloat16", "shape": size}
            line |= {"permutations": PERMUTATIONS, "restarts": 4, **timing._asdict()}
            line["launches"] = started_kernels
            for name, baseline in (baselines or {None: None}).items():
                milliseconds = None if baseline is None else baseline.milliseconds
                lines.append(
                    line
                    | {
                        "baseline": name,
                        "baseline_milliseconds": milliseconds,
                        "speedup": None if milliseconds is None else milliseconds / timing.milliseconds,
                    }
                )
                print(json.dumps(lines[-1]), file=file, flush=True)
                against = "" if name is None else f"{lines[-1]['speedup']:10.1f} x over {name}"
                shape = ", ".join(f"{key} {value}" for key, value in size.items())
                count = "" if started_kernels is None else f"{started_kernels:6} launches"
                print(
                    f"{benchmark:11}{way:14}{shape:42}{timing.milliseconds:10.3f} ms{count}{against}",
                    flush=True,
                )

        def attempt(work: Callable[[], None]) -> None:
            nonlocal failures
            try:
                work()
            except Exception:
                # What the others measured is not lost; the exit status tells.
                failures += 1
                traceback.print_exc()

        figures: list[tuple[str, Timing, int | None]] = []

        def figure() -> None:
            for way, timing, count in measure_ways(base, device, seconds, True):
                figures.append((way, timing, count))
                write("probe", base, way, timing, count, {})

        def against_published() -> None:
            for name, baseline in measure_published(base, device, seconds):
                for way, timing, count in figures:
                    write("probe", base, way, timing, count, {name: baseline})

        def parts() -> None:
            for name, timing, count in measure_parts(base, device, seconds):
                write("probe part", base, name, timing, count, {})

        def picture(size: Size) -> None:
            for way, timing, count in measure_ways(size, device, seconds, False):
                write("probe", size, way, timing, count, {})

        try:
            attempt(figure)
            attempt(parts)
            for size in others:
                # The published way takes the other half.
                if time.perf_counter() < started + chosen.limit / 2:
                    attempt(lambda size=size: picture(size))
            attempt(against_published)
        except KeyboardInterrupt:
            # Stopped from outside: what was measured is drawn.
            failures += 1
    if lines:
        draw(lines, base, folder / "probe.png")
    print(f"{time.perf_counter() - started:.0f} s; {folder / 'probe.jsonl'}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
