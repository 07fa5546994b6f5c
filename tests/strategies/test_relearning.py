"""Diagnosing & Re-learning: purity, strength and the way back on numbers worked out by hand, and one run."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from fusion_fixtures import TwoViews, two_views
from torch import nn

from ecsfusion import FusionTrainer, FusionTrainingArguments
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.strategies import make_strategy, relearning
from ecsfusion.strategies.relearning import (
    DiagnosingRelearning,
    move_towards_initial_weights,
    purity,
    purity_of,
)

pytestmark = pytest.mark.usefixtures("quick_probes")


def test_the_purity_of_a_known_clustering():
    # Cluster 0 holds classes 0 0 1, cluster 1 holds 1 1 2: the most frequent ones make 2 + 2 of 6.
    clusters, labels = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 1, 2])
    assert purity(clusters, labels, 3) == pytest.approx(4 / 6)
    assert purity(labels, labels, 3) == 1.0


def test_clusters_are_found_in_the_rows_that_have_the_modality():
    labels = torch.arange(60) % 3
    embeddings = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) + 20 * torch.eye(3, 5)[labels]
    present = torch.arange(60) < 50
    embeddings[~present] = torch.nan
    found = Evaluation({}, {"left": embeddings.numpy()}, {"left": present}, labels)
    assert purity_of(found, "left", 3, torch.device("cpu")) == 1.0
    wrong = Evaluation({}, {"left": embeddings.numpy()}, {"left": present}, torch.zeros(60, dtype=torch.long))
    # Half of the 50 rows, whatever the cluster.
    wrong.labels[:25] = 1
    assert 0.5 <= purity_of(wrong, "left", 3, torch.device("cpu")) < 0.55


def test_the_strength_is_the_tanh_of_three_times_the_difference():
    strategy = make_strategy("diagnosing-relearning", ["left", "right"])
    # 3 * 0.3 = 0.9, tanh 0.9 = (1 - exp(-1.8)) / (1 + exp(-1.8)) = 0.834701 / 1.165299 = 0.716298
    strengths = strategy.coefficients(torch.tensor([[0.9, 0.5], [0.6, 0.5]]))
    assert strengths.tolist() == pytest.approx([0.716298, 0.0], abs=1e-5)
    assert strategy.coefficients(torch.tensor([[0.9], [torch.nan]])).tolist() == [0.0]


def test_an_encoder_goes_a_quarter_of_the_way_back():
    def model_at(value):
        layer = nn.Linear(1, 1)
        nn.init.constant_(layer.weight, value)
        nn.init.constant_(layer.bias, 1.0)
        return SimpleNamespace(encoders={"left": layer})

    model = model_at(10.0)
    # 0.25 * 2 + 0.75 * 10 = 8.
    move_towards_initial_weights(model, model_at(2.0), {"left": 0.25})
    assert float(model.encoders["left"].weight) == pytest.approx(8.0)
    assert float(model.encoders["left"].bias) == 1.0


class Watched(DiagnosingRelearning):
    """Remembers, whenever it leads back, the encoders before and after."""

    name = "watched"
    seen: list = []  # noqa: RUF012

    def prepare_inputs(self, model, inputs):
        pending, before = dict(self.state["pending"]), copy.deepcopy(model.encoders)
        inputs = super().prepare_inputs(model, inputs)
        if pending:
            step = self._trainer.state.global_step
            self.seen.append((step, before, copy.deepcopy(model.encoders)))
        return inputs


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_run_leads_back_who_memorized_before_the_next_step(tmp_path, monkeypatch):
    # Left and right on training rows, then evaluated.
    purities = iter([1.0, 0.5, 0.5, 0.5] * 3)
    monkeypatch.setattr(relearning, "purity_of", lambda *args: next(purities))
    Watched.seen = []
    model = two_views()
    initial = copy.deepcopy(model.encoders)
    trainer = FusionTrainer(
        model=model,
        args=FusionTrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=4,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            # Tanh 50 is 1.
            strategy_options={"shares": [0.2, 0.3, 0.7], "strength": 100.0},
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
        ),
        train_dataset=TwoViews(64, 0),
        eval_dataset=TwoViews(60, 1),
        strategy=Watched,
    )
    trainer.train()
    # Evaluations are at 0.25, 0.5, 0.75 and 1 of 16 steps; each has passed one share, and the last none.
    assert [step for step, _, _ in Watched.seen] == [4, 8, 12]
    assert trainer.strategy.state == {"done": 3, "pending": {}}
    for _, before, after in Watched.seen:
        assert not same(before["left"], initial["left"])
        for a, b in zip(after["left"].parameters(), initial["left"].parameters(), strict=True):
            torch.testing.assert_close(a, b)
        assert same(before["right"], after["right"])
    # It learned again
    assert not same(model.encoders["left"], initial["left"])


def test_options_that_make_no_sense_are_named():
    for shares in ([], [0.5, 0.2], [0.0, 0.5], [0.5, 1.0]):
        with pytest.raises(ValueError, match="give ascending shares of the budget"):
            make_strategy("diagnosing-relearning", ["left", "right"], shares=shares)
    with pytest.raises(ValueError, match="strength is 0; it must be positive"):
        make_strategy("diagnosing-relearning", ["left", "right"], strength=0)
