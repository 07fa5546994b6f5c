"""Is it worth keeping each head's own best epoch for the readout? Heads of one epoch against heads of their best ones.

    python benchmarks/best_heads.py --seeds 2
    python benchmarks/best_heads.py --seeds 2 --config hf_recipes/configs/avmnist.yaml --data_dir FOLDER

Trains as the recipe does and evaluates every epoch on validation and test. Then the calibrated combination is fitted on
validation for three choices of heads, and judged on test: `one epoch` takes all heads from the epoch that the recipe
selects (the library with `keep_best_heads=False`), `own unimodal` takes each modality's head from the epoch where its
validation accuracy is highest (among equals, its cross-entropy lowest; the library with `keep_best_heads=True`), and
`own` the fused head likewise. One JSON line per run and choice goes to
the end of benchmarks/results/best_heads.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean

import torch
from environment import environment
from torch.nn import functional as F  # noqa: N812

# `hf_recipes` is not installed; it is imported from the checkout.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from ecsfusion import FusionTrainer
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.model.names import FUSED
from ecsfusion.model.readout import Readout, expected_calibration_error
from ecsfusion.training.evaluator import Evaluated, Evaluator
from hf_recipes.run import prepare

RESULTS = Path(__file__).parent / "results" / "best_heads.jsonl"


class RecordingEvaluator(Evaluator):
    """Remembers what all heads answered at every evaluation in training.

    Attributes:
        outputs: by prefix of the evaluation set and by step.
    """

    def __init__(self) -> None:
        super().__init__(user_metrics=None)
        self.outputs: dict[str, dict[int, Evaluation]] = defaultdict(dict)

    def keep(self, run: FusionTrainer, prefix: str, evaluated: Evaluated) -> None:
        """As there, and remember the outputs."""
        super().keep(run, prefix, evaluated)
        self.outputs[prefix][run.state.global_step] = evaluated.outputs


def own_best(outputs: dict[int, Evaluation], head: str) -> int:
    """The step of the head's highest accuracy, and of these of its lowest cross-entropy."""

    def key(step: int) -> tuple[float, float]:
        z, y = outputs[step].heads[head], outputs[step].labels
        return float((z.argmax(1) == y).double().mean()), -float(F.cross_entropy(z, y))

    return max(outputs, key=key)


def run(argv: list[str], seed: int) -> list[dict[str, object]]:
    """One training, judged three ways."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--seed", str(seed), "--output_dir", folder, "--disable_tqdm", "true"]
        job = prepare([*argv, *words, "--metric_for_best_model", "eval_validation_accuracy_calibrated"])
        sets = {"validation": job.splits["validation"], "test": job.splits["test"]}
        trainer = FusionTrainer(
            job.model,
            job.args,
            train_dataset=job.splits["train"],
            eval_dataset=sets,
            processing_class=job.processor,
        )
        trainer.evaluator = evaluator = RecordingEvaluator()
        trainer.train()
    validation, test = evaluator.outputs["eval_validation"], evaluator.outputs["eval_test"]
    selected = trainer.state.best_global_step
    best = {head: own_best(validation, head) for head in (*trainer.model.modalities, FUSED)}
    choices = {
        "one epoch": dict.fromkeys(best, selected),
        "own unimodal": {**best, FUSED: selected},
        "own": best,
    }
    lines = []
    for choice, steps in choices.items():
        fitted = Readout.fit(
            {head: validation[step].heads[head] for head, step in steps.items()}, validation[selected].labels
        )
        log_p = fitted({head: test[step].heads[head] for head, step in steps.items()})
        labels = test[selected].labels
        lines.append(
            {
                "seed": seed,
                "choice": choice,
                "steps": steps,
                "accuracy": round(float((log_p.argmax(1) == labels).double().mean()), 4),
                "cross_entropy": round(float(F.nll_loss(log_p, labels)), 4),
                "calibration_error": round(expected_calibration_error(log_p.exp(), labels), 4),
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    args, argv = parser.parse_known_args()
    torch.set_num_threads(1)
    data = "digits" if "--config" not in argv else Path(argv[argv.index("--config") + 1]).stem
    lines = [line for seed in range(args.seeds) for line in run(argv, seed)]
    with RESULTS.open("a") as file:
        for line in lines:
            file.write(json.dumps({"benchmark": "best_heads", "data": data, **line, **environment()}) + "\n")
    for choice in dict.fromkeys(line["choice"] for line in lines):
        mine = [line for line in lines if line["choice"] == choice]
        figures = {
            key: mean(line[key] for line in mine)
            for key in ("accuracy", "cross_entropy", "calibration_error")
        }
        print(f"{data}, {choice:<13}", "  ".join(f"{key} {value:.4f}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
