"""Stacking learns what a weighted product of heads cannot say, on rows and groups it is not judged on."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

# The benchmarks are scripts, not an installed package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from protocol.stacking import STRENGTHS, Stacking

CLASSES = 3


def accuracy(log_p: torch.Tensor, labels: torch.Tensor) -> float:
    return float((log_p.argmax(dim=1) == labels).double().mean())


def test_a_head_that_names_another_class_is_understood():
    labels = torch.arange(60) % CLASSES
    wrong = 4.0 * torch.nn.functional.one_hot((labels + 1) % CLASSES, CLASSES).float()
    heads = {"left": wrong, "right": torch.randn(60, CLASSES, generator=torch.Generator().manual_seed(0))}
    stacking = Stacking(heads, labels)
    assert accuracy(stacking.held_out, labels) == accuracy(stacking(heads), labels) == 1.0
    torch.testing.assert_close(stacking(heads).exp().sum(dim=1), torch.ones(60).double())
    # It is scikit-learn's regression with the strength that was chosen, on log-probabilities.
    features = torch.cat([heads[name].double().log_softmax(dim=1) for name in heads], dim=1).numpy()
    model = LogisticRegression(C=stacking.strength, max_iter=1000).fit(features, labels.numpy())
    np.testing.assert_allclose(stacking(heads).exp().numpy(), model.predict_proba(features), atol=1e-5)


def test_noise_is_answered_with_strong_regularization():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % CLASSES
    heads = {name: 3.0 * torch.randn(60, CLASSES, generator=generator) for name in ("left", "right")}
    stacking = Stacking(heads, labels)
    assert stacking.strength in STRENGTHS[:2]
    loss = -stacking.held_out[torch.arange(60), labels].mean()
    # About that of guessing.
    assert float(loss) == pytest.approx(float(np.log(CLASSES)), abs=0.05)


def test_a_group_is_not_judged_by_a_regression_that_has_seen_it():
    generator = torch.Generator().manual_seed(4)
    # Five copies of each of twelve rows: what a copy has taught says all of the next.
    groups = torch.arange(60) // 5
    labels = groups % CLASSES
    heads = {
        name: 3.0 * torch.randn(12, 5, generator=generator)[groups] for name in ("left", "right", "third")
    }
    assert accuracy(Stacking(heads, labels).held_out, labels) == 1.0
    assert accuracy(Stacking(heads, labels, groups).held_out, labels) < 0.5


def test_a_rare_class_does_no_harm():
    labels = torch.tensor([0, 1] * 10 + [2])
    heads = {"only": 3.0 * torch.nn.functional.one_hot(labels, 4).float()}
    groups = torch.arange(21)
    for stacking in (Stacking(heads, labels, groups), Stacking(heads, labels.clamp_max(1))):
        assert stacking.held_out.isfinite().all()
        assert accuracy(stacking.held_out[:20], labels[:20]) == 1.0
    with pytest.raises(ValueError, match="stacking needs at least two classes, and two groups"):
        Stacking(heads, labels, torch.zeros(21, dtype=torch.long))
