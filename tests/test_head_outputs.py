"""The decomposition of the outputs of two heads, and its gradient."""

import random

import pytest
import torch

from ecsfusion import logit_pid
from ecsfusion.pid.decomposition import decompose


def heads(seed: int, rows: int = 12, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    shape = (rows, classes)
    first, second = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    place = torch.nn.functional.one_hot(labels, classes)
    return first + 2 * place, second + place, labels


def test_heads_that_know_half_each_share_nothing() -> None:
    labels = torch.arange(64) % 4
    # The first head tells the first bit of the label, the second the other.
    first = 30.0 * torch.nn.functional.one_hot(labels // 2, 2).repeat_interleave(2, 1)
    second = 30.0 * torch.nn.functional.one_hot(labels % 2, 2).repeat(1, 2)
    pid = logit_pid(
        first.double(), second.double(), labels, 30.0 * torch.nn.functional.one_hot(labels, 4).double()
    )
    assert pid.mutual_information.tolist() == pytest.approx([1.0, 1.0], abs=1e-3)
    assert float(pid.redundancy) == pytest.approx(0.0, abs=2e-3)
    assert pid.unique.tolist() == pytest.approx([1.0, 1.0], abs=2e-3)
    assert float(pid.synergy) == pytest.approx(0.0, abs=2e-3)


def test_two_heads_that_answer_alike_share_all() -> None:
    first, _, labels = heads(0)
    pid = logit_pid(first, first.clone(), labels)
    assert float(pid.redundancy) == pytest.approx(float(pid.mutual_information[0]), abs=1e-3)


def test_the_values_are_those_of_the_table_of_these_posteriors() -> None:
    """Modalities with two posteriors each, as a table of 2 x 2 cells, are decomposed alike."""
    kinds = torch.tensor([[0.8, 0.2], [0.2, 0.8]], dtype=torch.float64)
    rows = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    logits = kinds.log()[rows]
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 1, 0])
    pid = logit_pid(logits, logits.clone(), labels)
    # The same posterior for both modalities: all is shared.
    table = torch.zeros(2, 2, 2, dtype=torch.float64)
    table[0, 0], table[1, 1] = kinds[0] / 2, kinds[1] / 2
    expected = decompose(table, tolerance=1e-6)
    assert float(pid.redundancy) == pytest.approx(float(expected.redundancy), abs=1e-3)


@pytest.mark.parametrize("size", [100.0, 700.0, 1e4, 1e6])
def test_a_head_that_prefers_a_class_everywhere_claims_no_more(size: float) -> None:
    first, second, labels = heads(0, rows=60)
    expected = logit_pid(first, second, labels)
    found = logit_pid(first + size * torch.tensor([1.0, 0.0, -0.5]), second, labels)
    torch.testing.assert_close(found.mutual_information, expected.mutual_information, rtol=0, atol=1e-5)
    assert float(found.redundancy) == pytest.approx(float(expected.redundancy), abs=2e-4)
    # One that says nothing else knows nothing.
    constant = (size * torch.tensor([1.0, 0.0, 0.0])).expand(60, 3)
    nothing = logit_pid(constant, second, labels)
    assert float(nothing.mutual_information[0]) == pytest.approx(0.0, abs=1e-9)
    assert float(nothing.redundancy) == pytest.approx(0.0, abs=1e-9)


def extreme_heads(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Heads that may be certain, prefer a class, tell one or two classes alone or nothing; and labels, some rare."""
    generator, chance = torch.Generator().manual_seed(seed), random.Random(seed)  # noqa: S311
    classes, rows = chance.choice([2, 3, 5, 10]), chance.choice([5, 20, 100])
    frequency = torch.rand(classes, generator=generator) ** 3 + 0.01
    labels = torch.multinomial(frequency, rows, replacement=True, generator=generator)
    logits = []
    for _ in range(2):
        knows, told = chance.choice([0, 1, 3, 10]), labels % chance.choice([1, 2, classes])
        z = knows * torch.nn.functional.one_hot(told, classes) + torch.randn(
            rows, classes, generator=generator
        )
        scale, preference = chance.choice([1, 30, 1e3, 1e6]), chance.choice([0, 1, 100, 1e5])
        z = scale * z + preference * torch.randn(classes, generator=generator)
        logits.append(z.requires_grad_())
    return logits[0], logits[1], labels


def test_heads_that_are_certain_share_no_more_than_each_says() -> None:
    for seed in [*range(20), 50, 141, 173, 280, 285, 300]:
        first, second, labels = extreme_heads(seed)
        pid = logit_pid(first, second, labels)
        redundancy, *unique, most = (
            float(part.detach()) for part in (pid.redundancy, *pid.unique, pid.mutual_information.min())
        )
        least = -float(pid.gap) - 1e-9
        assert least < redundancy < most - least, seed
        assert min(unique) > least, seed
        (pid.redundancy + pid.unique[0]).backward()
        assert bool(first.grad.isfinite().all()), seed
        assert bool(second.grad.isfinite().all()), seed


@pytest.mark.parametrize("atom", ["redundancy", "unique", "synergy"])
def test_the_gradient_is_that_of_finite_differences(atom: str) -> None:
    first, second, labels = heads(3)
    together = first + second
    inputs = [part.clone().requires_grad_() for part in (first, second, together)]

    def value(*logits: torch.Tensor) -> torch.Tensor:
        a, b, both = logits
        pid = logit_pid(a, b, labels, both, tolerance=1e-9, max_iterations=20_000)
        return getattr(pid, atom).sum() if atom != "unique" else pid.unique[0]

    value(*inputs).backward()
    generator = torch.Generator().manual_seed(1)
    for i, part in enumerate(inputs):
        direction = torch.randn(part.shape, generator=generator, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            moved = [p.detach() for p in inputs]
            moved[i] = moved[i] + sign * 1e-4 * direction
            ends.append(float(value(*moved)))
        slope = (ends[0] - ends[1]) / 2e-4
        # Redundancy and uniqueness do not depend on the head of both.
        gradient = torch.zeros_like(part) if part.grad is None else part.grad
        assert float((gradient * direction).sum()) == pytest.approx(slope, abs=1e-6)


def test_a_step_against_redundancy_lowers_it() -> None:
    first, second, labels = heads(5, rows=30)
    second.requires_grad_()
    before = logit_pid(first, second, labels).redundancy
    before.backward()
    after = logit_pid(first, second.detach() - 0.5 * second.grad / second.grad.norm(), labels).redundancy
    assert float(after) < float(before.detach()) - 1e-3


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (
            {"logits1": torch.zeros(3, 2, dtype=torch.long)},
            TypeError,
            "logits1 must be a floating point tensor",
        ),
        ({"logits2": torch.zeros(4, 2)}, ValueError, "logits2 must have the shape"),
        ({"logits2": torch.full((3, 2), torch.nan)}, ValueError, "logits2 must be finite"),
        ({"labels": torch.tensor([0, 1, 2])}, ValueError, "labels must be below num_classes=2"),
        ({"joint_logits": torch.zeros(3, 5)}, ValueError, "joint_logits must have the shape"),
        ({"tolerance": 0.0}, ValueError, "tolerance"),
    ],
)
def test_what_cannot_be_used_is_named(change: dict, error: type, sentence: str) -> None:
    given = {"logits1": torch.zeros(3, 2), "logits2": torch.zeros(3, 2), "labels": torch.tensor([0, 1, 0])}
    with pytest.raises(error, match=sentence):
        logit_pid(**{**given, **change})
