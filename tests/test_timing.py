"""What `benchmarks/timing.py` counts, on a simulated processor and GPU; what `benchmarks/gpu.py` survives."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

# The benchmarks are scripts, not an installed package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gpu
import timing

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
