"""A greedy soup takes what makes the average better on validation, and nothing else."""

import sys
from pathlib import Path

import pytest
import torch

# The benchmarks are scripts, not an installed package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from protocol.soup import greedy_soup


def epoch(accuracy: float, weight: float, batches: int = 0):
    return accuracy, {"w": torch.tensor([weight, -weight]), "batches": torch.tensor(batches)}


def test_the_best_epoch_first_and_then_what_does_not_harm():
    accuracies = {6.0: 0.74, 5.0: 0.75, 4.0: 0.7, 3.0: 0.75}
    tried = []

    def judge(weights):
        tried.append(float(weights["w"][0]))
        return accuracies[tried[-1]]

    # From the best: 6 alone has 0.74; with 4 it is 5, better; with 2 it would be 4, worse; with -1, 3: no worse.
    soup = greedy_soup([epoch(0.5, -1.0), epoch(0.74, 6.0, 7), epoch(0.72, 4.0), epoch(0.6, 2.0)], judge)
    assert tried == [6.0, 5.0, 4.0, 3.0]
    assert soup["w"].tolist() == [3.0, -3.0]
    # A count of batches cannot be averaged.
    assert soup["batches"].item() == 7


def test_where_nothing_helps_it_is_the_best_epoch_the_earlier_one_of_equals():
    epochs = [epoch(0.4, 1.0), epoch(0.7, 2.0), epoch(0.7, 3.0)]
    soup = greedy_soup(epochs, lambda weights: 0.7 if float(weights["w"][0]) == 2.0 else 0.69)
    assert soup["w"].tolist() == [2.0, -2.0]
    with pytest.raises(ValueError, match="there is no epoch to average; give at least one"):
        greedy_soup([], lambda weights: 0.0)
