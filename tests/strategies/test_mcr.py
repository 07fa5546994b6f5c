"""MCR: divergence, contrastive loss and the gradients of the game, on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from strategy_runs import VIEWS, Views, views

from ecsfusion.strategies.mcr import MCR, contrastive_loss, divergence, stacked_embeddings

TWO = VIEWS[:2]


def test_the_divergence_of_two_answers():
    one, other = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
    # m = (0.7, 0.3): KL(p | m) = 0.5 ln (5/7) + 0.5 ln (5/3), KL(q | m) = 0.9 ln (9/7) + 0.1 ln (1/3).
    first = (
        0.5 * math.log(5 / 7) + 0.5 * math.log(5 / 3) + 0.9 * math.log(9 / 7) + 0.1 * math.log(1 / 3)
    ) / 2
    # Of the second row it is zero.
    assert divergence(one, other).item() == pytest.approx(first / 2, abs=1e-6)


def test_rows_of_one_class_are_drawn_together():
    # Cosines: 1 with 2: 0.6; 1 with 3: 0; 2 with 3: 0.8. The rows 1 and 2 are of one class; lengths do not matter.
    h = torch.tensor([[2.0, 0.0], [0.6, 0.8], [0.0, 3.0]], requires_grad=True)
    labels, t = torch.tensor([0, 0, 1]), 0.5
    share = [math.exp(0.6 / t) / (math.exp(0.6 / t) + math.exp(against / t)) for against in (0.0, 0.8)]
    loss = contrastive_loss(h, labels, t)
    assert loss.item() == pytest.approx(-(math.log(share[0]) + math.log(share[1])) / 2, rel=1e-5)
    for nothing in (torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0])):
        zero = contrastive_loss(h, nothing, t)
        zero.backward()
        assert zero.item() == 0.0
    assert h.grad.abs().max() == 0.0


def test_embeddings_are_compared_across_modalities_where_they_are_there():
    model = views()
    batch, mask = Views(6, 0).batch(), torch.arange(6) > 1
    outputs = model(**batch, present={"left": mask})
    h, labels = stacked_embeddings(outputs, batch["labels"])
    # The right view is one number shorter.
    right = torch.cat([outputs.embeddings["right"], torch.zeros(6, 1)], dim=1)
    torch.testing.assert_close(h, torch.cat([outputs.embeddings["left"][mask], right]))
    assert torch.equal(labels, torch.cat([batch["labels"][mask], batch["labels"]]))


def certain():
    """A model whose fused answers differ from row to row."""
    model = views(stage="joint")
    with torch.no_grad():
        model.fusion.linear.weight.mul_(50.0)
    return model


def gradients_of_the_game(game: str, orders: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    """The value of the game, and its gradients in the embeddings and in the fused head."""
    model = certain()
    outputs = model(**Views(4, 0).batch())
    h = outputs.embeddings
    for value in h.values():
        value.retain_grad()
    value = MCR(TWO, game=game).play(model, outputs, torch.arange(4), orders)
    value.backward()
    found = {name: h[name].grad for name in TWO} | {"fusion": model.fusion.linear.weight.grad}
    return value.item(), found


def by_formula(game: str, order: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradients in the embeddings, from the two answers with one modality permuted."""
    model = certain()
    with torch.no_grad():
        h = model(**Views(4, 0).batch()).embeddings
    left, right = (h[name].clone().requires_grad_() for name in TWO)
    w, v = model.fusion.linear.weight.split([6, 5], dim=1)
    bias = model.fusion.linear.bias

    def js(p, q):
        middle = (p + q) / 2
        return 0.5 * ((p * (p / middle).log()).sum(dim=1) + (q * (q / middle).log()).sum(dim=1)).mean()

    plain = (left @ w.T + right @ v.T + bias).softmax(dim=1)
    without_left = js(plain, (left[order] @ w.T + right @ v.T + bias).softmax(dim=1))
    without_right = js(plain, (left @ w.T + right[order] @ v.T + bias).softmax(dim=1))
    if game == "collaborative":
        both = torch.autograd.grad(-without_left - without_right, (left, right))
        return dict(zip(TWO, both, strict=True))
    # In a greedy game the gradients through the plain answer cancel.
    fixed = plain.detach()
    lost = js(fixed, (left[order] @ w.T + right @ v.T + bias).softmax(dim=1))
    other = js(fixed, (left @ w.T + right[order] @ v.T + bias).softmax(dim=1))
    of_lost, of_other = torch.autograd.grad(lost, (left, right)), torch.autograd.grad(other, (left, right))
    return {"left": of_other[0] - of_lost[0], "right": of_lost[1] - of_other[1]}


@pytest.mark.parametrize("game", ["greedy", "collaborative"])
def test_each_encoder_plays_for_itself_or_for_all(game):
    order = torch.tensor([2, 0, 3, 1])
    value, found = gradients_of_the_game(game, order[None])
    for name, expected in by_formula(game, order).items():
        assert expected.abs().max() > 1e-2
        torch.testing.assert_close(found[name], expected)
    if game == "greedy":
        # What one wins the other loses, and the fused head takes no side.
        assert value == pytest.approx(0.0, abs=1e-7)
        assert found["fusion"].abs().max() < 1e-7
    else:
        assert value < 0


def test_an_independent_game_is_the_mean_over_the_permutations():
    orders = torch.tensor([[2, 0, 3, 1], [1, 0, 3, 2]])
    both = gradients_of_the_game("independent", orders)
    each = [gradients_of_the_game("independent", order[None]) for order in orders]
    assert both[0] == pytest.approx((each[0][0] + each[1][0]) / 2)
    for name in TWO:
        torch.testing.assert_close(both[1][name], (each[0][1][name] + each[1][1][name]) / 2)


def test_the_loss_is_the_sum_of_its_parts():
    model = views(stage="joint", auxiliary_weight=0.01)
    batch, mask = Views(8, 0).batch(), torch.arange(8) > 1
    outputs = model(**batch, present={"left": mask})
    labels = batch["labels"]

    def loss(**options):
        torch.manual_seed(5)
        return MCR(TWO, game="independent", **options).loss(model, outputs, labels)

    torch.testing.assert_close(loss(influence=0.0, contrast=0.0), outputs.loss)
    contrast = contrastive_loss(*stacked_embeddings(outputs, labels), 0.5)
    torch.testing.assert_close(loss(influence=0.0, contrast=2.0) - outputs.loss, 2.0 * contrast)
    torch.manual_seed(5)
    orders = torch.stack([torch.randperm(6) for _ in range(8)])
    rows = mask.nonzero()[:, 0]
    game = MCR(TWO, game="independent").play(model, outputs, rows, orders)
    # Six of eight rows have both views.
    torch.testing.assert_close(loss(influence=0.1, contrast=0.0) - outputs.loss, 0.1 * game * 6 / 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.0}, "share is 1.0; it is a part of the budget"),
        ({"influence": -1.0}, "influence is -1.0; a weight must not be negative"),
        ({"contrast": -1.0}, "contrast is -1.0; a weight must not be negative"),
        ({"game": "fair"}, "game is 'fair'; it must be one of greedy, independent, collaborative"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        ({"permutations": 0}, "permutations is 0; give at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MCR(TWO, **options)
