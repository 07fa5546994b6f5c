"""Two-stage against joint training with encoders of the size that people fine-tune, on one GPU.

    python benchmarks/large_scale.py                                            # 3 seeds, 10 epochs, random weights
    python benchmarks/large_scale.py --image-encoder FOLDER --audio-encoder FOLDER --learning-rate 5e-5
    python benchmarks/large_scale.py --smoke --results /tmp/large               # tiny encoders, CPU, about a minute

AV-MNIST `full` (16 000 / 2 500 / 4 000 rows): the image at 224 x 224 with three channels for a ViT-B, the second of
sound as a log-mel spectrogram for an AST-B. AST's own input is 1 024 frames of 10 ms; a second has 98, so it gets 128
frames here (and of a pretrained AST the position embeddings in the middle, as its authors do for short sounds).
`shared/data` beside the checkout, or $ECSFUSION_DATA, holds avmnist/. The encoders are those of `hf_recipes`: names on
the Hub or folders, and without names ViT-B and AST-B with random weights.

`two-stage` (the default, which answers with the calibrated heads) and `joint` (which answers with its fused head) start
from the same weights and see the same rows in the same order, seed by seed, for the same number of steps. Rows are
decoded when they are used, by the workers of the data loader. On a GPU forward and backward run in bfloat16.

Each run is a line of RESULTS/large_scale.jsonl as soon as it is over, and what is there is not trained again (the same
settings on the same device); RESULTS/large_scale.png and the printed table are made of these lines. A run writes its
best weights to a temporary folder, which takes 3 GB. With `--smoke` the files are called large_scale_smoke, and are
made anew.

In a line: `seconds_per_step` (without the data loader: median, and half of the distance between the quartiles) by stage
and by who trains; `probe_share` (scores, decompositions) and `shares` of the time of training (steps, waiting for the
loader, evaluation with the probe and what it writes to disk, the rest); `peak_memory_bytes` of training and of all (the
second copies of encoders that `keep_best_heads` makes included): what PyTorch allocated on the GPU, on the CPU the
largest size of the process so far. `curve`: accuracies at each evaluation, against seconds since training began (all
included), seconds of training alone, and modality-steps.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Before torch and numpy look. With several GPUs the Trainer would use all of them; and the workers of the data loader
# are as many as there are cores.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pyarrow.parquet as parquet
import torch
from environment import environment
from matplotlib import pyplot as plt
from protocol.methods import METHODS
from protocol.results import append_line, read_lines
from suites.folders import SPLITS, data_file
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoConfig, TrainerCallback, set_seed
from transformers.utils import logging

# `hf_recipes` is not installed; it is imported from the checkout.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from ecsfusion import FusionForClassification, FusionProcessor, FusionTrainer, FusionTrainingArguments
from ecsfusion.processing import FusionCollator
from hf_recipes.configuration import ModalityArguments, RecipeArguments
from hf_recipes.encoders import build_encoders, build_processor

RESULTS = Path(__file__).parent / "results"
STRATEGIES = ("two-stage", "joint")
MODALITIES = ("image", "audio")
NUM_CLASSES = 10
FRAMES = 128
AST = "audio-spectrogram-transformer"
WEIGHT_DECAY = 0.05
SMOKE = {"rows": 64, "epochs": 3.0, "batch_size": 16, "evaluations": 6, "learning_rate": 1e-3}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TINY_PIXELS = 32
MIN_ROWS = 60
"""Of validation and test, where --rows asks for few: a probe needs four of each class."""
MAX_WORKERS = 14
PREFETCH = 2
"""Batches that each worker makes ahead."""


class Rows(Dataset):
    """Rows of a split as they are stored, which the collator decodes: `{"image": ..., "audio": ..., "label": 3}`.

    Args:
        file: with these columns.
        number: so many, evenly over the classes; None for all.
    """

    def __init__(self, file: Path, number: int | None = None) -> None:
        table = parquet.read_table(file, columns=[*MODALITIES, "label"])
        if number is not None:
            table = table.take(balanced(table["label"].to_numpy(), number))
        self.columns = {name: [row["bytes"] for row in table[name].to_pylist()] for name in MODALITIES}
        self.labels = table["label"].to_pylist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {name: {"bytes": values[index]} for name, values in self.columns.items()}
        return {**row, "label": self.labels[index]}


def balanced(labels: np.ndarray, number: int) -> np.ndarray:
    """Indices of `number` rows (or all) of labels (N,): the first of each class, then the second of each, and so on."""
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        of_class = labels == label
        rank[of_class] = np.arange(of_class.sum())
    return np.sort(np.lexsort((labels, rank))[:number])


def modalities_of(args: argparse.Namespace) -> dict[str, ModalityArguments]:
    """Encoder and processor of each modality, as a recipe names them."""
    short = {"max_length": FRAMES}
    image: Any = args.image_encoder or {"model_type": "vit"}
    audio: Any = args.audio_encoder or {"model_type": AST, **short}
    size = None
    if args.smoke:
        image = {"model_type": "vit", **TINY, "image_size": TINY_PIXELS, "patch_size": 8}
        audio = {"model_type": AST, **TINY, **short}
        size = {"size": {"height": TINY_PIXELS, "width": TINY_PIXELS}}
    of_ast = isinstance(audio, Mapping) or AutoConfig.from_pretrained(audio).model_type == AST
    return {
        "image": ModalityArguments("image", image, size),
        "audio": ModalityArguments("audio", audio, short if of_ast else None),
    }


def build(args: argparse.Namespace) -> tuple[dict[str, Any], FusionProcessor]:
    """Encoders, with random weights from torch's generator where no pretrained ones are named, and their processors."""
    # The data of the recipe are not used, only its modalities.
    recipe = RecipeArguments(data_dir="avmnist")
    recipe.modalities = modalities_of(args)
    encoders = build_encoders(recipe)
    processor = build_processor(recipe, encoders)
    if encoders["audio"].config.model_type == AST:
        shorten(encoders["audio"], FRAMES)
    return encoders, processor


def shorten(encoder: nn.Module, frames: int) -> None:
    """Let an AST take spectrograms of so many frames: of its position embeddings in time, those in the middle stay."""
    config, positions = encoder.config, encoder.embeddings.position_embeddings
    long, short = ((n - config.patch_size) // config.time_stride + 1 for n in (config.max_length, frames))
    config.max_length = frames
    if short >= long:
        return
    tokens, patches = positions.detach().split([2, positions.shape[1] - 2], dim=1)
    first = (long - short) // 2
    middle = patches.unflatten(1, (-1, long))[:, :, first : first + short]
    encoder.embeddings.position_embeddings = nn.Parameter(torch.cat([tokens, middle.flatten(1, 2)], dim=1))


class Stopwatch(TrainerCallback):
    """Where the time of training goes, and what is known at each evaluation.

    Args:
        device: which is waited for before the clock is read.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps: dict[tuple[int, tuple[str, ...], bool], list[float]] = defaultdict(list)
        self.loader = self.evaluation = 0.0
        self.modality_steps = 0
        self.curve: list[dict[str, Any]] = []
        self.training_memory = 0
        self._began = self._step_began = 0.0

    def now(self) -> float:
        """Seconds, when all that was launched is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = self.now()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step_began = self.now()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Note who trained in a step that is over; no evaluation and no change has followed it yet."""
        fused = model.trains_fused_head
        key = (1 if model.stage == "unimodal" else 2, tuple(model.active), fused)
        self.steps[key].append(self.now() - self._step_began)
        self.modality_steps += len(model.active)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.training_memory = peak_memory(self.device)

    def evaluated(self, trainer: FusionTrainer, began: float) -> None:
        """Note the results of an evaluation within training, which is over now."""
        ended = self.now()
        self.evaluation += ended - began
        probe = trainer.record.history[-1]
        measurement = probe.reading.measurement
        self.curve.append(
            {
                "step": probe.step,
                "epoch": round(probe.reading.epoch, 3),
                "stage": 1 if probe.stage == "unimodal" else 2,
                "training": list(probe.training),
                "ends_stage_1": probe.restored is not None,
                "seconds": round(ended - self._began, 3),
                "training_seconds": round(self.loader + self.step_seconds, 3),
                "modality_steps": self.modality_steps,
                "accuracy": {head: round(value, 5) for head, value in measurement.scores.items()},
                "probe_seconds": round(measurement.seconds, 4),
            }
        )

    @property
    def step_seconds(self) -> float:
        """All steps together."""
        return sum(map(sum, self.steps.values()))

    def seconds_per_step(self) -> list[dict[str, Any]]:
        """By stage, by who trains, and by whether the fused head trains too."""
        entries = []
        for (stage, training, fused), seconds in self.steps.items():
            low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
            entries.append(
                {
                    "stage": stage,
                    "training": list(training),
                    "fused": fused,
                    "steps": len(seconds),
                    "median": round(middle, 6),
                    "spread": round((high - low) / 2, 6),
                }
            )
        return entries

    def shares(self, total: float) -> dict[str, float]:
        """Of the seconds of training."""
        parts = {"steps": self.step_seconds, "loader": self.loader, "evaluation": self.evaluation}
        parts["rest"] = total - sum(parts.values())
        return {name: round(seconds / total, 4) for name, seconds in parts.items()}


class TimedTrainer(FusionTrainer):
    """The library's trainer, with a stopwatch beside it."""

    watch: Stopwatch

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As there; the wait for the data loader is timed."""
        began = self.watch.now()
        batches = super().get_batch_samples(*args, **kwargs)
        self.watch.loader += self.watch.now() - began
        return batches

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As there."""
        began = self.watch.now()
        metrics = super().evaluate(*args, **kwargs)
        if self.is_in_train:
            self.watch.evaluated(self, began)
        return metrics


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that PyTorch had allocated on the GPU, or on the CPU the largest size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def workers_that_fit(wanted: int, batch_bytes: int) -> int:
    """Workers whose batches fit into the shared memory, by which they hand them over."""
    shared = Path("/dev/shm")  # noqa: S108
    if not shared.is_dir():
        return wanted
    most = int(shutil.disk_usage(shared).free * 0.8 / (batch_bytes * (PREFETCH + 2)))
    if most < wanted:
        print(f"{shared} is small: {most} workers of the data loader instead of {wanted}", flush=True)
    return min(wanted, most)


def describe(model: FusionForClassification, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Kind, shape and size of each encoder, and the shapes of one row of its inputs."""
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
    return {
        name: {
            "class": type(encoder).__name__,
            "pretrained": public_name(model.sources.get(name)),
            "parameters": sum(p.numel() for p in encoder.parameters()),
            **{key: getattr(encoder.config, key) for key in keys if hasattr(encoder.config, key)},
            "inputs": {key: list(value.shape[1:]) for key, value in batch[name].items()},
        }
        for name, encoder in model.encoders.items()
    }


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """All that a run depends on, but for strategy, seed and device."""
    names = ("image_encoder", "audio_encoder", "rows", "epochs", "max_steps", "batch_size", "evaluations")
    settings = {name: getattr(args, name) for name in (*names, "learning_rate", "precision", "smoke")}
    return settings | {name: public_name(settings[name]) for name in ("image_encoder", "audio_encoder")}


def public_name(encoder: str | None) -> str | None:
    """A name on the Hub as it is, and of a folder its own name, without the way to it."""
    return Path(encoder).resolve().name if encoder and Path(encoder).exists() else encoder


def train(
    strategy: str, seed: int, args: argparse.Namespace, splits: Mapping[str, Rows], device: torch.device
) -> dict[str, Any]:
    """One run: its line."""
    set_seed(seed)
    encoders, processor = build(args)
    model = FusionForClassification.from_modality_pretrained(encoders, num_labels=NUM_CLASSES)
    collator = FusionCollator(processor)
    batch = collator([splits["train"][row] for row in range(args.batch_size)])
    batch_bytes = sum(value.nbytes for name in MODALITIES for value in batch[name].values())
    encoder_facts = describe(model, batch)
    steps_per_epoch = math.ceil(len(splits["train"]) / args.batch_size)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(steps_per_epoch * args.epochs)
    workers = workers_that_fit(args.workers, batch_bytes)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory(prefix="large_scale_") as folder:
        training_args = FusionTrainingArguments(
            output_dir=folder,
            strategy=strategy,
            num_train_epochs=args.epochs,
            max_steps=args.max_steps,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            weight_decay=WEIGHT_DECAY,
            warmup_steps=0.05,
            eval_strategy="steps",
            eval_steps=math.ceil(steps / args.evaluations),
            save_strategy="no",
            keep_best_heads=strategy
            # Joint training trains no heads of modalities, so it must not pay for keeping them.
            != "joint",
            bf16=args.precision == "bfloat16",
            use_cpu=device.type == "cpu",
            dataloader_num_workers=workers,
            dataloader_prefetch_factor=PREFETCH if workers else None,
            disable_tqdm=not sys.stderr.isatty(),
            report_to="none",
            seed=seed,
        )
        watch = Stopwatch(device)
        trainer = TimedTrainer(
            model=model,
            args=training_args,
            train_dataset=splits["train"],
            eval_dataset=splits["validation"],
            processing_class=processor,
            callbacks=[watch],
        )
        trainer.watch = watch
        metrics = trainer.train().metrics
        trainer.evaluate(splits["test"], metric_key_prefix="test")
    ends = {split: measurement.scores for split, measurement in trainer.measurements.items()}
    line = {
        "benchmark": "large_scale",
        "strategy": strategy,
        "seed": seed,
        "smoke": args.smoke,
        "settings": settings_of(args),
        "encoders": encoder_facts,
        "parameters": sum(encoder["parameters"] for encoder in encoder_facts.values()),
        "rows": {split: len(rows) for split, rows in splits.items()},
        "workers": workers,
        "steps": trainer.state.global_step,
        "modality_steps": watch.modality_steps,
        "seconds": round(metrics["train_runtime"], 3),
        "seconds_per_step": watch.seconds_per_step(),
        "probe_share": metrics["measuring_share"],
        "shares": watch.shares(metrics["train_runtime"]),
        "peak_memory_bytes": {"training": watch.training_memory, "all": peak_memory(device)},
        "answer": METHODS[strategy].answer,
        "curve": watch.curve,
        "reasons": [probe.decision.reason for probe in trainer.record.history] if strategy != "joint" else [],
        **{split: {head: round(v, 5) for head, v in heads.items()} for split, heads in ends.items()},
        **environment("transformers", "accelerate", "triton"),
        "device": device_name(device),
    }
    del trainer, model, encoders
    gc.collect()
    return line


def device_name(device: torch.device) -> str:
    """As in `environment`, but of the device that is used."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def answer_at(line: Mapping[str, Any], point: int) -> float:
    """The validation accuracy of a run's own answer at an evaluation."""
    return line["curve"][point]["accuracy"][line["answer"]]


def time_to_reach(lines: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """By seed: the lower of both strategies' last validation accuracies, and when each was first as good.

    Returns:
        `{seed: {"accuracy": ..., "two-stage": {"seconds": ..., "training_seconds": ..., "modality_steps": ...}, ...}}`,
        for the seeds that have both.
    """
    by_seed: dict[int, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for line in lines:
        by_seed[line["seed"]][line["strategy"]] = line
    reached: dict[int, dict[str, Any]] = {}
    for seed, runs in sorted(by_seed.items()):
        if set(runs) != set(STRATEGIES):
            continue
        target = min(answer_at(line, -1) for line in runs.values())
        reached[seed] = {"accuracy": target}
        for strategy, line in runs.items():
            first = next(n for n in range(len(line["curve"])) if answer_at(line, n) >= target)
            point = line["curve"][first]
            reached[seed][strategy] = {
                key: point[key] for key in ("seconds", "training_seconds", "modality_steps")
            }
    return reached


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Means over seeds, as a Markdown table; the time to the same accuracy is over the seeds that have both."""
    reached = time_to_reach(lines)
    columns = [
        "strategy",
        "seeds",
        "seconds per step",
        "probe",
        "loader",
        "memory, GB",
        "validation, %",
        "test, %",
        "seconds to the same accuracy",
        "modality-steps to it",
    ]
    rows = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for strategy in STRATEGIES:
        runs = [line for line in lines if line["strategy"] == strategy]
        if not runs:
            continue
        states: dict[str, list[float]] = defaultdict(list)
        for line in runs:
            for state in line["seconds_per_step"]:
                who = " and ".join(state["training"]) + (", fused" if state["fused"] else "")
                states[f"stage {state['stage']} ({who})"].append(state["median"])
        times = [by_strategy[strategy] for by_strategy in reached.values()]

        def average(values: Sequence[float], form: str) -> str:
            return format(statistics.mean(values), form) if values else ""

        cells = [
            strategy,
            str(len(runs)),
            "; ".join(f"{state}: {average(values, '.4f')}" for state, values in states.items()),
            average([line["probe_share"] for line in runs], ".2%"),
            average([line["shares"]["loader"] for line in runs], ".1%"),
            average([line["peak_memory_bytes"]["all"] / 1e9 for line in runs], ".2f"),
            average([100 * answer_at(line, -1) for line in runs], ".1f"),
            average([100 * line["test"][line["answer"]] for line in runs], ".1f"),
            average([point["seconds"] for point in times], ".1f"),
            average([point["modality_steps"] for point in times], ".0f"),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def plot(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Validation accuracy against seconds and against modality-steps; one line per seed."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    axes_of = (
        ("seconds", "seconds since training began, all included"),
        ("modality_steps", "modality-steps"),
    )
    for axes, (key, title) in zip(panels, axes_of, strict=True):
        for line in sorted(lines, key=lambda line: STRATEGIES.index(line["strategy"]), reverse=True):
            strategy, curve = line["strategy"], line["curve"]
            color = f"C{STRATEGIES.index(strategy)}"
            x = [point[key] for point in curve]
            heads = {line["answer"]: ("-", 2.0, 1.0, f"{strategy}, its answer ({line['answer']})")}
            # Joint training does not train the heads of the modalities.
            if strategy != "joint":
                heads |= {
                    "fused": ("-", 0.8, 0.5, f"{strategy}, fused head"),
                    "image": ("--", 0.9, 0.6, f"{strategy}, image alone"),
                    "audio": (":", 0.9, 0.6, f"{strategy}, audio alone"),
                }
            for head, (style, width, alpha, label) in heads.items():
                y = [100 * point["accuracy"][head] for point in curve]
                axes.plot(x, y, style, color=color, linewidth=width, alpha=alpha, label=label)
            for n, point in enumerate(curve):
                if point["ends_stage_1"]:
                    axes.plot(
                        x[n],
                        100 * answer_at(line, n),
                        "s",
                        color=color,
                        markersize=7,
                        markerfacecolor="white",
                        label="stage 2 begins",
                    )
        axes.set_xlabel(title)
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
    panels[0].set_ylabel("validation accuracy, %")
    handles, labels = panels[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    panels[1].legend(once.values(), once.keys(), fontsize=8)
    first = lines[0]
    encoders = " + ".join(
        f"{facts['class']} ({facts['parameters'] / 1e6:.1f} M{', pretrained' if facts['pretrained'] else ''})"
        for facts in first["encoders"].values()
    )
    smoke = "SMOKE TEST, NO RESULT: " if first["smoke"] else ""
    number = len({line["seed"] for line in lines})
    figure.suptitle(
        f"{smoke}AV-MNIST, {first['rows']['train']} rows, {encoders}, {first['settings']['precision']} on "
        f"{first['device']}, {number} seed{'s' if number > 1 else ''}",
        fontsize=9,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, help="how many (3; with --smoke 1)")
    parser.add_argument("--epochs", type=float, help="of both stages together (10)")
    parser.add_argument("--max-steps", type=int, default=-1, help="optimizer steps, in place of epochs")
    parser.add_argument("--batch-size", type=int, help="(32)")
    parser.add_argument("--learning-rate", type=float, help="of AdamW (1e-4); less for pretrained encoders")
    parser.add_argument("--rows", type=int, help="of training (all); a quarter of it of the other splits")
    parser.add_argument("--evaluations", type=int, help="in training, each of them a probe (10)")
    parser.add_argument("--image-encoder", help="name on the Hub or folder (ViT-B with random weights)")
    parser.add_argument("--audio-encoder", help="name on the Hub or folder (AST-B with random weights)")
    parser.add_argument(
        "--workers", type=int, help=f"of the data loader (one per core, {MAX_WORKERS} at most)"
    )
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the lines and the picture")
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU: only shows that it runs")
    args = parser.parse_args(argv)
    defaults: dict[str, Any] = {
        "seeds": 3,
        "epochs": 10.0,
        "batch_size": 32,
        "evaluations": 10,
        "learning_rate": 1e-4,
    }
    # The first core feeds the GPU.
    defaults["workers"] = min(max((os.cpu_count() or 1) - 1, 0), MAX_WORKERS)
    if args.smoke:
        if args.image_encoder or args.audio_encoder:
            parser.error("--smoke has encoders of its own; leave --image-encoder and --audio-encoder out")
        defaults |= {**SMOKE, "seeds": 1, "workers": 1}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name in ("seeds", "epochs", "batch_size", "learning_rate", "evaluations"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; give a positive number")
    if args.rows is not None and args.rows < args.batch_size:
        parser.error(f"--rows is {args.rows}; give at least a batch, {args.batch_size}")
    on_gpu = torch.cuda.is_available() and not (args.smoke or args.cpu)
    args.device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    # Cards before Ampere only emulate it.
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    args.precision = "bfloat16" if has_bf16 else "float32"
    try:
        data_file("avmnist/full/train.parquet")
    except FileNotFoundError as error:
        parser.error(str(error))
    return args


def main() -> None:
    args = parse()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Of 128 mel bands, the lowest are narrow.
    warnings.filterwarnings("ignore", message="At least one mel filter")
    device, name = args.device, f"large_scale{'_smoke' if args.smoke else ''}"
    if device.type == "cpu" and not args.smoke:
        print("no GPU is used: a step takes many seconds; --smoke shows that it runs", flush=True)
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"{name}.jsonl"
    if args.smoke:
        path.unlink(missing_ok=True)
    numbers = dict.fromkeys(SPLITS, args.rows)
    if args.rows is not None:
        numbers |= dict.fromkeys(SPLITS[1:], max(args.rows // 4, MIN_ROWS))
    splits = {split: Rows(data_file(f"avmnist/full/{split}.parquet"), numbers[split]) for split in SPLITS}
    settings = settings_of(args)
    lines = [
        line
        for line in read_lines(path)
        if line["settings"] == settings and line["device"] == device_name(device)
    ]
    known = {(line["strategy"], line["seed"]) for line in lines}
    for seed in range(args.seeds):
        for strategy in STRATEGIES:
            if (strategy, seed) in known:
                continue
            print(f"\n{strategy}, seed {seed}", flush=True)
            line = train(strategy, seed, args, splits, device)
            append_line(path, line)
            lines.append(line)
    plot(lines, path.with_suffix(".png"))
    print(f"\n{table(lines)}\n\nWritten to {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
