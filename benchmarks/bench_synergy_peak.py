"""Has synergy a peak while every modality trains alone? By clusters, by the heads, and by new readouts.

    OMP_NUM_THREADS=1 python benchmarks/bench_synergy_peak.py --seeds 3

arXiv 2509.20840 starts joint training at the peak of synergy in unimodal training. Here every modality of a suite
trains alone for the whole budget, and each evaluation is decomposed in three ways:

- clusters: the probe of a run, the published way without its bias.
- heads: what the heads of the model say, calibrated on the evaluation rows; the product of the unimodal heads is what
  they know together.
- embeddings: held-out posteriors of readouts that are fitted to the embeddings (`fast_pid`).

A peak is interior if synergy is there above all of the first and all of the last two evaluations by more than two
standard deviations of what it moves between neighbouring evaluations of the second half. One JSON line per run in
benchmarks/results/synergy_peak.jsonl, and benchmarks/results/synergy_peak.png. A run that is there is not made again.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from protocol.training import Quiet, training_arguments
from suites import load_suite
from transformers import TrainerCallback, set_seed
from transformers.utils import logging

from ecsfusion import FusionForClassification, fast_pid, logit_pid
from ecsfusion.evaluation.outputs import Evaluation

RESULTS = Path(__file__).parent / "results"
SUITES = ("digits", "halves", "synergy", "cg-mnist")
WAYS = {"clusters": "#cc3311", "heads": "#ddaa33", "embeddings": "#0077bb"}
LEARNING_RATE = 3e-3
HEAD_ROWS = 400


class EachEvaluation(TrainerCallback):
    """Decomposes each evaluation of a run."""

    def __init__(self) -> None:
        self.trainer: Quiet
        self.synergy: dict[str, list[float]] = {way: [] for way in WAYS}
        self.steps: list[int] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Decompose what the evaluation before this call has seen."""
        latest = self.trainer.evaluator.latest("eval")
        if latest is None or latest.measurement.information is None:
            return
        self.steps.append(state.global_step)
        self.synergy["clusters"].append(latest.measurement.information.synergy)
        for way, value in decompositions(latest.outputs).items():
            self.synergy[way].append(value)


def decompositions(outputs: Evaluation) -> dict[str, float]:
    """Synergy in bits, of two modalities, by the heads and by new readouts."""
    names = list(outputs.embeddings)
    labels = outputs.labels
    # With rows as atoms the table has as many cells as pairs of rows.
    rows = torch.linspace(0, len(labels) - 1, min(len(labels), HEAD_ROWS)).long()
    heads = [calibrated(outputs.heads[name], labels)[rows] for name in names]
    product = calibrated(sum(torch.log_softmax(head, -1) for head in heads), labels[rows])
    by_heads = logit_pid(heads[0], heads[1], labels[rows], product, tolerance=1e-2, max_iterations=200)
    return {
        "heads": float(by_heads.synergy),
        "embeddings": float(fast_pid(outputs.embeddings, outputs.labels).synergy),
    }


def calibrated(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits over the temperature that fits the labels best."""
    temperatures = torch.logspace(-1, 1, 41)
    losses = [float(torch.nn.functional.cross_entropy(logits / t, labels)) for t in temperatures]
    return logits / temperatures[int(np.argmin(losses))]


def measure(name: str, seed: int) -> dict[str, Any]:
    """One run in which every modality trains alone."""
    suite = load_suite(name)
    set_seed(seed)
    model = FusionForClassification.from_modality_pretrained(
        suite.build_encoders(), num_labels=suite.num_classes, fusion=suite.fusion
    )
    each = EachEvaluation()
    with tempfile.TemporaryDirectory() as folder:
        args = training_arguments(suite, folder, seed, "adamw", LEARNING_RATE)
        trainer = Quiet(
            model=model,
            args=args,
            train_dataset=suite.train,
            eval_dataset=suite.validation,
            callbacks=[each],
            strategy="unimodal",
        )
        each.trainer = trainer
        trainer.train()
    return {
        "suite": name,
        "seed": seed,
        "rows": len(suite.validation),
        "steps": each.steps,
        "synergy": {way: [round(v, 4) for v in values] for way, values in each.synergy.items()},
        **environment("transformers"),
    }


def peak(values: list[float]) -> tuple[int, float] | None:
    """Place and height of an interior peak, over the higher of the two ends; None where there is none."""
    series = np.asarray(values)
    late = np.diff(series[len(series) // 2 :])
    ends = max(series[:2].max(), series[-2:].max())
    place = int(series.argmax())
    height = float(series[place] - ends)
    return (place, height) if height > 2 * late.std() and 2 <= place < len(series) - 2 else None


def report(lines: list[dict[str, Any]]) -> str:
    """Per suite and way: in how many runs synergy has an interior peak, and how much it moves between evaluations."""
    rows = [
        "| suite | way | runs with an interior peak | moves between evaluations, bits |",
        "| --- | --- | --- | --- |",
    ]
    for suite in dict.fromkeys(line["suite"] for line in lines):
        runs = [line for line in lines if line["suite"] == suite]
        for way in WAYS:
            series = [line["synergy"][way] for line in runs]
            found = [p for values in series if (p := peak(values)) is not None]
            moved = np.mean([np.diff(values[len(values) // 2 :]).std() for values in series])
            heights = "" if not found else f", {np.mean([height for _, height in found]):.2f} bits high"
            rows.append(f"| {suite} | {way} | {len(found)} of {len(runs)}{heights} | {moved:.3f} |")
    return "\n".join(rows)


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """One panel per suite."""
    suites = list(dict.fromkeys(line["suite"] for line in lines))
    figure = Figure(figsize=(3.6 * len(suites), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, suite in zip(np.atleast_1d(figure.subplots(1, len(suites))), suites, strict=True):
        for way, color in WAYS.items():
            for place, line in enumerate(x for x in lines if x["suite"] == suite):
                label = way if place == 0 else None
                axis.plot(line["steps"], line["synergy"][way], color=color, linewidth=1.6, label=label)
        axis.set_title(suite)
        axis.set_xlabel("step of unimodal training")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("synergy, bits")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Train what is not there yet, and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", nargs="+", default=list(SUITES))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    path = RESULTS / "synergy_peak.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    there = {(line["suite"], line["seed"]) for line in lines}
    for suite in options.suites:
        for seed in range(options.seeds):
            if (suite, seed) in there:
                continue
            lines.append(measure(suite, seed))
            with open(path, "a") as out:
                out.write(json.dumps(lines[-1]) + "\n")
            print(suite, seed, lines[-1]["synergy"], flush=True)
    print(report(lines))
    draw(lines, RESULTS / "synergy_peak.png")


if __name__ == "__main__":
    main()
