"""The whole probe on kernels: the reference's answer, bad rows reported, no host read, a graph, a compiled call."""

import json
import os
import subprocess
import sys

import pytest
import torch

from ecsfusion.pid import replicates
from ecsfusion.pid.clusters import pid_tensors
from ecsfusion.pid.estimate import fast_pid

pytestmark = pytest.mark.filterwarnings("ignore:.*samples are few")

OPTIONS = {
    "num_classes": 3,
    "num_clusters": 4,
    "num_components": 3,
    "permutations": 2,
    "bootstrap": 0,
    "tolerance": 1e-3,
}


def data(number=100, dimensions=(9, 7)):
    """Two modalities around three well separated centers each, and the label: their sum modulo 3."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randint(3, (2, number), generator=generator)
    named = {}
    for name, state, dimension in zip("ab", states, dimensions, strict=True):
        centers = torch.randn(3, dimension, generator=generator)
        named[name] = centers[state] + 0.1 * torch.randn(number, dimension, generator=generator)
    return named, states.sum(0) % 3


def moved(named, labels, device):
    return {name: rows.to(device) for name, rows in named.items()}, labels.to(device)


def atoms(part):
    return [part.redundancy.tolist(), part.unique.tolist(), part.synergy.tolist()]


def answer(most_rows, device="cpu"):
    """The answer for the data above, of which 6 of 100 rows cannot be counted."""
    replicates.MAX_ROWS = most_rows
    named, labels = data()
    named["a"][3] = torch.nan
    named["b"][7, 3], named["b"][8, 2] = torch.inf, -torch.inf
    labels[10], labels[11], labels[12] = -1, 3, 2**40
    found = pid_tensors(*moved(named, labels, device), **OPTIONS)
    return {
        "corrected": atoms(found.corrected),
        "plugin": atoms(found.plugin),
        "counted": found.counted.tolist(),
    }


@pytest.mark.parametrize("most_rows", [16_384, 0], ids=["samples", "cells"])
def test_kernels_and_references_agree(device, large, most_rows, monkeypatch):
    """To the tolerance of the solver, 1e-3 bits; the references run in a process where no kernel can.

    Rows and labels that cannot be counted are left out and reported.
    """
    if most_rows and not large:
        pytest.skip("the interpreter takes ten seconds a probe")
    monkeypatch.setattr(replicates, "MAX_ROWS", replicates.MAX_ROWS)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = f"import json, sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_probe;"
    code += f"print(json.dumps(test_probe.answer({most_rows})))"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected, found = json.loads(run.stdout), answer(most_rows, device)
    assert found["counted"] == expected["counted"] == [94.0]
    for kind in ("corrected", "plugin"):
        for one, other in zip(found[kind], expected[kind], strict=True):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=3e-3, rtol=0)
    assert expected["plugin"][2][0] > 1.4, "the label is the exclusive or of the modalities"


@pytest.mark.parametrize(
    ("place", "bad", "message"),
    [
        ("a", torch.nan, r"embeddings\['a'\] has NaN or infinite values in 1 of 100 rows, first in row 5"),
        ("b", torch.inf, r"embeddings\['b'\] has NaN or infinite values"),
        ("labels", -1, "labels must not be negative, found -1"),
        ("labels", 3, "labels must be below num_classes=3, found 3"),
    ],
)
def test_what_cannot_be_counted_is_named(device, place, bad, message):
    named, labels = data()
    (labels if place == "labels" else named[place])[5] = bad
    with pytest.raises(ValueError, match=message):
        fast_pid(*moved(named, labels, device), method="clusters", **OPTIONS)


def test_fewer_distinct_rows_than_clusters_have_an_answer(device, large):
    if not large:
        pytest.skip("the interpreter takes ten seconds a probe")
    labels = torch.arange(60) % 3
    rows = torch.eye(3)[labels]
    pid = fast_pid(*moved({"a": rows, "b": rows}, labels, device), method="clusters", **OPTIONS)
    assert float(pid.plugin.redundancy) == pytest.approx(1.58496, abs=2e-3)


def test_a_gpu_gives_the_answer_of_the_processor(device, large):
    if not large:
        pytest.skip("the interpreter takes minutes for 3000 rows and 50 bootstrap replicates")
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(4, (2, 3000), generator=generator)
    named = {}
    for name, state, dimension in (("a", first, 64), ("b", second, 32)):
        centers = torch.randn(4, dimension, generator=generator)
        named[name] = centers[state] + 0.1 * torch.randn(3000, dimension, generator=generator)
    labels = (first + second) % 4
    there = fast_pid(*moved(named, labels, device), method="clusters")
    here = fast_pid(named, labels, method="clusters")
    assert there.synergy.device.type == device.type
    for atom in ("redundancy", "unique", "synergy"):
        torch.testing.assert_close(getattr(there, atom).cpu(), getattr(here, atom), atol=0.02, rtol=0)


def test_the_probe_compiles_as_one_graph(device, large):
    if not large:
        pytest.skip(
            "the interpreter takes ten seconds a probe; tests/test_estimate.py compiles it on the CPU"
        )
    named, labels = moved(*data(), device)
    compiled = torch.compile(lambda x, y: pid_tensors(x, y, **OPTIONS), fullgraph=True, backend="eager")
    found, expected = compiled(named, labels), pid_tensors(named, labels, **OPTIONS)
    torch.testing.assert_close(found.corrected.synergy, expected.corrected.synergy)
    torch.testing.assert_close(found.plugin.unique, expected.plugin.unique)


@pytest.mark.parametrize("number", [5_000, 20_000])
def test_the_host_reads_nothing_and_a_graph_replays(device, number):
    if device.type == "cpu":
        pytest.skip("host reads and graphs are CUDA's")
    named, labels = moved(*data(number), device)
    # Compiles the kernels
    expected = pid_tensors(named, labels, **OPTIONS)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = pid_tensors(named, labels, **OPTIONS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again.corrected.synergy, expected.corrected.synergy)
    assert torch.equal(again.plugin.unique, expected.plugin.unique)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        pid_tensors(named, labels, **OPTIONS)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = pid_tensors(named, labels, **OPTIONS)
    for part in captured.corrected[:7]:
        part.fill_(torch.nan)
    graph.replay()
    assert torch.equal(captured.corrected.synergy, expected.corrected.synergy)
    assert captured.counted.tolist() == [float(number)]
