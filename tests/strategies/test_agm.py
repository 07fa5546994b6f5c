"""AGM: Shapley values, coefficients and gradients on numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from strategy_runs import VIEWS, Views, trained, views, weights
from torch.nn import functional as F  # noqa: N812

from ecsfusion.modeling import FusionOutput
from ecsfusion.strategies.agm import AGM, mono_modal_responses

pytestmark = pytest.mark.usefixtures("quick_probes")

GAIN = {"left": 0.25, "right": 2.0}


class Table:
    """A model whose fused answer to a coalition is looked up."""

    def __init__(self, answers: dict[str, float]) -> None:
        self.answers, self.fusion = answers, torch.nn.Identity()

    def fuse(self, embeddings, unimodal_logits, present):
        return torch.full(
            (len(next(iter(embeddings.values()))), 1), self.answers["".join(sorted(embeddings))]
        )


def responses(answers: dict[str, float]) -> dict[str, float]:
    names = max(answers, key=len)
    one = {name: torch.zeros(1, 1) for name in names}
    present = {name: torch.ones(1, dtype=torch.bool) for name in names}
    outputs = FusionOutput(
        logits=torch.tensor([[answers[names]]]), unimodal_logits=one, embeddings=one, present=present
    )
    return {name: float(value) for name, value in mono_modal_responses(Table(answers), outputs).items()}


def test_responses_are_shapley_values():
    # (f(ab) - f(b) + f(a)) / 2 = (10 - 3 + 2) / 2, and (10 - 2 + 3) / 2.
    assert responses({"a": 2.0, "b": 3.0, "ab": 10.0}) == {"a": 4.5, "b": 5.5}
    three = {"a": 1.0, "b": 2.0, "c": 4.0, "ab": 6.0, "ac": 7.0, "bc": 8.0, "abc": 15.0}
    # Alone 1/3, beside one other 1/6 each, beside both 1/3.
    assert responses(three) == pytest.approx(
        {
            "a": 1 / 3 + (6 - 2) / 6 + (7 - 4) / 6 + (15 - 8) / 3,
            "b": 2 / 3 + (6 - 1) / 6 + (8 - 4) / 6 + (15 - 7) / 3,
            "c": 4 / 3 + (7 - 1) / 6 + (8 - 2) / 6 + (15 - 6) / 3,
        }
    )


@pytest.mark.parametrize("fusion", ["concatenation", "gated-sum", "cross-attention", "late-average"])
def test_responses_sum_to_the_answer_and_a_missing_modality_has_none(fusion):
    model = views(VIEWS, fusion=fusion)
    present = {"left": torch.arange(12) % 3 > 0, "noise": torch.arange(12) % 2 > 0}
    present["right"] = ~(present["left"] & present["noise"])
    outputs = model(**Views(12, 0, VIEWS).batch(), present=present)
    parts = mono_modal_responses(model, outputs)
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(dim=0), outputs.logits)
    for name, mask in present.items():
        assert parts[name][~mask].abs().max() < 1e-6
        assert parts[name][mask].abs().min() > 1e-6
    sum(value.square().sum() for value in parts.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert model.fusion.training


def test_coefficients_of_two_batches():
    strategy = AGM(("left", "right"))
    # s = (1, 3), mean 2: r = (exp(2), exp(-2)) = (7.3891, 0.1353). No batch before: tau = 1.
    # kappa = (exp(1 - 7.3891), exp(1 - 0.1353)).
    first = strategy.coefficients({"left": 1.0, "right": 3.0})
    assert first == pytest.approx({"left": 0.0016798, "right": 2.3742109}, rel=1e-4)
    # s = (2, 2): r = 1; tau of the means (1, 3): kappa = (exp(7.3891 - 1), exp(0.1353 - 1)).
    second = strategy.coefficients({"left": 2.0, "right": 2.0})
    assert second == pytest.approx({"left": 595.294, "right": 0.4211925}, rel=1e-4)
    assert strategy.state["means"] == {"left": 1.5, "right": 2.5}
    assert strategy.state["batches"] == {"left": 2, "right": 2}


def test_coefficients_of_strength_cap_and_three_modalities():
    strategy = AGM(("left", "right"), alpha=0.5, cap=2.0)
    strategy.state["means"] = {"left": 1.0, "right": 3.0}
    # min(6.3891, 2) * 0.5 = 1, and -0.8647 * 0.5 = -0.4323.
    found = strategy.coefficients({"left": 2.0, "right": 2.0})
    assert found == pytest.approx({"left": 2.7182818, "right": 0.6489934}, rel=1e-5)
    # M / (M - 1) = 1.5: r = exp(1.5), 1, exp(-1.5) = 4.4817, 1, 0.2231.
    found = AGM(VIEWS).coefficients({"left": 1.0, "right": 2.0, "noise": 3.0})
    assert found == pytest.approx({"left": 0.0307556, "right": 1.0, "noise": 2.1745886}, rel=1e-4)


def test_a_modality_that_no_row_has_is_not_compared():
    strategy = AGM(VIEWS)
    found = strategy.coefficients({"left": 1.0, "right": 3.0})
    # As of two modalities.
    assert found == pytest.approx({"left": 0.0016798, "right": 2.3742109}, rel=1e-4)
    assert strategy.coefficients({"right": 9.0}) == {"right": 1.0}
    assert strategy.state["means"] == {"left": 1.0, "right": 6.0, "noise": 0.0}
    assert strategy.state["batches"] == {"left": 1, "right": 2, "noise": 0}


def gradients(coefficients: dict[str, float] | None) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch: of plain joint training, or of AGM with these coefficients."""
    model = views(auxiliary_weight=0.0, stage="joint")
    batch = Views(24, 0).batch()
    outputs = model(**batch)
    loss = outputs.loss
    if coefficients is not None:
        strategy = AGM(model.modalities)
        strategy.coefficients = lambda scores: coefficients
        loss = strategy.loss(model, outputs, batch["labels"])
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}


def test_the_gradient_through_each_response_is_scaled():
    plain_loss, plain = gradients(None)
    loss, found = gradients(GAIN)
    assert loss == plain_loss
    # The head is linear, so phi_m = W_m h_m + b / 2: each encoder and its part of W has its kappa, b has their mean.
    for name, value in plain.items():
        modality = name.split(".")[1]
        if name.startswith("encoders."):
            torch.testing.assert_close(found[name], GAIN[modality] * value)
    columns = torch.tensor([0.25] * 6 + [2.0] * 5)
    torch.testing.assert_close(found["fusion.linear.weight"], columns * plain["fusion.linear.weight"])
    torch.testing.assert_close(found["fusion.linear.bias"], 1.125 * plain["fusion.linear.bias"])


def test_scores_are_cross_entropies_of_the_responses_over_the_rows_that_have_them():
    model = views(stage="joint")
    batch = Views(12, 0).batch()
    present = {"left": torch.arange(12) % 3 > 0}
    outputs = model(**batch, present=present)
    seen = []
    strategy = AGM(model.modalities)
    strategy.coefficients = lambda scores: seen.append(scores) or dict.fromkeys(scores, 1.0)
    strategy.loss(model, outputs, batch["labels"])
    left, right = model.fusion.linear.weight.split([6, 5], dim=1)
    half = model.fusion.linear.bias / 2
    h, labels, both = outputs.embeddings, batch["labels"], present["left"]
    phi = h["left"][both] @ left.T + half
    assert seen[0]["left"] == pytest.approx(F.cross_entropy(phi, labels[both]).item())
    # In rows without the left view, the right one has the whole answer.
    phi = h["right"] @ right.T + torch.where(both[:, None], half, 2 * half)
    assert seen[0]["right"] == pytest.approx(F.cross_entropy(phi, labels).item())


@pytest.mark.parametrize("gaps", [False, True])
def test_with_coefficients_of_one_it_is_joint_training(tmp_path, monkeypatch, gaps):
    options = {"gaps": gaps, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 8}
    agm = weights(trained(tmp_path / "agm", strategy="agm", **options))
    joint = weights(trained(tmp_path / "joint", strategy="joint", **options))
    assert any(not torch.equal(agm[name], value) for name, value in joint.items())
    monkeypatch.setattr(AGM, "coefficients", lambda self, scores: dict.fromkeys(scores, 1.0))
    same = weights(trained(tmp_path / "same", strategy="agm", **options))
    assert all(torch.equal(same[name], value) for name, value in joint.items())


def test_bad_options():
    with pytest.raises(ValueError, match="alpha is 0"):
        AGM(VIEWS, alpha=0.0)
