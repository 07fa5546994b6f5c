"""What is called as a CUDA graph has the values of the call, whatever came between; without a GPU it is the call."""

import threading

import pytest
import torch

from ecsfusion import fast_pid
from ecsfusion.pid import replayed as module
from ecsfusion.pid.head_posteriors import head_pids
from ecsfusion.pid.replayed import replayed

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def heads_of(rows, classes, seed, device, modalities=2):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    told = torch.nn.functional.one_hot(labels, classes)
    every = [2 * told + torch.randn(rows, classes, generator=generator) for _ in range(modalities)]
    named = {f"m{i}": logits.to(device) for i, logits in enumerate(every)}
    return named, 1.3 * sum(named.values()), labels.to(device)


def values(pids):
    return {
        name: torch.stack([pid.redundancy, *pid.unique, pid.synergy, *pid.redundancy_interval]).cpu()
        for name, pid in pids.items()
    }


def test_without_a_gpu_it_is_the_call():
    calls = []

    def function(one, other, power):
        calls.append(power)
        return (one**power + other,)

    for _ in range(3):
        (found,) = replayed(function, [torch.tensor(3.0), torch.tensor(1.0)], (2,))
        assert found == 10
    assert calls == [2, 2, 2]
    assert not module._graphs


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("modalities", [2, 3])
def test_a_probe_that_comes_again_has_the_values_of_its_rows(monkeypatch, modalities):
    """Other rows of the same shape, and other shapes between."""
    names = [f"m{i}" for i in range(modalities)]
    pairs = [("m0", "m1")] if modalities == 2 else [(name, "rest") for name in names]
    for seed in range(4):
        for rows, classes in ((900, 5), (1300, 4)):
            given = heads_of(rows, classes, seed, "cuda", modalities)
            found = values(head_pids(*given, pairs))
            with monkeypatch.context() as patch:
                patch.setattr(module, "_can_be_captured", lambda *_: False)
                called = values(head_pids(*given, pairs))
            for name, expected in called.items():
                torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)
    assert any(graph is not None for graph in module._graphs.values())


@pytest.mark.gpu
@needs_gpu
def test_results_stay_when_the_next_call_comes():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (600,), generator=generator).cuda()
    kept, copies = [], []
    for seed in range(4):
        rows = torch.randn(2, 600, 9, generator=torch.Generator().manual_seed(seed)).cuda()
        rows[:, :, 0] += labels * (seed + 1)
        pid = fast_pid(list(rows), labels, method="clusters", permutations=4, bootstrap=4)
        kept.append(pid.redundancy)
        copies.append(pid.redundancy.clone())
    assert all(torch.equal(one, other) for one, other in zip(kept, copies, strict=True))
    assert len({float(one) for one in kept}) == 4


@pytest.mark.gpu
@needs_gpu
def test_modes_threads_and_many_shapes():
    """Memory that was made without gradients, graphs of two threads, and no more graphs than are kept."""
    given = heads_of(500, 3, 0, "cuda")
    expected = values(head_pids(*given, [("m0", "m1")]))["m0, m1"]
    found = []

    def probe():
        for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode):
            with mode():
                found.append(values(head_pids(*given, [("m0", "m1")]))["m0, m1"])

    threads = [threading.Thread(target=probe) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.synchronize()
        probe()
    assert len(found) == 12
    for each in found:
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-6)
    for rows in range(300, 310):
        for _ in range(2):
            head_pids(*heads_of(rows, 3, 0, "cuda"), [("m0", "m1")])
    assert len(module._graphs) <= module.MAX_GRAPHS
