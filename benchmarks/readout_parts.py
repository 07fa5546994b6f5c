"""Where is the default behind a calibrated ensemble: in its heads, or in its readout? Would another readout be better?

    OMP_NUM_THREADS=1 python benchmarks/readout_parts.py --suite clipart tcga-brca --seeds 15
    python benchmarks/readout_parts.py --report                    # only the table of the lines that are there

Trains the default and the calibrated ensemble as `compare.py` does, at the rates that were chosen there, and remembers
what every head answers at every evaluation. From these answers come, on validation and on test, the accuracy of each
head at the end of stage 1 and from its best epoch, of the ensemble of the default's own heads, of the fused head, of
the readout that was fitted, and of the one of these that hindsight would choose; and the accuracy and log-loss of
readouts that were tried in its place (`candidates`). Rows that are right are counted by group of the test rows, so that
the interval of a difference can hold for other test rows, too: seeds and groups are drawn anew. What is there is not
trained again. One JSON line per suite and seed goes to benchmarks/results/readout_parts.jsonl.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from environment import environment
from protocol.methods import BEST_SINGLE, CALIBRATED, CALIBRATED_ENSEMBLE, METHODS, STACKING
from protocol.report import interval
from protocol.results import Run, append_line, chosen_setting, read_lines, runs_path, settings_of
from protocol.stacking import Stacking
from protocol.training import answers, train
from scipy.optimize import minimize
from suites import Suite, load_suite
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import TrainerCallback

from ecsfusion.model.names import FUSED
from ecsfusion.model.readout import Readout

RESULTS = Path(__file__).parent / "results" / "readout_parts.jsonl"
COMPARISON = Path(__file__).parent / "results" / "compare"
PULL = 10.0
"""Rows, or groups, that the pull towards the center counts as: that of the readout."""
BIAS_PULL = 1.0
"""The same for biases of the classes, towards zero."""
REPLICATES = 4000
"""Draws of seeds and groups for an interval."""

Heads = Mapping[str, Tensor]
"""Logits (N, C) by head."""


class Recorder(TrainerCallback):
    """What every head answers at every evaluation.

    Attributes:
        steps: by step and split, the logits (N, C) by head.
    """

    def __init__(self, suite: Suite) -> None:
        self.splits = {"validation": suite.validation, "test": suite.test}
        self.steps: dict[int, dict[str, Heads]] = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Ask the model once more, on both splits."""
        was_training = model.training
        self.steps[state.global_step] = {name: answers(model, split) for name, split in self.splits.items()}
        model.train(was_training)

    def at(self, steps: Mapping[str, int], name: str) -> Split:
        """The split of this name with every head as it was at its step."""
        rows = self.splits[name]
        groups = None if rows.groups is None else rows.groups.unique(return_inverse=True)[1]
        logits = {head: self.steps[step][name][head] for head, step in steps.items()}
        return Split(logits, rows.labels, rows.masks(), groups)

    def best(
        self, loses: Callable[[Split, str], float], steps: Mapping[str, Sequence[int]]
    ) -> dict[str, int]:
        """For every head the first of its steps at which it loses least on validation."""
        splits = {step: self.at(dict.fromkeys(steps, step), "validation") for step in self.steps}
        return {head: min(own, key=lambda step: loses(splits[step], head)) for head, own in steps.items()}


@dataclass(frozen=True)
class Split:
    """The heads of one choice of epochs on a split.

    Attributes:
        logits: (N, C) by head.
        labels: (N,) class indices.
        masks: (N,) bool by modality.
        groups: (N,) whole numbers from 0, or None.
    """

    logits: Heads
    labels: Tensor
    masks: Mapping[str, Tensor]
    groups: Tensor | None

    def fit(self, excluded: tuple[str, ...]) -> Readout:
        """The readout of the library."""
        return Readout.fit(
            self.logits, self.labels, self.masks, excluded_from_readout=excluded, groups=self.groups
        )

    def figures(self, log_p: Tensor) -> tuple[float, float]:
        """Accuracy, and log-loss in nats."""
        hits = (log_p.argmax(dim=1) == self.labels).double()
        return float(hits.mean()), float(F.nll_loss(log_p.double().log_softmax(dim=1), self.labels))

    def right_by_group(self, log_p: Tensor) -> list[int]:
        """How many rows of each group are right; where rows stand alone, each is a group."""
        hits = log_p.argmax(dim=1) == self.labels
        groups = torch.arange(len(hits)) if self.groups is None else self.groups
        return groups.bincount(weights=hits.double()).long().tolist()


def convex_weights(
    log_p: np.ndarray, labels: np.ndarray, N: float, center: np.ndarray, pull: float
) -> np.ndarray:
    """Weights (H,) >= 0 with the lowest N * cross-entropy + pull / 2 * |w - center|^2.

    Args:
        log_p: (H, n, C), float64.
        labels: (n,) class indices.
        N: as how many samples the n count.
        center: (H,).
        pull: samples that the center counts as.
    """
    at_label = log_p[:, np.arange(len(labels)), labels]

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        pooled = torch.from_numpy(np.tensordot(weights, log_p, 1))
        p = pooled.softmax(dim=1).numpy()
        loss = float(pooled.logsumexp(dim=1).mean()) - float(weights @ at_label.mean(axis=1))
        gradient = (log_p * p).sum(axis=2).mean(axis=1) - at_label.mean(axis=1)
        away = weights - center
        return N * loss + pull / 2 * float(away @ away), N * gradient + pull * away

    return minimize(objective, center, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(center)).x


def class_biases(log_p: np.ndarray, labels: np.ndarray, N: float) -> np.ndarray:
    """Numbers (C,) that are added to log-probabilities (n, C), pulled towards zero."""
    counts = np.bincount(labels, minlength=log_p.shape[1]) / len(labels)

    def objective(bias: np.ndarray) -> tuple[float, np.ndarray]:
        biased = torch.from_numpy(log_p + bias)
        loss = float(biased.logsumexp(dim=1).mean()) - float(bias @ counts)
        gradient = biased.softmax(dim=1).numpy().mean(axis=0) - counts
        return N * loss + BIAS_PULL / 2 * float(bias @ bias), N * gradient + BIAS_PULL * bias

    return minimize(objective, np.zeros(log_p.shape[1]), jac=True, method="L-BFGS-B").x


def candidate(split: Split, excluded: tuple[str, ...], half: str, slack: float) -> Readout:
    """The library's readout with other weights in the rows that have every modality.

    Args:
        split: of validation.
        excluded: heads without a weight.
        half: the half of the center that is not the fused head: "mean" is that of the others, as in the library;
            "fitted" gives them the shares of a fit without the fused head that drops none; "ensemble" those of the
            calibrated ensemble, which drops heads.
        slack: standard errors by which the fused head may be more accurate on these rows; infinity asks for the loss
            alone.
    """
    readout = split.fit(excluded)
    others = [name for name in readout.modalities if name not in excluded]
    heads = [*others, FUSED]
    rows = torch.stack([split.masks[name] for name in readout.modalities]).all(dim=0)
    labels = split.labels[rows].numpy()
    N = len(labels) if split.groups is None else len(split.groups[rows].unique())
    alone = np.array([readout.weights([name])[name] for name in heads])
    log_p = alone[:, None, None] * np.stack(
        [split.logits[name][rows].double().log_softmax(dim=1).numpy() for name in heads]
    )
    even = np.full(len(others), 1 / len(others))
    shares = even
    if half == "fitted" and len(others) > 1:
        shares = convex_weights(log_p[:-1], labels, N, even, 1.0)
    elif half == "ensemble":
        shares = np.array([readout.weights(others)[name] for name in others]) / alone[:-1]
    shares = shares.clip(min=1e-6)
    center = np.append(shares / shares.sum() / 2, 0.5)
    weights = convex_weights(log_p, labels, N, center, PULL)
    fused = np.append(np.zeros(len(others)), 1.0)

    def right_and_loss(w: np.ndarray) -> tuple[np.ndarray, float]:
        pooled = torch.from_numpy(np.tensordot(w, log_p, 1))
        return (pooled.argmax(dim=1).numpy() == labels).astype(int), float(
            F.cross_entropy(pooled, torch.from_numpy(labels))
        )

    right, most = right_and_loss(fused)
    for t in np.linspace(0, 1, 21):
        w = (1 - t) * weights + t * fused
        now, loss = right_and_loss(w)
        lead = right - now
        few = slack == np.inf or lead.sum() <= slack * np.sqrt((lead**2).sum())
        if few and loss <= most + 1e-12:
            break
    all_heads = frozenset((*readout.modalities, FUSED))
    new = dict.fromkeys(all_heads, 0.0) | dict(zip(heads, (alone * w).tolist(), strict=True))
    return replace(readout, fitted={**readout.fitted, all_heads: new})


def own_rows(split: Split, head: str) -> tuple[Tensor, Tensor]:
    """The logits and labels of the rows that have the head's modality."""
    rows = split.masks.get(head, torch.ones(len(split.labels), dtype=torch.bool))
    return split.logits[head][rows], split.labels[rows]


def calibrated_loss(split: Split, head: str) -> float:
    """The log-loss of a head after temperature scaling, in nats."""
    logits, labels = own_rows(split, head)
    log_p = logits.double().log_softmax(dim=1).numpy()[None]
    weight = convex_weights(log_p, labels.numpy(), float(len(labels)), np.ones(1), 1.0)[0]
    return float(F.cross_entropy(torch.from_numpy(weight * log_p[0]), labels))


def error(split: Split, head: str) -> float:
    """The share of wrong answers of a head in the rows that have its modality."""
    logits, labels = own_rows(split, head)
    return float((logits.argmax(dim=1) != labels).double().mean())


def parts(suite: Suite, run: Run) -> dict[str, Any]:
    """Train the default, and take its accuracy apart."""
    recorder = Recorder(suite)
    line = train(suite, run, [recorder])
    trajectory = line["trajectory"]
    of_stage_1 = {
        step for step, stage in zip(trajectory["step"], trajectory["stage"], strict=True) if stage == 1
    }
    # The rule of the default pauses a modality only to let it wait, and its head then has no weight.
    excluded = tuple(
        {
            name
            for step, paused in zip(trajectory["step"], trajectory["paused"], strict=True)
            for name in paused
            if step in of_stage_1
        }
    )
    steps = list(recorder.steps)
    epochs = dict.fromkeys(suite.modalities, steps)
    epochs[FUSED] = [step for step in steps if step not in of_stage_1]
    best, by_loss = recorder.best(error, epochs), recorder.best(calibrated_loss, epochs)
    validation, test = recorder.at(best, "validation"), recorder.at(best, "test")
    tried = {
        "mean, loss alone": candidate(validation, excluded, "mean", np.inf),
        "fitted shares, one standard error": candidate(validation, excluded, "fitted", 1.0),
        "fitted shares, loss alone": candidate(validation, excluded, "fitted", np.inf),
        "ensemble, loss alone": candidate(validation, excluded, "ensemble", np.inf),
    }
    candidates = {name: test.figures(readout(test.logits, test.masks)) for name, readout in tried.items()}
    readout = validation.fit(excluded)
    log_p = readout(test.logits, test.masks)
    groups = validation.groups
    N = len(validation.labels) if groups is None else len(groups.unique())
    bias = class_biases(
        readout(validation.logits, validation.masks).double().numpy(), validation.labels.numpy(), N
    )
    candidates["class biases"] = test.figures(log_p.double() + torch.from_numpy(bias))
    late = recorder.at(by_loss, "test")
    candidates["epochs by calibrated loss"] = late.figures(
        recorder.at(by_loss, "validation").fit(excluded)(late.logits, late.masks)
    )
    answered = {
        "own ensemble": line["test"][CALIBRATED_ENSEMBLE],
        "fused head": line["test"][FUSED],
        "readout": line["test"][CALIBRATED],
        **{f"head {name}": line["test"][name] for name in suite.modalities},
    }
    figures = {"test": {**answered, "hindsight": max(answered.values())}, "validation": {}}
    figures["validation"] = {
        "own ensemble": line["validation"][CALIBRATED_ENSEMBLE],
        "fused head": line["validation"][FUSED],
        "readout": line["validation"][CALIBRATED],
        **{f"head {name}": line["validation"][name] for name in suite.modalities},
    }
    last = max(of_stage_1, default=None)
    if last is not None:
        for name in ("validation", "test"):
            part = recorder.at(dict.fromkeys(best, last), name)
            for modality in suite.modalities:
                figures[name][f"head {modality}, end of stage 1"] = 1 - error(part, modality)
    return {
        **figures,
        "kept": test.figures(log_p),
        "candidates": candidates,
        "right": {"readout": test.right_by_group(log_p)},
    }


def rivals_right(suite: Suite, recorder: Recorder) -> dict[str, list[int]]:
    """Right test rows by group of the calibrated ensemble and of a stacking of heads that were trained alone."""
    best = recorder.best(error, {name: list(recorder.steps) for name in suite.modalities})
    validation, test = recorder.at(best, "validation"), recorder.at(best, "test")
    prior = suite.train.labels.bincount(minlength=suite.num_classes).log()
    answered = [
        {
            name: z.where(split.masks[name][:, None], prior).log_softmax(dim=1)
            for name, z in split.logits.items()
        }
        for split in (validation, test)
    ]
    stacking = Stacking(answered[0], validation.labels, validation.groups)
    return {
        "rival ensemble": test.right_by_group(validation.fit(())(test.logits, test.masks)),
        "rival stacking": test.right_by_group(stacking(answered[1])),
    }


def train_both(suite: Suite, seed: int) -> dict[str, Any]:
    """The line of a suite and seed."""
    lines = read_lines(runs_path(COMPARISON, suite.name, "adamw"))
    runs = {}
    for name in ("two-stage", "calibrated-ensemble"):
        method = METHODS[name]
        setting = chosen_setting(lines, method, settings_of(method, suite, "adamw"), 0)
        if setting is None:
            raise SystemExit(
                f"{name} has no chosen rate on {suite.name}; run compare.py --suite {suite.name} --methods {name}."
            )
        runs[name] = Run(setting, seed)
    recorder = Recorder(suite)
    rival = train(suite, runs["calibrated-ensemble"], [recorder])
    figures = parts(suite, runs["two-stage"])
    for split in ("test", "validation"):
        figures[split]["rival ensemble"] = rival[split][CALIBRATED_ENSEMBLE]
        figures[split]["rival best single"] = rival[split][BEST_SINGLE]
        figures[split]["rival stacking"] = rival[split][STACKING]
    figures["right"] |= rivals_right(suite, recorder)
    groups = torch.arange(len(suite.test)) if suite.test.groups is None else suite.test.groups
    figures["rows"] = groups.unique(return_counts=True)[1].tolist()
    return {"suite": suite.name, "seed": seed, **figures, **environment("transformers", "accelerate")}


def interval_of_rows(lines: Sequence[Mapping[str, Any]], other: str) -> tuple[float, float]:
    """95 % interval of the readout's accuracy minus another one's, in points, for other seeds and other test groups.

    Seeds and groups are drawn with replacement, `REPLICATES` times.
    """
    rows = np.array(lines[0]["rows"])
    ahead = np.array([np.subtract(line["right"]["readout"], line["right"][other]) for line in lines])
    draw = np.random.default_rng(0)
    drawn = []
    for _ in range(REPLICATES):
        seeds, groups = (draw.integers(size, size=size) for size in ahead.shape)
        drawn.append(100 * ahead[seeds].mean(axis=0)[groups].sum() / rows[groups].sum())
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def report(lines: list[dict[str, Any]]) -> str:
    """Means over seeds in %, and what each candidate changes, with the 95 % interval of paired seeds."""
    texts = []
    for suite in dict.fromkeys(line["suite"] for line in lines):
        mine = [line for line in lines if line["suite"] == suite]
        texts += [
            f"## {suite}, {len(mine)} seeds",
            "",
            "| accuracy in % | test | validation |",
            "| --- | --- | --- |",
        ]
        for key in mine[0]["test"]:
            cells = [
                f"{100 * mean(line[split][key] for line in mine):.1f}" if key in mine[0][split] else ""
                for split in ("test", "validation")
            ]
            texts.append(f"| {key} | {' | '.join(cells)} |")
        texts += [
            "",
            "| default minus | points, 95 % of seeds | 95 % of seeds and groups |",
            "| --- | --- | --- |",
        ]
        for name in mine[0]["right"]:
            if name != "readout":
                difference, half = interval(
                    [100 * (line["test"]["readout"] - line["test"][name]) for line in mine]
                )
                low, high = interval_of_rows(mine, name)
                texts.append(f"| {name} | {difference:+.1f} ± {half:.1f} | {low:+.1f} to {high:+.1f} |")
        texts += ["", "| in place of the readout | accuracy | log-loss, nats |", "| --- | --- | --- |"]
        for name in mine[0]["candidates"]:
            cells = []
            for place, scale, digits in ((0, 100, 2), (1, 1, 3)):
                gains = [scale * (line["candidates"][name][place] - line["kept"][place]) for line in mine]
                difference, half = interval(gains)
                cells.append(f"{difference:+.{digits}f} ± {half:.{digits}f}")
            texts.append(f"| {name} | {' | '.join(cells)} |")
        texts.append("")
    return "\n".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--seeds", type=int, default=15, help="how many")
    parser.add_argument("--report", action="store_true", help="make the table of what is there")
    args = parser.parse_args()
    if not args.suite and not args.report:
        parser.error("give --suite, or --report")
    torch.set_num_threads(1)
    for name in args.suite:
        suite = load_suite(name)
        done = {(line["suite"], line["seed"]) for line in read_lines(RESULTS)}
        for seed in range(args.seeds):
            if (name, seed) not in done:
                out, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115  probes are of no interest
                try:
                    line = train_both(suite, seed)
                finally:
                    sys.stdout = out
                append_line(RESULTS, line)
    print(report(read_lines(RESULTS)))


if __name__ == "__main__":
    main()
