"""Effective competitive strength: the formula on numbers worked out by hand, and on a model that is trained."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ecsfusion import competitive_strength
from ecsfusion.competition import smoothed_relu

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "competitive_strength.py"


def test_activation_at_its_borders():
    x = torch.tensor([-1.0, 0.0, 0.25, 0.5, 2.0], dtype=torch.float64)
    # q = 3, b = 1/2: x^3 / (3/4), then x - 1/3
    expected = torch.tensor([0.0, 0.0, 1 / 48, 1 / 6, 5 / 3], dtype=torch.float64)
    torch.testing.assert_close(smoothed_relu(x, 3, 0.5), expected)
    inside = torch.tensor([0.1, 0.4, 0.5 - 1e-6, 0.6, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: smoothed_relu(t, 4, 0.5), inside)


def test_strength_by_hand():
    alignment = torch.tensor([[[0.2, -0.5], [-0.1, -0.2]], [[0.3, 0.4], [0.1, 0.9]]])  # (C=2, M=2, L=2)
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


def test_the_stronger_modality_wins_and_two_stages_learn_both():
    """Eight classes, six seeds of the benchmark's model: the prediction is far from chance, both stages help."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import competitive_strength as c\n"
        "run = c.simulate(8, seeds=6, seed=3); e = run['errors']\n"
        "assert run['decided'].mean() > 0.95 and run['right'].mean() > 0.9, run\n"
        "assert e['two_stage'].mean() < 0.6 * e['joint'].mean(), e\n"
        "assert e['joint'].mean() < 0.6 * e['first alone'].mean(), e\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(BENCHMARK.parent)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
