"""What the host may read decides what is computed; in a graph, what is worth nothing is computed and counts nothing."""

from types import SimpleNamespace

import pytest
import torch
from known_answers import values, widths

from ecsfusion import fast_pid
from ecsfusion.pid import mixtures, posteriors, shape
from ecsfusion.pid.reading import may_read


@pytest.mark.parametrize("captures", [False, True])
def test_nothing_is_read_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch, captures: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures)
    assert may_read(SimpleNamespace(device=torch.device("cuda"))) is not captures
    assert may_read(torch.zeros(1, device="cpu"))
    assert not may_read(torch.zeros(1, device="meta"))


@pytest.mark.parametrize("kind", ["gaussian", "parity across", "noise"])
def test_the_answer_is_the_same_where_nothing_is_read(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    generator = torch.Generator().manual_seed(9)
    labels = torch.randint(2, (1200,), generator=generator)
    bits = torch.randint(2, (1200, 2), generator=generator)
    if kind == "parity across":
        labels = bits.sum(1) % 2
    strength = {"gaussian": 1.0, "parity across": 3.0, "noise": 0.0}[kind]
    along = bits if kind == "parity across" else labels[:, None].expand(-1, 2)
    sides = [
        strength * along[:, [m]] * torch.eye(6)[0] + torch.randn(1200, 6, generator=generator) for m in (0, 1)
    ]
    read = fast_pid(sides, labels)
    for module in (mixtures, posteriors, shape):
        monkeypatch.setattr(module, "may_read", lambda tensor: False)
    whole = fast_pid(sides, labels)
    assert ((values(whole) - values(read)).abs()[3:] <= 0.5 * widths(read)).all()
