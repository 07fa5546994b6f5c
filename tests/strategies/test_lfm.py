"""LFM: the weight of the labels, the disagreement of two modalities, and the loss, on numbers worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from strategy_runs import VIEWS, Views, views
from torch.nn import functional as F  # noqa: N812

from ecsfusion.strategies.lfm import LFM, disagreement


def test_labels_weigh_more_and_more():
    strategy = LFM(VIEWS)
    # The authors' polynomial at the epochs 0, 100 and 200 of 200.
    fitted = [
        2.04623704e-01,
        3.35472727e-03,
        1.22989557e-04,
        -2.92947416e-06,
        2.23835486e-08,
        -5.39717505e-11,
    ]
    for epoch in (0, 100, 200):
        expected = sum(factor * epoch**power for power, factor in enumerate(fitted))
        assert strategy.weight(epoch / 200) == pytest.approx(expected, abs=1e-6)
    assert LFM(VIEWS, label_weight=[-1.0, 4.0]).weight(0.1) == 0.0
    assert LFM(VIEWS, label_weight=[-1.0, 4.0]).weight(0.4) == pytest.approx(0.6)
    assert LFM(VIEWS, label_weight=[-1.0, 4.0]).weight(0.9) == 1.0


def test_the_disagreement_of_two_distributions():
    one, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    # m = (0.7, 0.3): (0.7 ln 1.4 + 0.3 ln 0.6 + 0.7 ln (7/9) + 0.3 ln 3) / 2 = (0.082283 + 0.153664) / 2.
    assert disagreement(one, other).item() == pytest.approx(0.1179735, abs=1e-6)
    assert disagreement(other, other).item() == pytest.approx(0.0, abs=1e-6)


def test_the_loss_of_three_views_in_rows_that_have_them():
    model = views(VIEWS, fusion="late-average", stage="joint")
    batch, mask = Views(8, 0, VIEWS).batch(), torch.arange(8) > 1
    outputs = model(**batch, present={"left": mask})
    strategy = LFM(VIEWS, label_weight=[0.3])
    strategy.begin_stage(SimpleNamespace(state=SimpleNamespace(global_step=3, max_steps=8)))
    z, labels = outputs.unimodal_logits, batch["labels"]
    p = {name: value.softmax(dim=1) for name, value in z.items()}

    def gap(one: str, other: str, rows: torch.Tensor) -> torch.Tensor:
        middle = (p[one][rows] + p[other][rows]) / 2
        parts = [F.kl_div(p[name][rows].log(), middle, reduction="sum") for name in (one, other)]
        return sum(parts) / 2 / 8

    every = torch.ones(8, dtype=torch.bool)
    mean_gap = (gap("left", "right", mask) + gap("left", "noise", mask) + gap("right", "noise", every)) / 3
    with_left = (z["left"] + z["right"] + z["noise"]) / 3
    fused = torch.where(mask[:, None], with_left, (z["right"] + z["noise"]) / 2)
    expected = 2 * (0.3 * F.cross_entropy(fused, labels) + 0.7 * mean_gap)
    loss = strategy.loss(model, outputs, labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("weights", [[], [math.nan]])
def test_bad_options(weights):
    with pytest.raises(ValueError, match=r"label_weight is .*give the coefficients"):
        LFM(VIEWS, label_weight=weights)
