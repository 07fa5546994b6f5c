"""Estimates on a GPU are those of a CPU: the same is decided on the way, and only the rounding differs."""

import pytest
import torch

from ecsfusion import fast_pid

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def modalities(kind: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(map(ord, kind)))
    rows, columns = {"wide": (3000, 400), "few rows": (200, 64), "wider than long": (150, 512)}.get(
        kind, (2400, 12)
    )
    classes = 2 if kind == "parity across" else 5
    labels = torch.randint(classes, (rows,), generator=generator)
    noise = [torch.randn(rows, columns, generator=generator) for _ in range(2)]
    if kind == "noise":
        return noise, labels
    if kind == "parity across":
        bits = torch.randint(2, (rows, 2), generator=generator)
        return [3.0 * bits[:, [m]] * torch.eye(columns)[0] + noise[m] for m in (0, 1)], bits.sum(1) % 2
    if kind == "covariances":
        return [x * (1 + labels[:, None] * (torch.arange(columns) % 3)) for x in noise], labels
    means = torch.randn(2, classes, 4, generator=generator)
    spread = torch.randn(4, columns, generator=generator)
    return [means[m][labels] @ spread + 3 * noise[m] for m in (0, 1)], labels


@pytest.mark.parametrize(
    "kind", ["gaussian", "wide", "few rows", "wider than long", "parity across", "covariances", "noise"]
)
def test_the_default_estimate_is_that_of_a_cpu(kind):
    sides, labels = modalities(kind)
    expected = fast_pid(sides, labels)
    found = fast_pid([x.cuda() for x in sides], labels.cuda())
    assert found.redundancy.is_cuda
    for name in ("mutual_information", "redundancy", "unique", "synergy"):
        interval = getattr(expected, f"{name}_interval", expected.unique_interval)
        width = interval.diff(dim=-1).amax()
        # Rounding may turn a choice between readouts that tell as much.
        ours, theirs = getattr(found, name).cpu(), getattr(expected, name)
        assert ((ours - theirs).abs() <= 0.25 * width + 5e-3).all(), (name, ours, theirs, width)
