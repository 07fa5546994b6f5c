"""Effective competitive strength on a model where everything is known: does it decide what joint training learns?

    python benchmarks/competitive_strength.py

simulates the bimodal model of Huang et al. 2022 (arXiv 2203.12221) with K classes, many seeds at once, by full-batch
gradient descent, and writes benchmarks/results/competitive_strength.json and .png:

1. winner: does the modality with the larger strength at the start fit the class first? (K = 8, 16, 32)
2. error: of joint training, of each modality alone, and of unimodal training followed by joint training, over
   K = 4 ... 64, with the exponents of K fitted. Stage 1 and stage 2 of the two-stage run have together as many
   modality-steps as the joint run's, times 1.5.
3. shaping: the loser of a class has its weights multiplied before joint training; at which ratio of strengths does
   it win?
4. proxy: rank correlation of the mutual information of each modality's logits about the label with its strength, over
   states that unimodal training reaches after different numbers of steps.

Modality r of a sample of class j shows its class with strength z in [1, 2], but with probability 1/K, independently in
each modality, hardly at all (under 0.02); other classes show now and then, under 0.1. Intervals are 95 %, from a
bootstrap over seeds.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from environment import environment
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from ecsfusion import competitive_strength
from ecsfusion.competition import smoothed_relu

RESULTS = Path(__file__).parent / "results"
MODALITIES = 2
ORDER, THRESHOLD = 3, 0.5
NEURONS = 8
INITIAL = 0.01  # standard deviation of the weights at the start
NOISE = 0.1
PER_CLASS = 60  # training samples
STEPS = 60  # of joint training, at the learning rate K / 2: time runs K times slower with K classes
WINNER_CLASSES = (8, 16, 32)
ERROR_CLASSES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)


class Problem(NamedTuple):
    """S data sets with K classes; lists have one entry per modality."""

    labels: Tensor  # (S, N)
    inputs: list[Tensor]  # (S, N, K)
    strengths: list[Tensor]  # (S, N): z of the sample's own class
    sufficient: list[Tensor]  # (S, N)
    directions: list[Tensor]  # (S, K, K), orthonormal columns: where a class shows


def directions_of(seeds: int, classes: int, generator: torch.Generator) -> list[Tensor]:
    draws = (torch.randn(seeds, classes, classes, generator=generator) for _ in range(MODALITIES))
    return [torch.linalg.qr(draw).Q for draw in draws]


def sample(number: int, directions: list[Tensor], generator: torch.Generator) -> Problem:
    """`number` samples of each data set."""
    seeds, _, classes = directions[0].shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    labels = torch.randint(classes, (seeds, number), generator=generator)
    inputs, strengths, sufficient = [], [], []
    for basis in directions:
        shown = 0.1 * uniform(seeds, number, classes)
        shown *= uniform(seeds, number, classes) < 1 / classes
        enough = uniform(seeds, number) >= 1 / classes
        own = torch.where(enough, 1 + uniform(seeds, number), 0.02 * uniform(seeds, number))
        shown.scatter_(2, labels.unsqueeze(2), own.unsqueeze(2))
        noise = NOISE * torch.randn(seeds, number, classes, generator=generator)
        inputs.append(shown @ basis.mT + noise)
        strengths.append(own)
        sufficient.append(enough)
    return Problem(labels, inputs, strengths, sufficient, directions)


def initial_weights(problem: Problem, generator: torch.Generator) -> list[Tensor]:
    """(S, D, K, L) per modality."""
    seeds, width, classes = problem.directions[0].shape
    shape = (seeds, width, classes, NEURONS)
    return [INITIAL * torch.randn(shape, generator=generator) for _ in range(MODALITIES)]


def logits(inputs: Tensor, weights: Tensor) -> Tensor:
    """(S, N, K) of one modality: the sum of each class's neurons."""
    products = inputs @ weights.flatten(2)
    return smoothed_relu(products, ORDER, THRESHOLD).unflatten(2, weights.shape[2:]).sum(-1)


def alignment(weights: list[Tensor], problem: Problem) -> Tensor:
    """(S, K, M, L): how far every neuron points along its class."""
    both = zip(weights, problem.directions, strict=True)
    return torch.stack([torch.einsum("sdkl,sdk->skl", w, basis) for w, basis in both], 2)


def strength(weights: list[Tensor], problem: Problem) -> Tensor:
    """Effective competitive strength (S, K, M)."""
    signals = []
    for own, enough in zip(problem.strengths, problem.sufficient, strict=True):
        cubes = torch.where(enough, own**ORDER, 0.0)
        zero = torch.zeros(len(cubes), problem.directions[0].shape[2])
        signals.append(zero.scatter_add(1, problem.labels, cubes))
    number = problem.labels.shape[1]
    return competitive_strength(
        alignment(weights, problem), torch.stack(signals, 2), number, ORDER, THRESHOLD
    )


def train(weights: list[Tensor], problem: Problem, joint: bool, steps: int) -> tuple[list[Tensor], Tensor]:
    """Gradient descent on the cross-entropy of the sum (joint) or of each modality by itself.

    Returns the weights and, (S, K), which modality's neurons first left the bend of the activation (-1: none).
    """
    classes = weights[0].shape[2]
    number = problem.labels.shape[1]
    weights = [w.clone().requires_grad_() for w in weights]
    winner = torch.full((len(problem.labels), classes), -1)
    for _ in range(steps):
        outputs = [logits(x, w) for x, w in zip(problem.inputs, weights, strict=True)]
        outputs = [sum(outputs[1:], outputs[0])] if joint else outputs
        target = problem.labels.flatten()
        loss = sum(cross_entropy(z.flatten(0, 1), target, reduction="sum") for z in outputs) / number
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for w, gradient in zip(weights, gradients, strict=True):
                w -= classes / 2 * gradient
            reach = alignment(weights, problem).amax(-1)
            decided = (winner < 0) & (reach.amax(-1) >= THRESHOLD)
            winner = torch.where(decided, reach.argmax(-1), winner)
    return [w.detach() for w in weights], winner


def error(weights: list[Tensor], problem: Problem, modalities: tuple[int, ...] = (0, 1)) -> Tensor:
    """Share of wrong answers of the sum of these modalities' logits, (S,)."""
    outputs = [logits(problem.inputs[m], weights[m]) for m in modalities]
    return (sum(outputs[1:], outputs[0]).argmax(-1) != problem.labels).float().mean(1)


def simulate(classes: int, seeds: int, seed: int) -> dict[str, Any]:
    """One K: who wins, and the errors; per seed."""
    generator = torch.Generator().manual_seed(seed + classes)
    problem = sample(PER_CLASS * classes, directions_of(seeds, classes, generator), generator)
    start = initial_weights(problem, generator)
    before = strength(start, problem)
    joint, winner = train(start, problem, True, STEPS)
    alone, _ = train(start, problem, False, STEPS)
    staged, _ = train(alone, problem, True, STEPS // 2)
    errors: dict[str, list[Tensor]] = {}
    # 1 / K^2 of the samples fail in both modalities: enough of them are drawn to see it, a part at a time.
    for _ in range(max(8, classes)):
        test = sample(PER_CLASS * classes, problem.directions, generator)
        errors.setdefault("joint", []).append(error(joint, test))
        errors.setdefault("two_stage", []).append(error(staged, test))
        errors.setdefault("first alone", []).append(error(alone, test, (0,)))
        errors.setdefault("second alone", []).append(error(alone, test, (1,)))
    right = before.argmax(-1) == winner
    gamma = alignment(start, problem).amax(-1)
    return {
        "classes": classes,
        "right": right.float().mean(1),
        "right_by_alignment": (gamma.argmax(-1) == winner).float().mean(1),
        "decided": (winner >= 0).float().mean(1),
        "errors": {name: torch.stack(parts).mean(0) for name, parts in errors.items()},
    }


def shape(classes: int, seeds: int, seed: int) -> list[dict[str, float]]:
    """How often the weaker modality of a class wins when its strength is set to a ratio of the stronger's."""
    generator = torch.Generator().manual_seed(seed + 1000)
    problem = sample(PER_CLASS * classes, directions_of(seeds, classes, generator), generator)
    start = initial_weights(problem, generator)
    before = strength(start, problem)
    loser = before.argmin(-1)
    factor = before.amax(-1) / before.amin(-1).clamp_min(1e-12)
    # A class whose loser does not point along it at all cannot be shaped by a factor.
    usable = before.amin(-1) > 0
    found = []
    for ratio in RATIOS:
        scaled = []
        for m in range(MODALITIES):
            times = torch.where((loser == m) & usable, factor * ratio, 1.0)
            scaled.append(start[m] * times[:, None, :, None])
        _, winner = train(scaled, problem, True, STEPS)
        flipped = ((winner == loser) & usable).sum() / usable.sum()
        found.append({"ratio": ratio, "flipped": float(flipped)})
    return found


def proxy(classes: int, seeds: int, seed: int) -> dict[str, Any]:
    """Strength and mutual information of each modality along unimodal training."""
    generator = torch.Generator().manual_seed(seed + 2000)
    problem = sample(PER_CLASS * classes, directions_of(seeds, classes, generator), generator)
    weights = initial_weights(problem, generator)
    strengths, information = [], []
    for _ in range(8):
        strengths.append(strength(weights, problem).mean(1))
        information.append(torch.stack([_information(weights, problem, m) for m in range(MODALITIES)], 1))
        weights, _ = train(weights, problem, False, STEPS // 8)
    a, b = torch.stack(strengths).flatten().numpy(), torch.stack(information).flatten().numpy()
    correlation = spearmanr(a, b)
    rng = np.random.default_rng(seed)
    draws = [spearmanr(a[i], b[i]).statistic for i in (rng.integers(0, len(a), len(a)) for _ in range(200))]
    interval = np.percentile(draws, (2.5, 97.5)).tolist()
    return {"spearman": float(correlation.statistic), "interval": interval, "states": len(a)}


def _information(weights: list[Tensor], problem: Problem, modality: int) -> Tensor:
    """I(prediction; label) in bits, (S,)."""
    predicted = logits(problem.inputs[modality], weights[modality]).argmax(-1)
    classes = weights[0].shape[2]
    cells = predicted * classes + problem.labels
    counts = torch.zeros(len(cells), classes * classes).scatter_add(1, cells, torch.ones_like(cells).float())
    p = counts.unflatten(1, (classes, classes)) / cells.shape[1]
    independent = p.sum(1, keepdim=True) * p.sum(2, keepdim=True)
    return torch.where(p > 0, p * (p / independent.clamp_min(1e-12)).log2(), 0.0).sum((1, 2))


def bootstrap(values: np.ndarray, statistic: Any, seed: int = 0) -> list[float]:
    """95 % interval of a statistic of values (seeds, ...) by drawing seeds."""
    rng = np.random.default_rng(seed)
    draws = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(2000)]
    return np.percentile(draws, (2.5, 97.5)).tolist()


def exponent(errors: np.ndarray) -> float:
    """Slope of log error against log K, of errors (seeds, K)."""
    x = np.log(np.asarray(ERROR_CLASSES, float))
    y = np.log(np.maximum(errors.mean(0), 1e-9))
    return float(np.polyfit(x, y, 1)[0])


def draw(result: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    k = [row["classes"] for row in result["errors"]]
    for name in ("joint", "two_stage", "first alone", "second alone"):
        told = name.replace("_", "-")
        if name in ("joint", "two_stage"):
            told += f", K^{result[f'{name}_exponent']:.2f}"
        left.plot(k, [row[name] for row in result["errors"]], "o-", label=told)
    left.plot(k, [1 / x for x in k], "k:", lw=1, label="1/K")
    left.plot(k, [1 / x**2 for x in k], "k--", lw=1, label="1/K²")
    left.set(xscale="log", yscale="log", xlabel="classes K", ylabel="test error")
    left.legend(fontsize=8)
    rows = result["winners"]
    places = range(len(rows))
    for offset, key, told in ((-0.2, "predicted", "strength"), (0.2, "by_alignment", "alignment alone")):
        values = [row[key] for row in rows]
        bounds = np.abs(np.array([row[f"{key}_interval"] for row in rows]).T - values)
        middle.bar([x + offset for x in places], values, 0.38, yerr=bounds, capsize=4, label=told)
    middle.axhline(0.95, color="k", ls=":", lw=1)
    middle.set(xticks=list(places), xticklabels=[f"K = {row['classes']}" for row in rows], ylim=(0.8, 1.0))
    middle.set_ylabel("share of classes whose winner is predicted")
    middle.legend(fontsize=8, loc="lower right")
    points = result["shaping"]["points"]
    right.plot([p["ratio"] for p in points], [p["flipped"] for p in points], "o-")
    right.axvline(1.0, color="k", ls=":", lw=1)
    right.set(xlabel="strength of the shaped modality / the other's", ylabel="share of classes that it wins")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    figure.suptitle(
        "Who wins a class in joint training, and what it costs (synthetic model, every answer known)"
    )
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20, help="data sets and initial weights per K")
    parser.add_argument("--seed", type=int, default=0, help="of the random generator")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds is {options.seeds}; an interval over seeds needs at least 2")
    started = time.perf_counter()
    runs = {k: simulate(k, options.seeds, options.seed) for k in tqdm(ERROR_CLASSES, "classes K")}
    winners = []
    for k in WINNER_CLASSES:
        row: dict[str, Any] = {"classes": k, "decided": float(runs[k]["decided"].mean())}
        for key, values in (("predicted", runs[k]["right"]), ("by_alignment", runs[k]["right_by_alignment"])):
            row[key] = float(values.mean())
            row[f"{key}_interval"] = bootstrap(values.numpy(), np.mean)
        winners.append(row)
    # Every class of every K counts alike.
    weights = np.array(WINNER_CLASSES) / sum(WINNER_CLASSES)
    right = np.stack([runs[k]["right"].numpy() for k in WINNER_CLASSES], 1) @ weights
    result: dict[str, Any] = {
        **environment("scipy"),
        "seeds": options.seeds,
        "winner_predicted": float(right.mean()),
        "winner_predicted_interval": bootstrap(right, np.mean),
        "winners": winners,
        "errors": [
            {"classes": k, **{name: float(v.mean()) for name, v in run["errors"].items()}}
            for k, run in runs.items()
        ],
    }
    for name in ("joint", "two_stage"):
        errors = np.stack([runs[k]["errors"][name].numpy() for k in ERROR_CLASSES], 1)
        result[f"{name}_exponent"] = exponent(errors)
        result[f"{name}_exponent_interval"] = bootstrap(errors, exponent)
    points = shape(16, options.seeds, options.seed)
    result["shaping"] = {"classes": 16, "points": points}
    result["proxy"] = proxy(16, options.seeds, options.seed)
    result["seconds"] = time.perf_counter() - started
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "competitive_strength.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(result, options.output / "competitive_strength.png")
    low, high = result["winner_predicted_interval"]
    print(
        f"winner predicted: {result['winner_predicted']:.3f} [{low:.3f}, {high:.3f}] of classes, K = 8, 16, 32"
    )
    for row in result["errors"]:
        k = row["classes"]
        print(
            f"K = {k:2}: error joint {row['joint']:.4f}, two-stage {row['two_stage']:.4f}, alone "
            f"{row['first alone']:.4f} / {row['second alone']:.4f} (1/K {1 / k:.4f}, 1/K^2 {1 / k**2:.4f})"
        )
    for name in ("joint", "two_stage"):
        low, high = result[f"{name}_exponent_interval"]
        print(f"exponent of K, {name}: {result[f'{name}_exponent']:.2f} [{low:.2f}, {high:.2f}]")
    print("shaping:", ", ".join(f"{p['ratio']:g}: {p['flipped']:.2f}" for p in points))
    print(f"mutual information against strength: rank correlation {result['proxy']['spearman']:.2f}")
    if not math.isfinite(result["two_stage_exponent"]):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
