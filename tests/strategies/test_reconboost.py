"""ReconBoost: whose turn it is, and both losses, on numbers worked out by hand."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from strategy_runs import CLASSES, VIEWS, Views, views
from torch.nn import functional as F  # noqa: N812

from ecsfusion.strategies.reconboost import ReconBoost

TWO = VIEWS[:2]


def at_step(step: int, max_steps: int = 8, **options) -> ReconBoost:
    strategy = ReconBoost(TWO, rounds=2, **options)
    state = SimpleNamespace(global_step=step, max_steps=max_steps)
    strategy.begin_stage(SimpleNamespace(state=state, accelerator=SimpleNamespace(autocast=nullcontext)))
    return strategy


def test_modalities_take_turns_and_all_train_between():
    strategy = ReconBoost(TWO, rounds=2)
    turns = ["left", None, "right", None] * 2
    assert [strategy.turn(step, 8) for step in range(8)] == turns
    assert [strategy.turn(step, 16) for step in range(16)] == [turn for turn in turns for _ in range(2)]
    # Half of the steps train one of two.
    assert strategy.modalities_per_step == 1.5
    assert ReconBoost(VIEWS).modalities_per_step == 2.0
    with pytest.raises(ValueError, match="rounds is 2, for which a run needs 8 steps, and this one has 7"):
        at_step(0, max_steps=7)


def test_a_row_that_the_others_get_right_weighs_less():
    model = views(fusion="late-average", stage="joint", norm=True)
    batch, mask = Views(8, 0).batch(), torch.arange(8) > 1
    with_right = torch.arange(8) != 5
    present = {"left": mask, "right": with_right}
    strategy = at_step(0, fit=4.0, reconcile=2.0)
    statistics = model.encoders["right"].norm.running_mean.clone()
    inputs = strategy.prepare_inputs(model, {**batch, "present": present})
    assert set(inputs) == {"left", "labels"}
    assert torch.equal(inputs["labels"], batch["labels"][mask])
    assert torch.equal(model.encoders["right"].norm.running_mean, statistics)
    outputs = model(**inputs)
    loss = strategy.loss(model, outputs, inputs["labels"])
    with torch.no_grad():
        other = model.eval()(right=batch["right"]).unimodal_logits["right"].softmax(dim=1)
    model.train()
    # Nobody else knows anything of a row that has no right view.
    q = other.where(with_right[:, None], 1 / CLASSES)[torch.arange(8), batch["labels"]][mask]
    errors = F.cross_entropy(outputs.unimodal_logits["left"], inputs["labels"], reduction="none")
    # Six of eight rows are trained on.
    torch.testing.assert_close(loss, ((4.0 - 2.0 * q) * errors).sum() / 8 / CLASSES)
    loss.backward()
    moved = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {"left"}


def test_then_the_sum_of_all_is_trained():
    model = views(fusion="late-average", stage="joint")
    batch, mask = Views(8, 0).batch(), torch.arange(8) > 1
    strategy = at_step(1)
    inputs = strategy.prepare_inputs(model, {**batch, "present": {"left": mask}})
    outputs = model(**inputs)
    z = outputs.unimodal_logits
    added = z["right"] + torch.where(mask[:, None], z["left"], 0.0)
    loss = strategy.loss(model, outputs, batch["labels"])
    torch.testing.assert_close(loss, F.cross_entropy(added, batch["labels"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": 0.0}, "fit is 0.0; it must be positive"),
        ({"reconcile": 6.0}, "reconcile is 6.0; it must be in"),
        ({"rounds": 0}, "rounds is 0; give at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ReconBoost(TWO, **options)
