"""Programs that wait for each other: on a GPU of any size the same bits, in a graph that is replayed as well.

What happens in other orders, and without a GPU, is asked by `test_program_orders.py` and by the tests in ptx.
"""

import pytest
import torch
from ecsfusion_kernels import grid_barrier
from ecsfusion_kernels.ops import lloyd_centers, match_prior, pool_weights, principal
from ecsfusion_kernels.ops import seed as seed_module


def make(*shape, random_seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(random_seed))


def matched(classes, device):
    given = make(2, 60_000 if classes < 100 else 2000, classes).double().softmax(-1).to(device)
    prior = make(classes, random_seed=1).double().softmax(-1).to(device)
    return lambda: match_prior.match_prior(given, prior, 0.0, 5)


def pooled(readouts, device):
    labels = torch.arange(4000) % 3
    logits = (make(1, readouts, 4000, 3) + torch.eye(3)[labels]).to(device)
    labels, prior = labels.to(device), torch.zeros(3, device=device)
    return lambda: pool_weights.pool_weights(logits, labels, prior, iterations=5)


def clustered(clusters, device):
    points, start = make(2, 4000, 9).to(device), make(2, clusters, 9, random_seed=1).to(device)
    return lambda: lloyd_centers.lloyd_centers(points, start, 5, -1.0)


def directed(dims, device):
    rows = make(2, 3000, dims).to(device)
    return lambda: principal.principal_directions(rows, 9)


def seeded(clusters, device):
    points = make(2, 8000, 9).to(device)
    return lambda: seed_module.seed(points, clusters)


CALLS = [(match_prior, matched, size) for size in (3, 100, 1000)]
CALLS += [(pool_weights, pooled, size) for size in (2, 4, 8)]
CALLS += [(lloyd_centers, clustered, size) for size in (20, 40)]
CALLS += [(principal, directed, size) for size in (40, 1000)]
CALLS += [(seed_module, seeded, size) for size in (1, 20)]
every_call = pytest.mark.parametrize(("module", "call", "size"), CALLS)


@every_call
def test_a_gpu_of_any_size_gives_the_same_bits(device, monkeypatch, module, call, size):
    """One program on each of the multiprocessors there are, of 14, as a slice of an A100 has, and of 1."""
    if device.type == "cpu":
        pytest.skip("the interpreter runs one program after another")
    run = call(size, device)
    expected = run()
    for programs in (1, min(14, grid_barrier.resident_programs(device))):
        monkeypatch.setattr(module, "resident_programs", lambda *_, programs=programs: programs)
        assert torch.equal(run(), expected)


@every_call
def test_a_graph_replays(device, module, call, size):
    """Programs that have arrived must be forgotten before each replay."""
    if device.type == "cpu":
        pytest.skip("graphs are CUDA's")
    run = call(size, device)
    expected = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for _ in range(3):
        captured.fill_(torch.nan)
        graph.replay()
        assert torch.equal(captured, expected)
