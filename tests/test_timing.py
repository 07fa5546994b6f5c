"""What `benchmarks/timing.py` counts, on a simulated processor and GPU; what `benchmarks/gpu.py` survives."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

# The benchmarks are scripts, not an installed package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gpu
import timing

ROOT = Path(__file__).resolve().parents[1]
LAUNCHING, WORKING, FLUSHING = 100.0, 10.0, 80.0
"""Microseconds: of Python before a launch, of the GPU for the work, and for its cache."""


class Machine:
    """A processor, and a GPU that works through a queue; clocks in microseconds."""

    def __init__(self):
        self.host = self.gpu = 0.0

    def queue(self, microseconds):
        self.gpu = max(self.gpu, self.host) + microseconds

    def synchronize(self, _device=None):
        self.host = max(self.host, self.gpu)

    def work(self):
        self.host += LAUNCHING
        self.queue(WORKING)

    def event(self, **_options):
        event = SimpleNamespace(time=0.0, synchronize=self.synchronize)

        def record():
            self.queue(0.0)
            event.time = self.gpu

        event.record = record
        event.elapsed_time = lambda other: (other.time - event.time) / 1e3
        return event


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    flushed = SimpleNamespace(zero_=lambda: machine.queue(FLUSHING))
    monkeypatch.setattr(timing.torch, "empty", lambda *_, **__: flushed)
    monkeypatch.setattr(torch.cuda, "Event", machine.event)
    monkeypatch.setattr(torch.cuda, "synchronize", machine.synchronize)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: machine.host / 1e6))
    return machine


def test_the_time_of_the_device_is_without_the_launching(machine):
    found = timing.timed_on_device(machine.work, torch.device("cuda"), 0.0)
    assert found.milliseconds == pytest.approx(WORKING / 1e3)


def test_the_time_of_a_call_is_with_the_launching_and_without_the_flush(machine):
    found = timing.timed(machine.work, torch.device("cuda"), 0.0)
    assert found.milliseconds == pytest.approx((LAUNCHING + WORKING) / 1e3)


def test_no_part_takes_anything_from_the_others(tmp_path, monkeypatch, capsys):
    scripts = {
        "fails": "raise SystemExit(3)",
        "hangs": "import time; time.sleep(60)",
        "works": "print('done')",
    }
    found = [gpu.Part(name, ["-c", code], 2, {}) for name, code in scripts.items()]
    monkeypatch.setattr(gpu, "parts", lambda smoke, folder: found)
    monkeypatch.setattr(gpu, "GRACE", 0)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke", "--output", str(tmp_path)])
    assert gpu.main() == 1
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [line["ended"] for line in lines] == ["with status 3", "over its limit", "well"]
    assert all(line["device"] and line["versions"]["torch"] for line in lines)
    assert (tmp_path / "gpu_works.txt").read_text() == "done\n"
    assert "hangs" in capsys.readouterr().out


@pytest.mark.parametrize("smoke", [True, False])
def test_all_of_it_takes_less_than_six_minutes(tmp_path, smoke):
    assert sum(part.limit + 2 * gpu.GRACE for part in gpu.parts(smoke, tmp_path)) < 360


SUFFICE = ("torch", "triton", "numpy", "scikit-learn", "matplotlib")
WITH_THESE_ALONE = """import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_others(name, path=None, target=None):
    return None if name.partition(".")[0] in {absent!r} else find(name, path, target)
PathFinder.find_spec = staticmethod(find_others)
sys.path.append("benchmarks")
import bench_kernels, bench_probe
import torch
from ecsfusion.pid.estimate import fast_pid
labels = torch.arange(60) % 2
rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)) + 3 * labels[:, None]
for method in ("posteriors", "clusters"):
    assert float(fast_pid([rows, rows], labels, method=method).joint_mutual_information) > 0.5
"""


def modules_beside(names):
    """The modules of the installed packages that are neither these nor needed by them."""
    kept, wanted = set(), [*names]
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name not in kept:
            kept.add(name)
            try:
                needed = [Requirement(each) for each in importlib.metadata.requires(name) or ()]
            except importlib.metadata.PackageNotFoundError:
                continue
            wanted += [
                each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})
            ]
    return sorted(
        module
        for module, packages in importlib.metadata.packages_distributions().items()
        if not module.startswith("ecsfusion")
        and not kept & {package.lower().replace("_", "-") for package in packages}
    )


def test_nothing_else_need_be_installed():
    """By the line of benchmarks/README.md."""
    absent = modules_beside(SUFFICE)
    assert {"transformers", "tqdm", "pytest"} <= {*absent}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", "kernels/torch-ext"])}
    assert "`PYTHONPATH=.:kernels/torch-ext`" in (ROOT / "benchmarks" / "README.md").read_text()
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITH_THESE_ALONE.format(absent=absent)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
