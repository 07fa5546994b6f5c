"""MMPareto: gradients combined as by hand."""

from __future__ import annotations

import pytest
import torch
from strategy_runs import Views, trained, views
from torch.nn import functional as F  # noqa: N812

from ecsfusion.strategies.mmpareto import MMPareto

pytestmark = pytest.mark.usefixtures("quick_probes")


@pytest.mark.parametrize(
    ("joint", "unimodal", "expected"),
    [
        # They agree: 1.5 times their sum.
        ((3.0, 0.0), (1.0, 1.0), (6.0, 1.5)),
        ((1.0, 2.0), (1.0, 2.0), (3.0, 6.0)),
        ((0.0, 0.0), (1.0, 2.0), (1.5, 3.0)),
        # They do not: product -4, squares 16 and 2, so a0 = (2 + 4) / (16 + 2 + 8) = 3/13. The point is
        # 3/13 (4, 0) + 10/13 (-1, 1) = (2, 10) / 13, at right angles to the difference (5, -1). Its direction is
        # (1, 5) / sqrt(26), and the length that of the sum (3, 1), sqrt(10): 1.5 sqrt(10 / 26) (1, 5).
        ((4.0, 0.0), (-1.0, 1.0), (0.9302605, 4.6513026)),
        # Equally long: a0 = 1/2, and nothing is rescaled.
        ((1.0, 2.0), (1.0, -2.0), (3.0, 0.0)),
    ],
)
def test_the_combination(joint, unimodal, expected):
    found = MMPareto(("left", "right")).combine(torch.tensor(joint), torch.tensor(unimodal))
    torch.testing.assert_close(found, torch.tensor(expected))


def test_gamma_and_opposite_gradients():
    strategy = MMPareto(("left", "right"), gamma=2.0)
    torch.testing.assert_close(
        strategy.combine(torch.tensor([3.0]), torch.tensor([1.0])), torch.tensor([8.0])
    )
    opposite = strategy.combine(torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 0.0]))
    # The nearest point is zero, and has no direction.
    assert not opposite.any()
    with pytest.raises(ValueError, match="gamma is 0"):
        MMPareto(("left", "right"), gamma=0)


def by_hand(model, batches) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients of CE(z) and of the sum of the CE(z_m), means over these batches, by name of the parameter."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    joint = unimodal = 0.0
    for batch in batches:
        outputs, labels = model(**batch), batch["labels"]
        joint = joint + F.cross_entropy(outputs.logits, labels) / len(batches)
        for name, logits in outputs.unimodal_logits.items():
            rows = outputs.present[name]
            # A row that lacks the modality adds nothing.
            share = rows.float().mean()
            unimodal = unimodal + share * F.cross_entropy(logits[rows], labels[rows]) / len(batches)

    def of(loss):
        found = torch.autograd.grad(
            loss, parameters, allow_unused=True, materialize_grads=True, retain_graph=True
        )
        return dict(zip(names, found, strict=True))

    return of(joint), of(unimodal)


@pytest.mark.parametrize("fusion", ["concatenation", "gated-sum"])
def test_encoders_have_the_combination_and_heads_the_sum(fusion):
    model = views(fusion=fusion, stage="joint")
    model.start_fusion_from_heads()
    # Its own head and the fused one want about the contrary.
    right = model.heads["right"].weight.data
    right.copy_(0.02 * torch.randn(right.shape, generator=torch.Generator().manual_seed(0)) - right)
    rows = Views(16, 0)
    present = {"left": torch.arange(16) % 4 > 0}
    batches = [{**rows.batch(), "present": present}, Views(16, 1).batch()]
    joint, unimodal = by_hand(model, batches)
    strategy = MMPareto(model.modalities)
    for batch in batches:
        loss = strategy.loss(model, model(**batch), batch["labels"])
        (loss / len(batches)).backward()
    strategy.adjust_gradients(model)

    conflicts = []
    for modality in model.modalities:
        names = [name for name in joint if name.startswith(f"encoders.{modality}.")]
        g0, g1 = (torch.cat([values[name].flatten() for name in names]) for values in (joint, unimodal))
        # The nearest point, by trying.
        grid = torch.linspace(0, 1, 100_001)
        square = grid**2 * (g0 @ g0) + 2 * grid * (1 - grid) * (g0 @ g1) + (1 - grid) ** 2 * (g1 @ g1)
        conflicts.append(bool(g0 @ g1 < 0))
        a0 = float(grid[square.argmin()]) if conflicts[-1] else 0.5
        h = a0 * g0 + (1 - a0) * g1
        expected = 1.5 * h * ((g0 + g1).norm() / h.norm())
        found = torch.cat([model.get_parameter(name).grad.flatten() for name in names])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    for name, parameter in model.named_parameters():
        if not name.startswith("encoders."):
            torch.testing.assert_close(parameter.grad, joint[name] + unimodal[name])
    assert conflicts == [False, True]
    assert not strategy._unimodal
    assert strategy._batches == 0


def test_equal_gradients_are_added_and_scaled():
    # Only the left view is there, so the mean of the unimodal logits is its own: g0 = g1.
    model = views(fusion="late-average", stage="joint")
    batch = {"left": Views(16, 0).values["left"], "labels": Views(16, 0).labels}
    g0, g1 = by_hand(model, [batch])
    strategy = MMPareto(model.modalities)
    strategy.loss(model, model(**batch), batch["labels"]).backward()
    strategy.adjust_gradients(model)
    for name, parameter in model.named_parameters():
        if name.startswith("encoders.left"):
            torch.testing.assert_close(g0[name], g1[name])
            torch.testing.assert_close(parameter.grad, 1.5 * (g0[name] + g1[name]))
        elif name.startswith("encoders.right"):
            assert parameter.grad is None


def test_frozen_weights_and_a_whole_run(tmp_path):
    model = views()
    frozen = model.encoders["left"].first.weight.requires_grad_(False)
    before = frozen.clone()
    run = trained(tmp_path, model=model, strategy="mmpareto", gaps=True, gradient_accumulation_steps=2)
    assert torch.equal(frozen, before)
    assert run.evaluate()["eval_accuracy_left"] > 0.6
