"""The default estimate uses few threads of a CPU, and leaves as many as it found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ecsfusion import fast_pid
from ecsfusion.pid import estimate
from ecsfusion.pid.threads import MOST, few_threads


@pytest.fixture
def many():
    """More threads than an estimate uses."""
    before = torch.get_num_threads()
    torch.set_num_threads(MOST + 3)
    yield MOST + 3
    torch.set_num_threads(before)


def rows():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    return [torch.randn(300, 4, generator=generator) + labels[:, None] for _ in range(2)], labels


def test_an_estimate_uses_few_threads_and_leaves_as_many_as_before(many, monkeypatch):
    seen = []
    measure = estimate.measure
    monkeypatch.setattr(
        estimate, "measure", lambda posteriors: (seen.append(torch.get_num_threads()), measure(posteriors))[1]
    )
    fast_pid(*rows())
    assert seen == [MOST]
    assert torch.get_num_threads() == many


def test_also_where_it_fails(many, monkeypatch):
    def fail(*_):
        raise ValueError("not today")

    monkeypatch.setattr(estimate, "measure", fail)
    with pytest.raises(ValueError, match="not today"):
        fast_pid(*rows())
    assert torch.get_num_threads() == many


def test_fewer_threads_stay_fewer(many):
    torch.set_num_threads(1)
    with few_threads():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 1


def test_with_many_classes_several_threads_find_what_one_finds(many):
    """After `torch.set_num_threads` torch's LU of several matrices of 150 columns or more is wrong (2.13, CPU)."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(800) % 200
    means = 2 * torch.randn(200, 6, generator=generator)
    sides = [means[labels] + torch.randn(800, 6, generator=generator) for _ in range(2)]
    found = fast_pid(sides, labels)
    torch.set_num_threads(1)
    base = fast_pid(sides, labels)
    for name in ("redundancy", "unique", "synergy", "joint_mutual_information"):
        torch.testing.assert_close(getattr(found, name), getattr(base, name), rtol=0, atol=0.02)


LEFT_AS_IT_WAS = """
import re, threading, torch
from ecsfusion import fast_pid
from ecsfusion.pid import estimate, threads
from test_threads import rows

if torch.get_num_threads() == 1:
    raise SystemExit("one core")

def in_a_new_thread():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return seen[0]

def measure(posteriors):
    mkl = re.search(r"mkl_get_max_threads\\(\\) : (\\d+)", torch.__config__.parallel_info())
    seen.append((torch.get_num_threads(), in_a_new_thread(), int(mkl[1]) if mkl else 1))
    return whole(posteriors)

seen, whole, threads.MOST, estimate.measure = [], estimate.measure, 1, measure
fast_pid(*rows())
assert seen == [(1, 2, 1)], seen
assert (torch.get_num_threads(), in_a_new_thread()) == (2, 2)
sides = torch.randn(4, 600, 300, generator=torch.Generator().manual_seed(0))
matrices = sides.mT @ sides / 600 + 0.1 * torch.eye(300)
right = sides[:, :300, :3]
torch.testing.assert_close(matrices @ torch.linalg.solve(matrices, right), right, rtol=1e-3, atol=1e-3)
"""


@pytest.mark.parametrize("of_mkl", [{}, {"MKL_NUM_THREADS": "2"}], ids=["", "with a number for MKL"])
def test_an_estimate_changes_nothing_for_the_rest_of_the_program(of_mkl):
    """Neither the threads of other threads nor the LU of several matrices, which `torch.set_num_threads` breaks."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", **of_mkl}
    command = [sys.executable, "-c", LEFT_AS_IT_WAS]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "one core" in done.stderr:
        pytest.skip("torch uses one thread on one core")
    assert done.returncode == 0, done.stderr
