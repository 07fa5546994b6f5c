"""Who wins when real encoders are trained jointly: does the mutual information at the start tell?

    OMP_NUM_THREADS=1 python benchmarks/information_proxy.py --suite avmnist-small --seeds 4

Effective competitive strength is known in the synthetic model only (competitive_strength.py). Here the encoders of
`avmnist-small`, of `noisy-image-2`, where the image knows less, or of `slow-image`, where it is learnt later, are
trained alone for some epochs; every combination of these states is a start of plain joint training with a fresh fused
head, for two epochs: afterwards the loser is learnt too, slowly.

- Before: the information of each modality about the label, as every probe of a `FusionTrainer` logs it
  (`mutual_information_MODALITY`, bits); and about each class against the rest, by `fast_pid` of the same embeddings.
- After: what each modality adds to the margin of the fused head, which is linear in the embeddings: of a class, the
  logit of that class minus the mean of the others, over the validation rows of the class, embeddings centered over all
  rows. The modality with the larger margin has won. The lead is (image - audio) / (|image| + |audio|).

Reported are the rank correlation of the difference in information with the lead in the end, over starts, over classes
of all starts, and over the classes of one start (averaged over starts: what is left when it does not matter which
encoder was trained for longer); and the share of winners predicted. Intervals are 95 %, from a bootstrap over seeds.
One JSON line per start goes to benchmarks/results/information_proxy.jsonl; `--report` only reads that file, prints the
figures and draws the picture beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from competitive_strength import bootstrap
from environment import environment
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from protocol.training import Quiet
from scipy.stats import spearmanr
from suites import Suite
from suites.avmnist import small
from suites.imbalance import noisy, slow
from torch import Tensor
from tqdm import tqdm
from transformers import TrainerCallback, set_seed
from transformers.utils import logging

from ecsfusion import FusionForClassification, FusionTrainingArguments, fast_pid

RESULTS = Path(__file__).parent / "results"
JOINT_EPOCHS = 2
IMAGE, AUDIO = "image", "audio"
EPOCHS_ALONE = {IMAGE: (0, 4), AUDIO: (0, 4, 12)}
SUITES = {
    "avmnist-small": small,
    "noisy-image-2": partial(noisy, IMAGE, 2),
    "slow-image": partial(slow, IMAGE),
}
LONGEST = max(max(epochs) for epochs in EPOCHS_ALONE.values())


class States(TrainerCallback):
    """The model's weights at the start and after every epoch."""

    def __init__(self, model: FusionForClassification) -> None:
        self.model = model
        self.by_epoch: dict[int, dict[str, Tensor]] = {}
        self.keep(0)

    def keep(self, epoch: int) -> None:
        self.by_epoch[epoch] = {name: value.clone() for name, value in self.model.state_dict().items()}

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep them."""
        self.keep(round(state.epoch))


def trainer_for(suite: Suite, seed: int, folder: str, strategy: str, epochs: int) -> Quiet:
    """A trainer of a fresh model, by the strategy "unimodal" or "joint"."""
    set_seed(seed)
    model = FusionForClassification.from_modality_pretrained(
        suite.build_encoders(), num_labels=suite.num_classes, fusion=suite.fusion
    )
    args = FusionTrainingArguments(
        output_dir=folder,
        strategy=strategy,
        num_train_epochs=epochs,
        per_device_train_batch_size=suite.batch_size,
        per_device_eval_batch_size=512,
        learning_rate=suite.learning_rates[0],
        lr_scheduler_type="constant",
        seed=seed,
        eval_strategy="epoch" if strategy == "unimodal" else "no",
        save_strategy="no",
        keep_best_heads=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    return Quiet(model=model, args=args, train_dataset=suite.train, eval_dataset=suite.validation)


def states_alone(suite: Suite, seed: int) -> dict[int, dict[str, Tensor]]:
    """Weights of all encoders and unimodal heads, trained on their own losses, by epoch."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_for(suite, seed, folder, "unimodal", LONGEST)
        states = States(trainer.model)
        trainer.add_callback(states)
        trainer.train()
    return states.by_epoch


def information_by_class(embeddings: Mapping[str, Tensor], labels: Tensor, classes: int) -> list[list[float]]:
    """(C, M): bits that each modality's embeddings have about "it is this class"."""
    by_class = []
    for each in range(classes):
        with warnings.catch_warnings():
            # It warns of few rows; the intervals over seeds show how uncertain these values are.
            warnings.simplefilter("ignore")
            pid = fast_pid(embeddings, (labels == each).long(), method="clusters", bootstrap=0)
        by_class.append([float(bits) for bits in pid.mutual_information])
    return by_class


def margins(model: FusionForClassification, embeddings: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """(C, M): what each modality adds to the margin of each class in the fused head."""
    head = model.fusion
    by_modality, first = [], 0
    for name in head.names:
        values = embeddings[name].double()
        weight = head.linear.weight.detach().cpu().double()[:, first : first + values.shape[1]]
        first += values.shape[1]
        logits = (values - values.mean(0)) @ weight.T
        classes = logits.shape[1]
        above = logits - (logits.sum(1, keepdim=True) - logits) / (classes - 1)
        by_modality.append(torch.stack([above[labels == each, each].mean() for each in range(classes)]))
    return torch.stack(by_modality, 1)


def run(suite: Suite, seed: int) -> Iterator[dict[str, Any]]:
    """All starts of one seed."""
    alone = states_alone(suite, seed)
    for image, audio in itertools.product(EPOCHS_ALONE[IMAGE], EPOCHS_ALONE[AUDIO]):
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_for(suite, seed, folder, "joint", JOINT_EPOCHS)
            model = trainer.model
            for name, epochs in ((IMAGE, image), (AUDIO, audio)):
                own = {key: alone[epochs][key] for key in model.modality_parameters(name)}
                model.load_state_dict(own, strict=False)
            probe = trainer.evaluate()
            by_class = information_by_class(*tensors(trainer), suite.num_classes)
            trainer.train()
            after = margins(model, *tensors(trainer))
            accuracy = trainer.evaluate()["eval_accuracy"]
        yield {
            "suite": suite.name,
            "seed": seed,
            "epochs_alone": [image, audio],
            "information": [round(probe[f"eval_mutual_information_{name}"], 4) for name in (IMAGE, AUDIO)],
            "information_by_class": [[round(bits, 4) for bits in row] for row in by_class],
            "margin_by_class": [[round(value, 4) for value in row] for row in after.tolist()],
            "accuracy": round(accuracy, 4),
            **environment("transformers"),
        }


def tensors(trainer: Quiet) -> tuple[dict[str, Tensor], Tensor]:
    """Embeddings (N, D) and labels (N,) of the validation rows."""
    evaluation = trainer.evaluate_rows(trainer.eval_dataset)
    return {name: evaluation.embeddings[name].cpu() for name in (IMAGE, AUDIO)}, evaluation.labels


def lead(margin: np.ndarray) -> np.ndarray:
    """(image - audio) / (|image| + |audio|) of margins (..., 2)."""
    return (margin[..., 0] - margin[..., 1]) / np.maximum(np.abs(margin).sum(-1), 1e-12)


class Leads:
    """The lines of one suite as arrays: seeds S, starts T, classes C, modalities 2."""

    def __init__(self, lines: Sequence[Mapping[str, Any]]) -> None:
        seeds = sorted({line["seed"] for line in lines})
        by_seed = [[line for line in lines if line["seed"] == seed] for seed in seeds]

        def column(key: str) -> np.ndarray:
            return np.array([[line[key] for line in part] for part in by_seed])

        self.seeds = len(seeds)
        # (S, T, C, 2)
        margin = column("margin_by_class")
        information, by_class = column("information"), column("information_by_class")
        # (S, T, 2) and (S, T, C, 2): the difference in bits, and the lead in the end
        self.starts = np.stack([information[..., 0] - information[..., 1], lead(margin.mean(2))], -1)
        self.classes = np.stack([by_class[..., 0] - by_class[..., 1], lead(margin)], -1)


def rank_correlation(pairs: np.ndarray) -> float:
    """Of pairs (..., 2)."""
    return float(spearmanr(*pairs.reshape(-1, 2).T).statistic)


def within_starts(pairs: np.ndarray) -> float:
    """The mean over starts of the rank correlation over classes, of pairs (S, T, C, 2)."""
    return float(np.nanmean([rank_correlation(start) for start in pairs.reshape(-1, *pairs.shape[2:])]))


def predicted(pairs: np.ndarray) -> float:
    """The share of pairs (..., 2) with equal signs: more information, and the larger margin."""
    return float((np.sign(pairs[..., 0]) == np.sign(pairs[..., 1])).mean())


def report(file: Path) -> None:
    """Print the figures of a file of results, and draw them beside it."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    suites = list(dict.fromkeys(line["suite"] for line in lines))
    figure = Figure(figsize=(4.6 * len(suites), 5), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(1, len(suites), squeeze=False, sharey=True)[0]
    for axes, suite in zip(every, suites, strict=True):
        part = [line for line in lines if line["suite"] == suite]
        leads = Leads(part)
        print(f"{suite}: {leads.seeds} seeds, {leads.starts.shape[1]} starts")
        for what, values, statistic in (
            ("rank correlation over starts", leads.starts, rank_correlation),
            ("rank correlation over classes of all starts", leads.classes, rank_correlation),
            ("rank correlation over classes of one start", leads.classes, within_starts),
            ("winners of starts predicted", leads.starts, predicted),
            ("winners of classes predicted", leads.classes, predicted),
        ):
            low, high = bootstrap(values, statistic, draws=500)
            print(f"  {what}: {statistic(values):.2f} [{low:.2f}, {high:.2f}]")
        for place, line in enumerate(part[: leads.starts.shape[1]]):
            image, audio = line["epochs_alone"]
            axes.plot(
                *leads.classes[:, place].reshape(-1, 2).T, ".", ms=5, label=f"image {image}, audio {audio}"
            )
        axes.axhline(0, color="k", lw=0.8)
        axes.axvline(0, color="k", lw=0.8)
        axes.set_title(f"{suite}: rank correlation {rank_correlation(leads.classes):.2f}", fontsize=10)
        axes.set_xlabel("information at the start, image - audio [bits]")
        axes.grid(alpha=0.3)
    every[0].set_ylabel("lead of the image in the end")
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, title="epochs alone before", fontsize=8, ncols=6, loc="outside lower center"
    )
    figure.suptitle("Who wins a class in joint training (a point: a class, a start, a seed)")
    figure.savefig(file.with_suffix(".png"), dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=4, help="of initial weights")
    parser.add_argument("--report", action="store_true", help="only read the results")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--suite", choices=SUITES, default="avmnist-small")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds is {options.seeds}; an interval over seeds needs at least 2")
    file = options.output / "information_proxy.jsonl"
    if not options.report:
        logging.set_verbosity_error()
        options.output.mkdir(parents=True, exist_ok=True)
        before = file.read_text().splitlines() if file.is_file() else []
        kept = [line for line in before if json.loads(line)["suite"] != options.suite]
        file.write_text("".join(f"{line}\n" for line in kept))
        with file.open("a") as lines:
            for seed in range(options.seeds):
                for line in tqdm(run(SUITES[options.suite](), seed), f"{options.suite}, seed {seed}"):
                    lines.write(json.dumps(line) + "\n")
                    lines.flush()
    report(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
