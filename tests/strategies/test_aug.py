"""AUG: who gets a classifier, what it learns, and the fused head that holds it, on numbers worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from strategy_runs import CLASSES, VIEWS, Views, views
from torch.nn import functional as F  # noqa: N812

from ecsfusion.model.fused_heads import BoostedHead
from ecsfusion.strategies.aug import AUG

TWO = VIEWS[:2]


def boosted(**options):
    return views(fusion="boosted", fusion_options={"width": 4, **options}, stage="joint")


def test_the_last_gets_a_classifier_unless_it_is_close():
    strategy = AUG(VIEWS, tolerance=0.1)
    assert strategy.behind({"left": 0.5, "right": 0.4, "noise": 0.45}) == "right"
    # 0.5 is 1.087 times 0.46.
    assert strategy.behind({"left": 0.5, "right": 0.46}) is None
    assert strategy.behind({"left": 0.5}) is None


def test_checks_are_at_the_first_evaluation_and_evenly_over_the_budget():
    strategy, model = AUG(TWO, checks=2), boosted()
    asked = []
    for step in (2, 4, 5, 8, 10):
        strategy.state["scores"] = {"left": [3.0, 4.0], "right": [1.0, 4.0]}
        strategy.after_evaluation(
            SimpleNamespace(state=SimpleNamespace(global_step=step, max_steps=10)), None
        )
        asked.append(strategy.state["pending"])
        assert strategy.state["scores"] == {"left": [0.0, 0.0], "right": [0.0, 0.0]}
        before = model.fusion.counts.tolist()
        batch = {"labels": torch.zeros(2)}
        assert strategy.prepare_inputs(model, batch) is batch
        assert model.fusion.counts.tolist() == [1, before[1] + (asked[-1] is not None)]
    assert asked == ["right", None, "right", None, "right"]
    assert model.fusion.counts.tolist() == [1, 4]


def test_a_new_classifier_learns_what_those_before_leave_open():
    strategy, model = AUG(TWO, residual=0.5), boosted()
    labels = torch.tensor([0])
    first, second, third = (torch.tensor([[math.log(value), 0.0, 0.0]]) for value in (1.0, 2.0, 3.0))
    # Of classes with the odds v : 1 : 1 the first has v / (v + 2).
    assert strategy.boosting_loss(model, [second], labels).item() == pytest.approx(-math.log(2 / 4))
    # All: 6 : 1 : 1. Those before: 2 : 1 : 1, q = 1/2. The newest: 3 : 1 : 1, of weight 1 - 0.5 / 2.
    expected = -math.log(6 / 8) - math.log(2 / 4) - 0.75 * math.log(3 / 5)
    found = strategy.boosting_loss(model, [first, second, third], labels)
    assert found.item() == pytest.approx(expected)


def test_the_loss_is_a_sum_over_modalities_in_the_rows_that_have_them():
    model, strategy = boosted(), AUG(TWO)
    model.fusion.add_classifier("left")
    batch, mask = Views(8, 0).batch(), torch.arange(8) > 1
    outputs = model(**batch, present={"left": mask})
    h, y = outputs.embeddings, batch["labels"]
    output, layers = model.fusion.output, model.fusion.classifiers
    one, two = (output(layers["left"][number](h["left"][mask]).relu()) for number in (0, 1))
    right = output(layers["right"][0](h["right"]).relu())
    q = one.softmax(dim=1)[torch.arange(6), y[mask]]
    newest = ((1 - 0.5 * q) * F.cross_entropy(two, y[mask], reduction="none")).mean()
    left = F.cross_entropy(one + two, y[mask]) + F.cross_entropy(one, y[mask]) + newest
    loss = strategy.loss(model, outputs, y)
    torch.testing.assert_close(loss, left * 6 / 8 + F.cross_entropy(right, y))
    both = torch.where(
        mask[:, None], torch.zeros(8, CLASSES).index_add(0, mask.nonzero()[:, 0], one + two), 0.0
    )
    torch.testing.assert_close(outputs.logits, (both + right) / (1.0 + mask)[:, None])
    strategy.adjust_gradients(model)
    scores = strategy.state["scores"]
    p = (one + two).softmax(dim=1)[torch.arange(6), y[mask]].sum().item()
    assert scores["left"] == [pytest.approx(p), 6.0]
    assert scores["right"][1] == 8.0


def test_what_those_before_get_right_has_no_gradient():
    strategy, model = AUG(TWO), boosted()
    before = torch.zeros(1, 3, requires_grad=True)
    newest = torch.tensor([[1.0, 0.0, 0.0]])
    labels = torch.tensor([0])
    strategy.boosting_loss(model, [before, newest], labels).backward()
    again = torch.zeros(1, 3, requires_grad=True)
    (F.cross_entropy(again + newest, labels) + F.cross_entropy(again, labels)).backward()
    torch.testing.assert_close(before.grad, again.grad)


def test_a_boosted_head_keeps_how_many_it_uses(tmp_path):
    model = boosted(num_classifiers=2)
    assert model.fusion.add_classifier("right")
    assert not model.fusion.add_classifier("right")
    assert model.fusion.counts.tolist() == [1, 2]
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, **model.own_modules())
    assert again.fusion.counts.tolist() == [1, 2]
    with pytest.raises(ValueError, match="num_classifiers is 0; give at least one"):
        BoostedHead({"left": 2}, 3, num_classifiers=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual": 1.5}, "residual is 1.5; it must be in"),
        ({"checks": 0}, "checks is 0; give at least 1"),
        ({"tolerance": -0.1}, "tolerance is -0.1; it must not be negative"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        AUG(TWO, **options)
