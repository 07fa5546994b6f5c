"""G-Blending: weights of the heads from losses given by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from strategy_runs import Views, trained, trainer, views, weights
from torch.nn import functional as F  # noqa: N812

from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.model.names import FUSED
from ecsfusion.strategies.g_blending import GBlending

pytestmark = pytest.mark.usefixtures("quick_probes")

HEADS = ("left", "right", FUSED)


def weigh(before: list[tuple[float, float]], now: list[tuple[float, float]]) -> list[float]:
    """Weights of pairs (validation loss, training loss)."""
    strategy = GBlending(("left", "right"))
    found = strategy.weigh(dict(zip(HEADS, before, strict=True)), dict(zip(HEADS, now, strict=True)))
    return [found[head] for head in HEADS]


BEFORE = [(1.0, 0.8), (2.0, 1.5), (1.5, 1.2)]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        # left: G = 1.0 - 0.8 = 0.2, O = (0.8 - 0.5) - (1.0 - 0.8) = 0.1: 0.2 / 0.01 = 20
        # right: G = 0.4, O = (1.6 - 1.0) - 0.5 = 0.1: 40.   fused: G = 0.1, O = (1.4 - 0.9) - 0.3 = 0.2: 2.5
        ([(0.8, 0.5), (1.6, 1.0), (1.4, 0.9)], [20 / 62.5, 40 / 62.5, 2.5 / 62.5]),
        # The right head got worse: no weight. The left one gains as much while the gap shrinks: O = -0.1.
        ([(0.8, 0.7), (2.1, 1.0), (1.4, 0.9)], [20 / 22.5, 0.0, 2.5 / 22.5]),
        # No overfitting at all counts as 0.001: 0.2 / 1e-6 = 200000 against 40 and 2.5.
        ([(0.8, 0.6), (1.6, 1.0), (1.4, 0.9)], [200000 / 200042.5, 40 / 200042.5, 2.5 / 200042.5]),
        # Nobody gained.
        ([(1.0, 0.1), (2.2, 1.0), (1.6, 0.9)], [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_weights(now, expected):
    found = weigh(BEFORE, now)
    assert found == pytest.approx(expected, rel=1e-6)
    assert sum(found) == pytest.approx(1.0)


def test_the_loss_is_the_weighted_sum_and_training_losses_are_means_over_rows():
    model = views(stage="joint")
    strategy = GBlending(model.modalities)
    strategy.state["weights"] = {"left": 0.5, "right": 0.2, FUSED: 0.3}
    seen = {head: [] for head in HEADS}
    rows = {"left": 12 + 8, "right": 16 + 8, FUSED: 16 + 8}
    for size, lacking in ((16, 4), (8, 0)):
        # Two batches, one optimizer step; four rows lack the left view.
        batch = Views(size, size).batch()
        outputs = model(**batch, present={"left": torch.arange(size) >= lacking})
        z, labels = {**outputs.unimodal_logits, FUSED: outputs.logits}, batch["labels"]
        sums = {
            head: F.cross_entropy(z[head], labels, reduction="none")[lacking if head == "left" else 0 :].sum()
            for head in HEADS
        }
        found = strategy.loss(model, outputs, labels)
        expected = (0.5 * sums["left"] + 0.2 * sums["right"] + 0.3 * sums[FUSED]) / size
        torch.testing.assert_close(found, expected)
        for head, value in sums.items():
            seen[head].append(float(value.detach()))
    strategy.adjust_gradients(model)

    held = Views(10, 5)
    with torch.no_grad():
        answer = model.eval()(**held.batch())
    there = torch.arange(10) < 7
    heads = {**answer.unimodal_logits, FUSED: answer.logits}
    heads["left"] = heads["left"].where(there[:, None], torch.nan)
    present = {"left": there, "right": torch.ones(10, dtype=torch.bool)}
    evaluation = Evaluation(heads, {}, present, held.labels)
    strategy.after_evaluation(
        SimpleNamespace(model=model, args=SimpleNamespace(device=torch.device("cpu"))), evaluation
    )
    for head in HEADS:
        validation, training = strategy.state["before"][head]
        assert training == pytest.approx(sum(seen[head]) / rows[head], rel=1e-5)
        chosen = slice(0, 7 if head == "left" else 10)
        expected = float(F.cross_entropy(heads[head][chosen], held.labels[chosen]))
        assert validation == pytest.approx(expected, rel=1e-5)
    # Until the second evaluation.
    assert strategy.state["weights"] == {"left": 0.5, "right": 0.2, FUSED: 0.3}
    assert strategy.state["training"] == {head: [0.0, 0.0] for head in HEADS}


def test_until_the_second_evaluation_it_is_a_third_of_the_sum_of_all_losses(tmp_path):
    options = {"max_steps": 4, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    blended = trained(tmp_path / "blended", strategy="g-blending", learning_rate=0.3, **options)
    summed = trained(
        tmp_path / "summed", strategy="joint-auxiliary", auxiliary_weight=1.0, learning_rate=0.1, **options
    )
    for name, value in weights(summed).items():
        torch.testing.assert_close(weights(blended)[name], value, rtol=1e-4, atol=1e-6)


def test_a_run_weighs_by_its_own_evaluations(tmp_path):
    run = trained(tmp_path, strategy="g-blending", gaps=True)
    found = run.strategy.state["weights"]
    assert sum(found.values()) == pytest.approx(1.0)
    assert len(set(found.values())) > 1
    validation, _ = run.strategy.state["before"][FUSED]
    assert validation == pytest.approx(run.evaluate()["eval_loss"], rel=1e-5)


def test_it_needs_evaluations(tmp_path):
    with pytest.raises(ValueError, match="g-blending"):
        trainer(tmp_path, strategy="g-blending", eval_strategy="no")
