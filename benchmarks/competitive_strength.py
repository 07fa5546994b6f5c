"""Effective competitive strength on a model where everything is known: does it decide what joint training learns?

    OMP_NUM_THREADS=1 python benchmarks/competitive_strength.py --seeds 12

simulates the bimodal model of Huang et al. 2022 (`bimodal.py`) with K classes, many seeds at once, by full-batch
gradient descent, and writes benchmarks/results/competitive_strength.json and .png:

1. winner: does the modality with the larger strength at the start fit the class first? (K = 8, 16, 32) Beside it what
   the alignment alone would say, the information at the start, and who is first when both are trained alone: the best
   that can be said before joint training. Then the same for other K (6, 12, 24, 48) with other seeds.
2. error: of joint training, of each modality alone, and of unimodal training followed by joint training with the same
   number of modality-steps in all, over K = 4 ... 64, with the exponents of K fitted. A row that a model does not know
   is guessed right with probability 1/K; the exponents are given without such guesses, too, of error / (1 - 1/K).
   With 8 neurons a class has none that points along it with probability 2^-8, and a modality never learns it: a share
   (1/K + 2^-8)^2 of rows unknown to both falls as K^-1.86 over these K, not as K^-2.
3. shaping: the loser of a class has its weights multiplied before joint training; from which ratio of strengths on does
   it win? All of its weights, or only their part along the class.
4. proxy: rank correlation of the mutual information of each modality's answers about the label with its strength, over
   states that unimodal training reaches after different numbers of steps. On real encoders: `information_proxy.py`.

Intervals are 95 %, from a bootstrap over seeds.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bimodal import MODALITIES, PER_CLASS, alignment, error, information, sample, start_of, strength, train
from environment import environment
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
WINNER_CLASSES = (8, 16, 32)
OTHER_CLASSES = (6, 12, 24, 48)
ERROR_CLASSES = (4, 8, 16, 32, 64)
SHAPED_CLASSES = 16
# Standard deviation of the weights at the start.
SCALE = 0.004
# Steps of unimodal training, and of the joint training after it.
STEPS, JOINT_STEPS = 120, 60
RATIOS = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0)
PREDICTIONS = {
    "predicted": "strength",
    "by_alignment": "alignment",
    "by_information": "information",
    "by_speed_alone": "who is first alone",
}


def winner_of(moment: Tensor) -> Tensor:
    """(S, K): the modality that left the bend first, -1 where none did."""
    return torch.where(moment.isinf().all(-1), -1, moment.argmin(-1))


def simulate(classes: int, seeds: int, seed: int, errors: bool = True) -> dict[str, Any]:
    """One K: who wins, and what is predicted of it; and the errors. Tensors (S,), one entry per seed."""
    generator = torch.Generator().manual_seed(seed + classes)
    problem, start = start_of(classes, seeds, SCALE, generator)
    # As many modality-steps as both stages have together.
    joint, moment = train(start, problem, True, STEPS + JOINT_STEPS, until_decided=not errors)
    alone, moment_alone = train(start, problem, False, STEPS, until_decided=not errors)
    winner = winner_of(moment)
    predictions = {
        "predicted": strength(start, problem).argmax(-1),
        "by_alignment": alignment(start, problem).amax(-1).argmax(-1),
        "by_information": information(start, problem).argmax(-1),
        "by_speed_alone": winner_of(moment_alone),
    }
    result: dict[str, Any] = {
        name: (predicted == winner).float().mean(1) for name, predicted in predictions.items()
    }
    result["decided"] = (winner >= 0).float().mean(1)
    if not errors:
        return result
    result["ahead_at_the_end"] = (alignment(joint, problem).amax(-1).argmax(-1) == winner).float().mean(1)
    staged, _ = train(alone, problem, True, JOINT_STEPS)
    parts: dict[str, list[Tensor]] = {}
    # 1 / K^2 of the samples fail in both modalities: enough of them are drawn to see it, a part at a time.
    for _ in range(max(8, classes // 4)):
        test = sample(PER_CLASS * classes, problem.directions, generator)
        parts.setdefault("joint", []).append(error(joint, test))
        parts.setdefault("two_stage", []).append(error(staged, test))
        parts.setdefault("first alone", []).append(error(alone, test, (0,)))
        parts.setdefault("second alone", []).append(error(alone, test, (1,)))
    result["errors"] = {name: torch.stack(values).mean(0) for name, values in parts.items()}
    return result


def shape(seeds: int, seed: int, whole: bool) -> np.ndarray:
    """How often the weaker modality of a class wins when its strength is set to a ratio of the stronger's.

    Args:
        seeds: how many.
        seed: of the random generator.
        whole: multiply all weights of the class's neurons, or only what points along the class.

    Returns:
        (S, ratios), shares of the classes that can be shaped: a class whose loser does not point along it cannot.
    """
    generator = torch.Generator().manual_seed(seed + 1000)
    problem, start = start_of(SHAPED_CLASSES, seeds, SCALE, generator)
    before = strength(start, problem)
    loser = before.argmin(-1)
    usable = before.amin(-1) > 0
    factor = before.amax(-1) / before.amin(-1).clamp_min(1e-12)
    shares = []
    for ratio in RATIOS:
        scaled = []
        for m in range(MODALITIES):
            times = torch.where((loser == m) & usable, factor * ratio, 1.0)[:, None, :, None]
            # (S, D, K, 1)
            basis = problem.directions[m].unsqueeze(3)
            along = start[m] if whole else (start[m] * basis).sum(1, keepdim=True) * basis
            scaled.append(start[m] + (times - 1) * along)
        _, moment = train(scaled, problem, True, STEPS, until_decided=True)
        won = (winner_of(moment) == loser) & usable
        shares.append(won.sum(1) / usable.sum(1))
    return torch.stack(shares, 1).numpy()


def flip(shares: np.ndarray) -> float:
    """The ratio of strengths at which half of the losers win, between the measured ones, of shares (S, ratios)."""
    return float(np.interp(0.5, np.maximum.accumulate(shares.mean(0)), RATIOS))


def proxy(classes: int, seeds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Strength and information (S, states): of each modality, averages over classes, along unimodal training."""
    generator = torch.Generator().manual_seed(seed + 2000)
    problem, weights = start_of(classes, seeds, SCALE, generator)
    strengths, bits = [], []
    for _ in range(8):
        strengths.append(strength(weights, problem).mean(1))
        bits.append(information(weights, problem).mean(1))
        weights, _ = train(weights, problem, False, STEPS // 8)
    return torch.cat(strengths, 1).numpy(), torch.cat(bits, 1).numpy()


def bootstrap(
    values: np.ndarray, statistic: Callable[[np.ndarray], Any], seed: int = 0, draws: int = 2000
) -> list[float]:
    """95 % interval of a statistic of values (seeds, ...) by drawing seeds."""
    rng = np.random.default_rng(seed)
    statistics = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(draws)]
    return np.percentile(statistics, (2.5, 97.5)).tolist()


def exponent(errors: np.ndarray, guesses: bool = True) -> float:
    """Slope of log error against log K, of errors (seeds, K); without the rows that are guessed right, if asked."""
    k = np.asarray(ERROR_CLASSES, float)
    shares = errors.mean(0) / (1.0 if guesses else 1 - 1 / k)
    return float(np.polyfit(np.log(k), np.log(np.maximum(shares, 1e-9)), 1)[0])


def winners_of(runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What is predicted right, for each K and over all of them, every class of every K counting alike."""
    rows = []
    for k, run in runs.items():
        row: dict[str, Any] = {"classes": k}
        row |= {key: float(run[key].mean()) for key in ("decided", "ahead_at_the_end") if key in run}
        for key in PREDICTIONS:
            row[key] = float(run[key].mean())
            row[f"{key}_interval"] = bootstrap(run[key].numpy(), np.mean)
        rows.append(row)
    weights = np.array(list(runs)) / sum(runs)
    right = np.stack([run["predicted"].numpy() for run in runs.values()], 1) @ weights
    return {"share": float(right.mean()), "interval": bootstrap(right, np.mean), "rows": rows}


def exponents_of(runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The errors for each K, and the exponents with and without guesses."""
    results: dict[str, Any] = {}
    for name in ("joint", "two_stage"):
        errors = np.stack([run["errors"][name].numpy() for run in runs.values()], 1)
        for suffix, guesses in (("", True), ("_without_guesses", False)):
            results[f"{name}_exponent{suffix}"] = exponent(errors, guesses)
            results[f"{name}_exponent{suffix}_interval"] = bootstrap(
                errors, lambda e, g=guesses: exponent(e, g)
            )
    results["errors"] = [
        {"classes": k, **{name: float(v.mean()) for name, v in run["errors"].items()}}
        for k, run in runs.items()
    ]
    return results


def shaping_of(seeds: int, seed: int) -> dict[str, Any]:
    """Where the winner flips, with the share of flipped classes at every ratio."""
    results: dict[str, Any] = {"classes": SHAPED_CLASSES, "ratios": RATIOS, "predicted_flip": 1.0}
    for name, whole in (("weights", True), ("alignment", False)):
        shares = shape(seeds, seed, whole)
        results[name] = {
            "flipped": shares.mean(0).tolist(),
            "flipped_interval": np.transpose([bootstrap(column, np.mean) for column in shares.T]).tolist(),
            "flip": flip(shares),
            "flip_interval": bootstrap(shares, flip),
        }
    return results


def proxy_of(seeds: int, seed: int) -> dict[str, Any]:
    """Rank correlation of information with strength."""
    # (S, states, 2)
    both = np.stack(proxy(SHAPED_CLASSES, seeds, seed), 2)

    def correlation(values: np.ndarray) -> float:
        return float(spearmanr(*values.reshape(-1, 2).T).statistic)

    return {
        "classes": SHAPED_CLASSES,
        "states": both.shape[0] * both.shape[1],
        "spearman": correlation(both),
        "interval": bootstrap(both, correlation),
    }


def draw(result: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.25, 1))
    k = [row["classes"] for row in result["errors"]]
    for name in ("joint", "two_stage", "first alone", "second alone"):
        label = name.replace("_", "-")
        if name in ("joint", "two_stage"):
            label += f", $K^{{{result[f'{name}_exponent']:.2f}}}$"
        left.plot(k, [row[name] for row in result["errors"]], "o-", label=label)
    left.plot(k, [1 / x for x in k], "k:", lw=1, label="1/K")
    left.plot(k, [1 / x**2 for x in k], "k--", lw=1, label="1/K²")
    left.set(xscale="log", yscale="log", xlabel="classes K", ylabel="test error")
    left.xaxis.set_major_locator(FixedLocator(k))
    left.xaxis.set_minor_locator(NullLocator())
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xticks(k, [str(x) for x in k])
    left.legend(fontsize=8)
    rows = result["winners"]
    for place, (key, label) in enumerate(PREDICTIONS.items()):
        values = [row[key] for row in rows]
        bounds = np.abs(np.array([row[f"{key}_interval"] for row in rows]).T - values)
        spots = [x + 0.2 * (place - 1.5) for x in range(len(rows))]
        middle.bar(spots, values, 0.19, yerr=bounds, capsize=3, label=label)
    middle.axhline(0.95, color="k", ls=":", lw=1)
    middle.set_xticks(range(len(rows)), [f"K = {row['classes']}" for row in rows])
    middle.set(ylabel="share of classes whose winner is predicted", ylim=(0.4, 1.02))
    middle.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    shaping = result["shaping"]
    for name, label in (("weights", "all weights multiplied"), ("alignment", "only along the class")):
        values, bounds = shaping[name]["flipped"], shaping[name]["flipped_interval"]
        line = right.plot(
            shaping["ratios"], values, "o-", ms=4, label=f"{label}: flips at {shaping[name]['flip']:.2f}"
        )
        right.fill_between(shaping["ratios"], *bounds, alpha=0.2, color=line[0].get_color())
    right.axvline(1.0, color="k", ls=":", lw=1)
    right.set(xlabel="strength of the shaped loser / the other's", ylabel="share of classes that it wins")
    right.legend(fontsize=8, loc="lower right")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    figure.suptitle(
        "Who wins a class in joint training, and what it costs (synthetic model, every answer known)"
    )
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=12, help="data sets and initial weights per K")
    parser.add_argument("--seed", type=int, default=0, help="of the random generator")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds is {options.seeds}; an interval over seeds needs at least 2")
    started, seeds, seed = time.perf_counter(), options.seeds, options.seed
    with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        # the longest first
        runs = {k: pool.submit(simulate, k, seeds, seed) for k in reversed(ERROR_CLASSES)}
        others = {k: pool.submit(simulate, k, seeds, seed + 1000, False) for k in reversed(OTHER_CLASSES)}
        shaping = pool.submit(shaping_of, seeds, seed)
        correlation = pool.submit(proxy_of, seeds, seed)
        simulated = {k: runs[k].result() for k in tqdm(ERROR_CLASSES, "classes K")}
        winners = winners_of({k: simulated[k] for k in WINNER_CLASSES})
        result: dict[str, Any] = {
            **environment("scipy"),
            "seeds": seeds,
            "scale": SCALE,
            "winner_predicted": winners["share"],
            "winner_predicted_interval": winners["interval"],
            "winners": winners["rows"],
            "other_classes": winners_of({k: others[k].result() for k in OTHER_CLASSES}),
            **exponents_of(simulated),
            "shaping": shaping.result(),
            "proxy": correlation.result(),
        }
    result["seconds"] = time.perf_counter() - started
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "competitive_strength.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(result, options.output / "competitive_strength.png")
    report(result)
    return 0 if math.isfinite(result["two_stage_exponent"]) else 1


def report(result: dict[str, Any]) -> None:
    """The figures, line by line."""

    def shown(value: float, interval: list[float], digits: int = 3) -> str:
        return f"{value:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"

    print(
        f"winner predicted: {shown(result['winner_predicted'], result['winner_predicted_interval'])} of classes, "
        f"K = 8, 16, 32; {shown(result['other_classes']['share'], result['other_classes']['interval'])}, other seeds, "
        "K = 6, 12, 24, 48"
    )
    for row in [*result["winners"], *result["other_classes"]["rows"]]:
        values = ", ".join(f"by {name} {row[key]:.3f}" for key, name in PREDICTIONS.items())
        end = f"; still ahead at the end {row['ahead_at_the_end']:.3f}" if "ahead_at_the_end" in row else ""
        print(f"K = {row['classes']:2}: {values}{end}")
    for row in result["errors"]:
        k = row["classes"]
        print(
            f"K = {k:2}: error joint {row['joint']:.4f}, two-stage {row['two_stage']:.4f}, alone "
            f"{row['first alone']:.4f} / {row['second alone']:.4f} (1/K {1 / k:.4f}, 1/K^2 {1 / k**2:.4f})"
        )
    for key in [key for key in result if "exponent" in key and not key.endswith("interval")]:
        print(f"{key}: {shown(result[key], result[f'{key}_interval'], 2)}")
    for name in ("weights", "alignment"):
        shaped = result["shaping"][name]
        print(f"shaping the {name}: flips at {shown(shaped['flip'], shaped['flip_interval'])}, predicted 1")
    correlation = result["proxy"]
    print(
        f"information against strength: rank correlation {shown(correlation['spearman'], correlation['interval'], 2)}"
    )


if __name__ == "__main__":
    sys.exit(main())
