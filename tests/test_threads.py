"""An estimate on a CPU uses one thread, and leaves as many as it found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ecsfusion import fast_pid
from ecsfusion.pid import estimate
from ecsfusion.pid.threads import one_thread


@pytest.fixture
def many():
    """More threads than an estimate uses."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


def rows():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    return [torch.randn(300, 4, generator=generator) + labels[:, None] for _ in range(2)], labels


def test_an_estimate_uses_one_thread_and_leaves_as_many_as_before(many, monkeypatch):
    seen = []
    measure = estimate.measure
    monkeypatch.setattr(
        estimate, "measure", lambda posteriors: (seen.append(torch.get_num_threads()), measure(posteriors))[1]
    )
    fast_pid(*rows())
    assert seen == [1]
    assert torch.get_num_threads() == many


def test_also_where_it_fails(many, monkeypatch):
    def fail(*_):
        raise ValueError("not today")

    monkeypatch.setattr(estimate, "measure", fail)
    with pytest.raises(ValueError, match="not today"):
        fast_pid(*rows())
    assert torch.get_num_threads() == many


def test_one_thread_stays_one(many):
    torch.set_num_threads(1)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("columns", [6, 300])
def test_with_many_threads_an_estimate_is_that_with_one_to_the_last_bit(many, columns):
    """So that every machine gives the same. And torch's LU of several matrices is wrong after `torch.set_num_threads`
    (2.13, CPU), of 150 columns or more: many classes."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(640) % 160
    means = 2 * torch.randn(160, columns, generator=generator)
    sides = [means[labels] + torch.randn(640, columns, generator=generator) for _ in range(2)]
    found = fast_pid(sides, labels)
    torch.set_num_threads(1)
    base = fast_pid(sides, labels)
    for name in ("redundancy", "unique", "synergy", "joint_mutual_information", "redundancy_interval"):
        assert torch.equal(getattr(found, name), getattr(base, name)), name


FORKED = """
import multiprocessing, torch
from ecsfusion import fast_pid

labels = torch.arange(600) % 3
rows = torch.randn(600, 300, generator=torch.Generator().manual_seed(0)) + labels[:, None]
given = [(rows.double(), rows[:, :8].half()), (rows.numpy(), rows.bfloat16()[:, ::2])]

def redundancy(place):
    return float(fast_pid(given[place % 2], labels, method=("posteriors", "clusters")[place // 2]).redundancy)

if __name__ == "__main__":
    before = [redundancy(place) for place in range(4)]
    rows.T @ torch.randn(600, 2000)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(redundancy, range(4)) == before
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_an_estimate_works_in_a_process_that_was_forked_from_one_with_threads():
    """GNU OpenMP waits forever for threads that the forked process does not have; `Dataset.map(num_proc=2)` forks."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


LEFT_AS_IT_WAS = """
import re, threading, torch
from ecsfusion import fast_pid
from ecsfusion.pid import estimate
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

seen, whole, estimate.measure = [], estimate.measure, measure
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
