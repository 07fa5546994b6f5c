"""Where the kernels cannot run, the references answer; a GPU that could be faster is told so, once."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from ecsfusion_kernels import language

CPU = SimpleNamespace(is_cuda=False, device=torch.device("cpu"))
GPU = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))


@pytest.fixture(autouse=True)
def _a_gpu(monkeypatch):
    """A machine whose GPU has compute capability 9.0, as far as the choice can see."""
    monkeypatch.setattr(language, "INTERPRETED", False)
    monkeypatch.setattr(language, "triton", language.triton or object())
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    language._capable.cache_clear()
    yield
    language._capable.cache_clear()


def test_a_capable_gpu_runs_kernels_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert language.runs_kernels(GPU)
        assert not language.runs_kernels(CPU)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda patch: patch.setattr(language, "triton", None), "Triton is not installed"),
        (lambda patch: patch.setattr(torch.version, "hip", "6.4"), "not one of NVIDIA's"),
        (
            lambda patch: patch.setattr(torch.cuda, "get_device_capability", lambda d: (7, 5)),
            "capability 7.5",
        ),
    ],
)
def test_a_gpu_without_kernels_is_told_once(monkeypatch, change, told):
    change(monkeypatch)
    with pytest.warns(UserWarning, match=told) as caught:
        answers = [language.runs_kernels(GPU) for _ in range(3)]
    assert answers == [False] * 3
    assert len(caught) == 1


def test_the_processor_is_never_warned(monkeypatch):
    monkeypatch.setattr(language, "triton", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not language.runs_kernels(CPU)
