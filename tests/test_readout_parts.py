"""What the default's answer is taken apart into: the parts are those of the comparison, and the fits are right."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

# The benchmarks are scripts, not an installed package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import readout_parts
from protocol.methods import BEST_SINGLE, CALIBRATED, CALIBRATED_ENSEMBLE, FUSED, METHODS, STACKING
from protocol.results import Run, runs_path, settings_of
from suites import SUITES, Split, Suite
from tiny_suites import CLASSES, NAMES, WIDTH, patterns


def split(rows: int, seed: int) -> Split:
    """Patterns under noise, two rows of a group; a fifth of the rows lacks the right one, which is noisier."""
    shown = patterns(rows, seed, (1.5, 2.0))
    number = torch.arange(rows)
    return Split(shown.inputs, shown.labels, 1000 * seed + number // 2, {"right": number % 5 != 0})


TINY = Suite(
    name="tiny",
    description="Two patterns, one of which some rows lack.",
    num_classes=CLASSES,
    train=split(64, 0),
    validation=split(60, 1),
    test=split(90, 2),
    build_encoders=lambda: {name: nn.Linear(WIDTH, 5) for name in NAMES},
    epochs=4,
    batch_size=16,
    learning_rates=(1e-2, 1e-1),
    sgd_learning_rates=(0.03, 0.1),
)
RATE = 1e-1


def chosen(method: str):
    """The setting of a method at the faster rate."""
    return next(each for each in settings_of(METHODS[method], TINY, "adamw") if each.learning_rate == RATE)


def record_choice(folder: Path) -> None:
    """Lines of the comparison on which the faster rate is better."""
    path = runs_path(folder, "tiny", "adamw")
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        for method in ("two-stage", "calibrated-ensemble"):
            for setting in settings_of(METHODS[method], TINY, "adamw"):
                value = 0.8 if setting.learning_rate == RATE else 0.6
                validation = dict.fromkeys((CALIBRATED, CALIBRATED_ENSEMBLE), value)
                file.write(json.dumps({**Run(setting, 0).to_json(), "validation": validation}) + "\n")


@pytest.fixture(scope="module")
def taken_apart(tmp_path_factory):
    """The lines that the command writes, and what it trained: run and line of the comparison."""
    folder = tmp_path_factory.mktemp("parts")
    record_choice(folder)
    trained = []

    def train(suite, run, callbacks):
        line = train_as_compare_does(suite, run, callbacks)
        trained.append((run, line))
        return line

    train_as_compare_does = readout_parts.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SUITES, "tiny", lambda: TINY)
        patch.setattr(readout_parts, "COMPARISON", folder)
        patch.setattr(readout_parts, "RESULTS", folder / "readout_parts.jsonl")
        patch.setattr(readout_parts, "train", train)
        patch.setattr(sys, "argv", ["readout_parts.py", "--suite", "tiny", "--seeds", "1"])
        # The second time everything is there.
        for _ in range(2):
            readout_parts.main()
    return [json.loads(line) for line in (folder / "readout_parts.jsonl").read_text().splitlines()], trained


def test_each_method_is_trained_once_at_the_rate_that_was_chosen(taken_apart):
    lines, trained = taken_apart
    assert [(line["suite"], line["seed"]) for line in lines] == [("tiny", 0)]
    assert [run for run, _ in trained] == [Run(chosen("calibrated-ensemble"), 0), Run(chosen("two-stage"), 0)]


def test_the_parts_are_what_the_comparison_says(taken_apart):
    (line,), ((_, rival), (_, ours)) = taken_apart
    for part in ("test", "validation"):
        found = line[part]
        assert found["readout"] == ours[part][CALIBRATED]
        assert found["fused head"] == ours[part][FUSED]
        assert found["own ensemble"] == ours[part][CALIBRATED_ENSEMBLE]
        assert {name: found[f"head {name}"] for name in NAMES} == {name: ours[part][name] for name in NAMES}
        assert found["rival ensemble"] == rival[part][CALIBRATED_ENSEMBLE]
        assert found["rival best single"] == rival[part][BEST_SINGLE]
        assert found["rival stacking"] == rival[part][STACKING]
    answers = ("readout", "fused head", "own ensemble", "head left", "head right")
    assert line["test"]["hindsight"] == max(line["test"][name] for name in answers)


def test_the_answers_that_were_remembered_are_those_that_were_judged(taken_apart):
    """Heads and epochs are chosen anew from what was remembered, and must come out as the comparison chose them."""
    (line,), _ = taken_apart
    assert line["rows"] == [2] * (len(TINY.test) // 2)
    for name, right in line["right"].items():
        assert sum(right) / sum(line["rows"]) == pytest.approx(line["test"][name], abs=1e-6)
    assert line["kept"][0] == pytest.approx(line["test"]["readout"], abs=1e-6)


def test_where_no_rate_was_chosen_a_sentence_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(readout_parts, "COMPARISON", tmp_path)
    with pytest.raises(SystemExit, match=r"run compare.py --suite tiny --methods two-stage"):
        readout_parts.train_both(TINY, 0)


# ---- the fits ----


def heads(seed: int, grouped: bool) -> readout_parts.Split:
    """Three heads, the fused one the best; rows are alone or five of a group."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(200) % CLASSES
    hit = nn.functional.one_hot(labels, CLASSES).float()
    logits = {
        name: strength * hit + torch.randn(200, CLASSES, generator=generator)
        for name, strength in (("left", 0.6), ("right", 1.0), (FUSED, 1.2))
    }
    masks = {"left": torch.arange(200) % 7 != 0, "right": torch.ones(200, dtype=torch.bool)}
    return readout_parts.Split(logits, labels, masks, torch.arange(200) // 5 if grouped else None)


# L-BFGS-B ends earlier here than in the library; a pull of half the strength moves a weight by five times as much.
CLOSE = 5e-3
HALVES = ("mean", "fitted", "ensemble")


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("excluded", [(), ("left",)])
def test_without_slack_and_with_the_mean_it_is_the_readout_of_the_library(grouped, excluded):
    rows = heads(0, grouped)
    expected = rows.fit(excluded).weights()
    # It is a combination, not the fused head alone.
    assert sum(weight > 0.05 for weight in expected.values()) == 3 - len(excluded)
    again = readout_parts.candidate(rows, excluded, "mean", 0.0).weights()
    assert again == pytest.approx(expected, abs=CLOSE)


def test_a_head_that_repeats_another_is_not_pulled_up_by_fitted_shares():
    rows = heads(2, False)
    noise = torch.randn(200, CLASSES, generator=torch.Generator().manual_seed(5))
    rows = replace(rows, logits={**rows.logits, "left": rows.logits["right"] + noise})
    of_left = {half: readout_parts.candidate(rows, (), half, 0.0).weights()["left"] for half in HALVES}
    assert of_left["mean"] > 0.1
    assert of_left["fitted"] < 0.7 * of_left["mean"]
    # A calibrated ensemble drops it.
    assert of_left["ensemble"] < 0.7 * of_left["mean"]


def least(objective, found: np.ndarray, lowest: float) -> bool:
    """Whether an objective is larger a little beside what was found, in each direction that is allowed."""
    steps = [sign * 1e-2 * unit for unit in np.eye(len(found)) for sign in (1, -1)]
    return all(objective(found) < objective(found + step) for step in steps if (found + step).min() >= lowest)


def test_weights_and_biases_are_the_least_of_what_their_docstrings_say():
    rows = heads(1, False)
    labels, own = rows.labels.numpy(), np.arange(len(rows.labels))
    log_p = np.stack([z.double().log_softmax(dim=1).numpy() for z in rows.logits.values()])
    center, pull, N = np.array([0.2, 0.3, 0.5]), 10.0, 40.0

    def loss(pooled: np.ndarray) -> float:
        return float((np.log(np.exp(pooled).sum(axis=1)) - pooled[own, labels]).mean())

    def of_weights(weights: np.ndarray) -> float:
        return N * loss(np.tensordot(weights, log_p, 1)) + pull / 2 * ((weights - center) ** 2).sum()

    weights = readout_parts.convex_weights(log_p, labels, N, center, pull)
    assert weights.min() >= 0
    assert least(of_weights, weights, 0.0)

    skewed = log_p[0] + np.array([0.5, 0.0, -0.5])

    def of_biases(bias: np.ndarray) -> float:
        return N * loss(skewed + bias) + readout_parts.BIAS_PULL / 2 * (bias**2).sum()

    biases = readout_parts.class_biases(skewed, labels, N)
    assert least(of_biases, biases, -np.inf)
    # It undoes most of what skewed them.
    assert biases[0] < -0.2 < 0.2 < biases[2]


# ---- the report ----


def test_the_interval_draws_groups_with_their_rows():
    line = {"rows": [1, 3], "right": {"readout": [1, 0], "other": [0, 3]}}
    # One of the two groups twice, with probability a quarter each: all rows gained, or all lost.
    assert readout_parts.interval_of_rows([line], "other") == (-100.0, 100.0)
    # Both groups are one row of two ahead, whatever is drawn.
    even = {"rows": [2, 2], "right": {"readout": [2, 1], "other": [1, 0]}}
    assert readout_parts.interval_of_rows([even, even], "other") == (50.0, 50.0)


def test_gains_are_over_the_readout_that_is_kept(taken_apart):
    (line,), _ = taken_apart
    gains = {"better": [line["kept"][0] + 0.1, line["kept"][1] - 0.2]}
    text = readout_parts.report([{**line, "candidates": gains}, {**line, "seed": 1, "candidates": gains}])
    assert "## tiny, 2 seeds" in text
    assert "| better | +10.00 ± 0.00 | -0.200 ± 0.000 |" in text
    ahead = 100 * (line["test"]["readout"] - line["test"]["rival stacking"])
    assert f"| rival stacking | {ahead:+.1f} ± 0.0 |" in text
