"""Every kernel against plain PyTorch and against the bandwidth of a copy, on one GPU, in one run.

    python benchmarks/bench_kernels.py

writes benchmarks/results/kernels.jsonl, one JSON line per measurement (a median in milliseconds
with its spread, the baseline and the speedup over it), and draws benchmarks/results/kernels.png: the cost against N,
D, K and C on log axes beside what the bandwidth of a copy, measured in the same run, allows.

`bandwidth_share` is the kernel's traffic (every input read once, every output written once) per second as a share of
a copy's. A k-means step is the difference between 11 and 1 iterations, over 10; so it is for flash-kmeans and cuML,
which are measured where they are installed. All times are those of the device: what Python takes to launch is not in
them (`timing.timed_on_device`), except where the host waits within the work. The published solver is timed on a few
tables, one after the other, at the end.

`--smoke` runs the same code at tiny sizes, for a machine without a GPU (with TRITON_INTERPRET=1 the kernels, else
their references); its figures say nothing.
"""

import argparse
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from ecsfusion_kernels import broja, histogram, lloyd, nearest, project, project_nearest, reference, seed
from environment import environment
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from published import published_solver
from timing import Timing, timed_on_device
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
# Of k-means, whose mean is a step.
ITERATIONS = 10
# A tolerance at which k-means goes on.
NEVER = -1.0

Line = dict[str, Any]
PUBLISHED_TABLES = 2


class Sizes:
    """What is measured; the smoke run has the same shapes with everything cut down."""

    def __init__(self, smoke: bool) -> None:
        # Bytes
        self.copied = 2**16 if smoke else 2**31
        self.rows = [65, 130] if smoke else [20_000, 200_000, 1_000_000, 4_000_000]
        self.widths = [16, 40] if smoke else [128, 384, 768, 1536, 4096]
        self.points = [65, 130] if smoke else [20_000, 1_000_000, 16_000_000]
        self.clusters = [3, 20] if smoke else [8, 20, 64, 128, 256]
        self.dimensions = [8] if smoke else [8, 32, 128]
        self.step_points = 100 if smoke else 1_000_000
        self.classes = [2, 6] if smoke else [2, 6, 10, 28, 101, 1000]
        self.tables = 3 if smoke else 1024
        self.seconds = 0.0 if smoke else 0.5
        self.d, self.k, self.width = 8, 20, 40 if smoke else 768


def copy_bandwidth(sizes: Sizes, device: torch.device) -> tuple[Timing, float]:
    """Bytes read and written per millisecond by a copy from one place of the device to another."""
    source = torch.empty(sizes.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = timed_on_device(lambda: target.copy_(source), device, sizes.seconds)
    return timing, 2 * sizes.copied / timing.milliseconds


def measure_project(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """Embeddings in bfloat16 to 8 coordinates, against N and against D."""
    shapes = [(n, sizes.width) for n in sizes.rows] + [(sizes.rows[-2], width) for width in sizes.widths]
    for n, width in dict.fromkeys(shapes):
        rows = torch.randn(n, width, device=device).to(torch.bfloat16)
        basis = torch.linalg.qr(torch.randn(width, sizes.d, device=device)).Q.contiguous()
        offset = torch.randn(sizes.d, device=device)
        radius = torch.ones((), device=device)
        yield {
            "benchmark": "project",
            "shape": {"N": n, "D": width, "d": sizes.d, "dtype": "bfloat16"},
            "bytes": 2 * rows.numel() + 4 * n * sizes.d,
            "work": lambda a=(rows, basis, offset, radius): project(*a),
            "baselines": {"torch": lambda a=(rows, basis, offset, radius): reference.project(*a)},
        }


def measure_project_nearest(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """Embeddings in bfloat16 to the nearest of K centers among 8 coordinates, against N and against D."""
    shapes = [(n, sizes.width) for n in sizes.rows] + [(sizes.rows[-2], width) for width in sizes.widths]
    for n, width in dict.fromkeys(shapes):
        rows = torch.randn(n, width, device=device).to(torch.bfloat16)
        basis = torch.linalg.qr(torch.randn(width, sizes.d, device=device)).Q.contiguous()
        offset, radius = torch.zeros(sizes.d, device=device), torch.ones((), device=device)
        centers = project(rows[: sizes.k], basis, offset, radius)
        arguments = (rows, basis, offset, radius)
        yield {
            "benchmark": "project nearest",
            "shape": {"N": n, "D": width, "d": sizes.d, "K": sizes.k, "dtype": "bfloat16"},
            "bytes": 2 * rows.numel() + 8 * n,
            "work": lambda a=arguments, c=centers: project_nearest(*a, c),
            "baselines": {
                "torch": lambda a=arguments, c=centers: reference.project_nearest(*a, c),
                "project, then nearest": lambda a=arguments, c=centers: nearest(project(*a)[None], c[None]),
            },
        }


def measure_nearest(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """Points to the nearest of K centers, against N and against K."""
    shapes = [(n, sizes.k) for n in sizes.points] + [(sizes.points[-2], k) for k in sizes.clusters]
    for n, k in dict.fromkeys(shapes):
        points = torch.randn(1, n, sizes.d, device=device)
        centers = torch.randn(1, k, sizes.d, device=device)
        labels, distances = nearest(points, centers)
        yield {
            "benchmark": "nearest",
            "shape": {"N": n, "K": k, "d": sizes.d},
            "bytes": sum(t.numel() * t.element_size() for t in (points, labels, distances)),
            "work": lambda p=points, c=centers: nearest(p, c),
            "baselines": {"torch": lambda p=points, c=centers: torch.cdist(p, c).min(-1)},
        }


def measure_seed(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """k-means++ seeding of K centers."""
    for n in sizes.points[:-1]:
        points = torch.randn(1, n, sizes.d, device=device)
        yield {
            "benchmark": "seed",
            "shape": {"N": n, "K": sizes.k, "d": sizes.d},
            "bytes": sizes.k * 4 * (points.numel() + n),
            "work": lambda p=points: seed(p, sizes.k),
            "baselines": {"torch": lambda p=points: reference.seed(p, sizes.k)},
        }


def measure_step(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """One iteration of k-means, against K and d."""
    for d in sizes.dimensions:
        points = torch.randn(1, sizes.step_points, d, device=device)
        for k in sizes.clusters:
            centers = points[:, :k].clone()
            yield {
                "benchmark": "kmeans step",
                "shape": {"N": sizes.step_points, "K": k, "d": d},
                "bytes": 4 * points.numel(),
                "work": lambda p=points, c=centers, n=1: lloyd(p, c, max_iterations=n, tolerance=NEVER),
                "iterations": ITERATIONS,
                "baselines": {
                    "torch": lambda p=points, c=centers, n=1: torch_kmeans(p[0], c[0], n),
                    **other_kmeans(points, centers),
                },
            }


def torch_kmeans(points: Tensor, centers: Tensor, iterations: int) -> Tensor:
    """Lloyd's iterations as one writes them: cdist, argmin, index_add."""
    ones = torch.ones_like(points[:, 0])
    for _ in range(iterations):
        labels = torch.cdist(points, centers).argmin(-1)
        sums = torch.zeros_like(centers).index_add_(0, labels, points)
        sizes = torch.zeros_like(centers[:, 0]).index_add_(0, labels, ones).unsqueeze(-1)
        centers = torch.where(sizes > 0, sums / sizes.clamp_min(1), centers)
    return centers


def other_kmeans(points: Tensor, centers: Tensor) -> dict[str, Callable[..., Any]]:
    """flash-kmeans and cuML, where they are installed and there is a GPU."""
    found: dict[str, Callable[..., Any]] = {}
    if not points.is_cuda:
        return found
    try:
        from flash_kmeans import batch_kmeans_Euclid

        def flash(n: int = 1) -> Any:
            k = centers.shape[1]
            return batch_kmeans_Euclid(points, k, max_iters=n, tol=NEVER, init_centroids=centers)

        found["flash-kmeans"] = flash
    except ImportError:
        pass
    try:
        import cupy
        from cuml.cluster import KMeans

        rows, start = cupy.from_dlpack(points[0]), cupy.from_dlpack(centers[0])

        def cuml(n: int = 1) -> Any:
            return KMeans(len(start), init=start, n_init=1, max_iter=n, tol=1e-30).fit(rows)

        found["cuml"] = cuml
    except ImportError:
        pass
    return found


def measure_histogram(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """Three indices of each row to the counts of the joint table."""
    for n in sizes.points:
        first, second = (torch.randint(sizes.k, (n,), device=device) for _ in range(2))
        labels = torch.randint(10, (n,), device=device)
        arguments = (first, second, labels, sizes.k, sizes.k, 10)
        yield {
            "benchmark": "histogram",
            "shape": {"N": n, "K": sizes.k, "C": 10},
            "bytes": 3 * 8 * n,
            "work": lambda a=arguments: histogram(*a),
            "baselines": {"torch": lambda a=arguments: reference.histogram(*a)},
        }


def measure_solver(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """Many tables of 20 x 20 x 6 at once to a gap of 1e-3 bits, and one of 20 x 20 x C."""
    batches = [*((1, classes) for classes in sizes.classes), (sizes.tables, 6)]
    for count, classes in batches:
        tables = random_tables(count, sizes.k, classes, 1280 * max(1, classes // 6), device)
        p1y, p2y = tables.sum(2), tables.sum(1)
        gap = broja(p1y, p2y, tolerance=1e-3).gap
        line: Line = {
            "benchmark": "solver",
            "shape": {"tables": count, "K": sizes.k, "C": classes},
            "tolerance": 1e-3,
            "largest_gap": float(gap.max()),
            "work": lambda a=p1y, b=p2y: broja(a, b, tolerance=1e-3),
            "baselines": {"torch": lambda a=p1y, b=p2y: reference.broja(a, b, tolerance=1e-3)},
        }
        if count > 1:
            some = tables[:PUBLISHED_TABLES]
            line["baselines"]["published"] = lambda s=some: [published_solver(t) for t in s]
            line["scale"] = {"published": count / len(some)}
        yield line


def random_tables(count: int, k: int, classes: int, samples: int, device: torch.device) -> Tensor:
    """Joint distributions (count, K, K, C) of clusters that follow the class and a shared nuisance."""
    torch.manual_seed(0)
    labels = torch.randint(classes, (count, samples))
    shared = torch.randn(count, samples, 4) / 2
    cells = []
    for _ in range(2):
        centers = torch.randn(count, classes, 4)
        rows = torch.gather(centers, 1, labels.unsqueeze(-1).expand(-1, -1, 4)) + shared
        rows = rows + torch.randn(count, samples, 4)
        cells.append(reference.nearest(rows, rows[:, :k])[0])
    counts = reference.histogram(cells[0].long(), cells[1].long(), labels, k, k, classes)
    return counts.double().to(device) / samples


def measured(line: Line, bandwidth: float, device: torch.device, seconds: float) -> Iterator[Line]:
    """Time one entry and its baselines: one finished line per baseline."""
    work, iterations = line.pop("work"), line.pop("iterations", 0)
    scale = line.pop("scale", {})

    def time_of(function: Callable[..., Any]) -> Timing:
        if not iterations:
            return timed_on_device(function, device, seconds)
        # What is not part of an iteration is in both and cancels.
        long, short = (
            timed_on_device(lambda n=n: function(n=n), device, seconds) for n in (iterations + 1, 1)
        )
        difference = max(long.milliseconds - short.milliseconds, 1e-6) / iterations
        return Timing(difference, (long.spread + short.spread) / iterations)

    timing = time_of(work)
    line.update(timing._asdict())
    if "bytes" in line:
        line["bandwidth_share"] = line["bytes"] / timing.milliseconds / bandwidth
    for name, baseline in line.pop("baselines").items():
        other = time_of(baseline)
        milliseconds = other.milliseconds * scale.get(name, 1.0)
        yield line | {
            "baseline": name,
            "baseline_milliseconds": milliseconds,
            "speedup": milliseconds / timing.milliseconds,
        }


def draw(lines: list[Line], bandwidth: float, path: Path) -> None:
    """Cost against N, D, K and C, with what the bandwidth of a copy allows."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    ours = [line for line in lines if line.get("baseline") == "torch"]
    panels = [
        (
            "N",
            [("project", "D"), ("project nearest", "D"), ("nearest", "K"), ("histogram", "K"), ("seed", "K")],
        ),
        ("D", [("project", "N"), ("project nearest", "N")]),
        ("K", [("nearest", "N"), ("kmeans step", "d")]),
        ("C", [("solver", "tables")]),
    ]
    for axes, (variable, curves) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        sizes: set[int] = set()
        for name, fixed in curves:
            found = [line for line in ours if line["benchmark"] == name]
            for value in sorted({line["shape"][fixed] for line in found}):
                chosen = [line for line in found if line["shape"][fixed] == value]
                chosen.sort(key=lambda line: line["shape"][variable])
                if len({line["shape"][variable] for line in chosen}) < 2:
                    continue
                x = [line["shape"][variable] for line in chosen]
                sizes |= set(x)
                (drawn,) = axes.plot(
                    x, [line["milliseconds"] for line in chosen], "o-", label=f"{name}, {fixed} = {value:,}"
                )
                told = {"color": drawn.get_color(), "alpha": 0.6}
                axes.plot(x, [line["baseline_milliseconds"] for line in chosen], "x:", **told)
                if all("bytes" in line for line in chosen):
                    axes.plot(x, [line["bytes"] / bandwidth for line in chosen], "--", **told)
        axes.set(xscale="log", yscale="log", xlabel=variable, ylabel="milliseconds")
        axes.set_xticks([], minor=True)
        axes.set_xticks(sorted(sizes), [f"{size:,}" for size in sorted(sizes)], fontsize=8)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    device = lines[0]["device"]
    versions = ", ".join(f"{name} {lines[0]['versions'][name]}" for name in ("torch", "triton"))
    figure.suptitle(f"{device}, {versions}: kernels (o), plain PyTorch (x), the bandwidth of a copy (dashed)")
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--output", type=Path, help="folder; benchmarks/results, or /tmp for --smoke")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds; then nothing new begins")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.smoke:
        parser.error("there is no CUDA device; --smoke runs the same code at tiny sizes on the CPU")
    folder = options.output or (Path("/tmp/ecsfusion-smoke") if options.smoke else RESULTS)  # noqa: S108
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes, machine = Sizes(options.smoke), environment("triton", "flash-kmeans", "cuml")
    timing, bandwidth = copy_bandwidth(sizes, device)
    first = {"benchmark": "copy", "shape": {"bytes": sizes.copied}, **timing._asdict()}
    lines = [machine | first | {"gigabytes_per_second": bandwidth / 1e6}]
    # Where time is short, more shapes tell more than more runs of each.
    seconds = sizes.seconds if options.limit == math.inf else min(sizes.seconds, 0.15)
    failures = 0
    started = time.perf_counter()
    parts = (
        measure_project,
        measure_project_nearest,
        measure_nearest,
        measure_seed,
        measure_step,
        measure_histogram,
        measure_solver,
    )
    with (folder / "kernels.jsonl").open("w") as file:
        print(json.dumps(lines[0]), file=file)
        for number, part in enumerate(parts, 1):
            until = started + options.limit * number / len(parts)
            print(part.__name__.removeprefix("measure_"), flush=True)
            try:
                for entry in part(sizes, device):
                    if time.perf_counter() > until:
                        break
                    for line in measured(entry, bandwidth, device, seconds):
                        lines.append(machine | line)
                        print(json.dumps(lines[-1]), file=file, flush=True)
            except KeyboardInterrupt:
                # Stopped from outside: what was measured is drawn.
                failures += 1
                break
            except Exception:
                # What the others measured is not lost; the exit status tells.
                failures += 1
                traceback.print_exc()
    draw(lines, bandwidth, folder / "kernels.png")
    print(f"{'':16}{'shape':44}{'ms':>10}{'of copy':>9}  speedup")
    for line in lines[1:]:
        shape = ", ".join(f"{key} {value}" for key, value in line["shape"].items())
        share = f"{100 * line['bandwidth_share']:.0f} %" if "bandwidth_share" in line else ""
        told = f"{line['speedup']:8.1f}x over {line['baseline']}"
        print(f"{line['benchmark']:16}{shape:44}{line['milliseconds']:10.4f}{share:>9}{told}")
    print(
        f"copy: {bandwidth / 1e6:.0f} GB/s; {time.perf_counter() - started:.0f} s; {folder / 'kernels.jsonl'}"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
