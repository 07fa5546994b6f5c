"""Effective competitive strength: the formula on numbers worked out by hand, and on a model that is trained."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fusion_fixtures import TwoViews, two_views
from torch.nn.functional import cross_entropy

from ecsfusion import FusionTrainer, FusionTrainingArguments

# The benchmarks are scripts, not an installed package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bimodal
import competitive_strength as benchmark
from competition import competitive_strength, smoothed_relu

pytestmark = pytest.mark.slow


def test_activation_at_its_borders():
    x = torch.tensor([-1.0, 0.0, 0.25, 0.5, 2.0], dtype=torch.float64)
    # q = 3, b = 1/2: x^3 / (3/4), then x - 1/3
    expected = torch.tensor([0.0, 0.0, 1 / 48, 1 / 6, 5 / 3], dtype=torch.float64)
    torch.testing.assert_close(smoothed_relu(x, 3, 0.5), expected)
    inside = torch.tensor([0.1, 0.4, 0.5 - 1e-6, 0.6, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: smoothed_relu(t, 4, 0.5), inside)


def test_strength_by_hand():
    # (C=2, M=2, L=2)
    alignment = torch.tensor([[[0.2, -0.5], [-0.1, -0.2]], [[0.3, 0.4], [0.1, 0.9]]])
    signal = torch.tensor([[10.0, 40.0], [2.5, 90.0]])
    # q = 3, b = 1/2, n = 40: d = signal / (40 / 4) = signal / 10, and the first root of it
    expected = torch.tensor([[0.2 * 1.0, 0.0], [0.4 * 0.25, 0.9 * 9.0]])
    torch.testing.assert_close(competitive_strength(alignment, signal, 40), expected)
    # q = 4, b = 1: d = signal / 40, its square root
    expected = torch.tensor([[0.2 * 0.5, 0.0], [0.4 * 0.25, 0.9 * 1.5]])
    torch.testing.assert_close(competitive_strength(alignment, signal, 40, order=4, threshold=1.0), expected)


@pytest.mark.parametrize(
    ("alignment", "signal", "order", "message"),
    [((3, 2, 4), (3, 2), 2, "order"), ((3, 2, 4), (3, 3), 3, "signal"), ((3, 2), (3, 2), 3, "signal")],
)
def test_bad_arguments(alignment, signal, order, message):
    with pytest.raises(ValueError, match=message):
        competitive_strength(torch.ones(alignment), torch.ones(signal), 10, order=order)


@pytest.mark.parametrize("joint", [True, False])
def test_a_step_follows_the_gradient(joint):
    """The benchmark's step, made of the slopes of the activation, is that of autograd on the cross-entropy."""
    generator = torch.Generator().manual_seed(0)
    problem, start = bimodal.start_of(6, 2, 0.3, generator)
    after, _ = bimodal.train(start, problem, joint, 1)
    weights = [w.clone().requires_grad_() for w in start]
    outputs = [bimodal.logits(x, w) for x, w in zip(problem.inputs, weights, strict=True)]
    outputs = [outputs[0] + outputs[1]] if joint else outputs
    labels = problem.labels.flatten()
    # the loss of a data set is a mean over its rows; the sets do not see each other
    loss = sum(cross_entropy(z.flatten(0, 1), labels, reduction="sum") for z in outputs)
    gradients = torch.autograd.grad(loss / problem.labels.shape[1], weights)
    for w, before, gradient in zip(after, start, gradients, strict=True):
        torch.testing.assert_close(w, before - 6 / 2 * gradient, rtol=1e-4, atol=1e-6)


def test_information_of_answers_by_hand():
    """Two classes; the first modality answers right in every row, the second always says the first class."""
    labels = torch.tensor([[0, 0, 1, 1]])
    rows = torch.eye(2)[labels]
    problem = bimodal.Problem(labels, [rows, rows], [], [], [])
    right = torch.eye(2).reshape(1, 2, 2, 1)
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).reshape(1, 2, 2, 1)
    expected = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    torch.testing.assert_close(bimodal.information([right, first], problem), expected)


def test_the_stronger_modality_wins_and_two_stages_learn_both():
    """Eight classes, six seeds of the benchmark's model: the prediction is far from chance, both stages help."""
    run = benchmark.simulate(8, seeds=6, seed=3)
    errors = {name: float(values.mean()) for name, values in run["errors"].items()}
    assert run["decided"].mean() > 0.95
    assert run["predicted"].mean() > 0.9
    assert run["by_speed_alone"].mean() >= run["predicted"].mean()
    assert errors["two_stage"] < 0.6 * errors["joint"]
    assert errors["joint"] < 0.6 * errors["first alone"]


def test_shaping_flips_the_winner_where_the_strengths_are_equal():
    shares = benchmark.shape(seeds=2, seed=3, whole=False)
    assert shares.shape == (2, len(benchmark.RATIOS))
    # Half as strong: it loses.
    assert shares[:, 0].max() < 0.1
    # Twice as strong: it wins.
    assert shares[:, -1].min() > 0.9
    assert benchmark.flip(shares) == pytest.approx(1.0, abs=0.1)


def test_exponents_by_hand():
    k = np.array(benchmark.ERROR_CLASSES, float)
    shares = np.stack([0.5 * (1 - 1 / k) / k, 1.5 * (1 - 1 / k) / k])
    assert benchmark.exponent(shares, guesses=False) == pytest.approx(-1.0)
    # Guesses flatten the slope.
    assert benchmark.exponent(shares) > -1.0


def test_every_probe_logs_what_stands_in_for_the_strength(tmp_path):
    """Both stages; and its difference is that of the uniqueness, by which rules name a leader."""
    trainer = FusionTrainer(
        two_views(),
        FusionTrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=4,
            unimodal_epochs=2,
            per_device_train_batch_size=32,
            learning_rate=0.03,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=TwoViews(64, seed=0),
        eval_dataset=TwoViews(64, seed=1),
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "eval_synergy" in log]
    assert [log["epoch"] for log in logs][:4] == [1, 2, 3, 4]
    for log in logs:
        left, right = (log[f"eval_mutual_information_{name}"] for name in ("left", "right"))
        unique = log["eval_unique_left"] - log["eval_unique_right"]
        assert left - right == pytest.approx(unique, abs=1e-3)
    # There is information whose difference could be compared.
    assert max(log["eval_mutual_information_left"] for log in logs) > 0.1
