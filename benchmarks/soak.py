"""A long run: do memory, open files, threads, and the time of a step or a probe stay what they were?

    OMP_NUM_THREADS=1 python benchmarks/soak.py --minutes 40
    python benchmarks/soak.py --draw                               # only table and picture, from the lines

One `train()` on the suite `digits` with a rule that changes who trains at every probe, in both stages, and now and then
puts a modality back to its initial weights or keeps a new peak; a probe every few steps, checkpoints of which two are
kept. The samples go to benchmarks/results/soak.jsonl, with each figure in the first and the last quarter of its stage
and its growth per 1 000 probes: the slope over blocks of the run, each stage having its own level, with its 95 %
interval. The picture is soak.png.

One thing grows by plan: the record of the probes, ours and the Trainer's, which a restart needs (`history_mb`). It is
in the memory, in `objects`, and in the time that a checkpoint takes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from environment import environment
from matplotlib import pyplot as plt
from protocol.results import read_lines
from scipy.stats import t as student
from suites import Suite, load_suite
from transformers import TrainerCallback, TrainerState, set_seed
from transformers.utils import logging

from ecsfusion import FusionForClassification, FusionTrainer, FusionTrainingArguments
from ecsfusion.controller import Decision, Reading, Rule

RESULTS = Path(__file__).parent / "results"
STEPS_PER_PROBE = 5
# The length of the run ends it earlier.
MANY_STEPS = 10**7
# A multiple of the turns that the rule takes.
PROBES_PER_SAMPLE = 24
PROBES_PER_CHECKPOINT = 12
# Of the samples, which are not judged: caches fill, the allocator finds its size.
WARM_UP = 0.1
# Of each stage
BLOCKS = 8
# Minutes
SHORTEST = 10
FIGURES = {
    "rss_mb": "resident memory, MB",
    "history_mb": "of it the record of all probes, MB",
    "rest_mb": "and the rest, MB",
    "objects": "Python objects",
    "tensors": "live tensors",
    "files": "open files",
    "threads": "threads",
    "step_ms": "step, ms",
    "step_cpu_ms": "step, ms of processor time",
    "probe_ms": "evaluation and probe, ms",
    "probe_cpu_ms": "evaluation and probe, ms of processor time",
    "save_ms": "checkpoint, ms",
    "save_cpu_ms": "checkpoint, ms of processor time",
}


@dataclass(frozen=True)
class Length:
    """How long a run lasts: so many probes, or so many seconds from now."""

    probes: float = math.inf
    seconds: float = math.inf
    started: float = field(default_factory=time.perf_counter)

    def share(self, probes: int) -> float:
        """How much of it is over."""
        return max(probes / self.probes, (time.perf_counter() - self.started) / self.seconds)


class Restless(Rule):
    """Changes who trains at every reading, in both stages; resets a modality and keeps a peak now and then."""

    name = "restless"
    resets = True

    def __init__(self, modalities: Sequence[str], length: Length) -> None:
        super().__init__(modalities, max_unimodal_share=1.0)
        self.length = length

    def decide_unimodal(self, reading: Reading) -> Decision:
        """Stage 1, which is half of the run."""
        count = self._count()
        if self.length.share(count) >= 0.5:
            return self.end_stage(reading, "half of the run is over")
        if count % 7 == 0:
            self.mark_peak(reading)
        reset = [self.modalities[count % len(self.modalities)]] if count % 25 == 0 else []
        return self.train(reading, self._turn(count), f"reading {count}", reset=reset)

    def decide_joint(self, reading: Reading) -> Decision:
        """Stage 2."""
        count = self._count()
        return Decision(self.ordered(self._turn(count)), f"reading {count}")

    def _count(self) -> int:
        self.state["readings"] = self.state.get("readings", 0) + 1
        return self.state["readings"]

    def _turn(self, count: int) -> list[str]:
        turns = [*([name] for name in self.modalities), list(self.modalities)]
        return turns[count % len(turns)]


class Watch(TrainerCallback):
    """Samples of the process, with the mean times of what it did since the sample before."""

    def __init__(self, length: Length, probes_per_sample: int) -> None:
        self.length, self.probes_per_sample = length, probes_per_sample
        self.samples: dict[str, list[Any]] = {name: [] for name in ("seconds", "probes", "stage", *FIGURES)}
        self.times: dict[str, list[float]] = {}
        self.probes = self.steps = self.switches = 0
        self.mark = (0.0, 0.0)
        self.active: Any = None
        self.trainer: FusionTrainer

    def _note(self, what: str | None) -> None:
        """The milliseconds since the last call, of the clock and of the processor, were spent on this."""
        now = (time.perf_counter(), time.process_time())
        if what is not None:
            for kind, start, end in zip(("ms", "cpu_ms"), self.mark, now, strict=True):
                self.times.setdefault(f"{what}_{kind}", []).append(1e3 * (end - start))
        self.mark = now

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Between two steps, a sample once in a while; then the clock of the step starts."""
        self.switches += model.active != self.active
        self.active = model.active
        if self.probes // self.probes_per_sample > len(self.samples["probes"]):
            self._sample(model.stage, state)
        self._note(None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What the rule decided, forward, backward, optimizer."""
        self._note("step")
        self.steps += 1

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The pass, the decomposition, the readout."""
        self._note("probe")
        self.probes += 1
        control.should_training_stop |= self.length.share(self.probes) >= 1

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The checkpoint, after what the evaluation had to keep."""
        self._note("save")

    def _sample(self, stage: str, state: TrainerState) -> None:
        gc.collect()
        objects = gc.get_objects()
        resident = resident_bytes() / 2**20
        # The Trainer's log, our record, and the copy of it that the last checkpoint left in the state.
        history = bytes_of([state.log_history, self.trainer.record.history, state.stateful_callbacks]) / 2**20
        found = {
            "seconds": round(time.perf_counter() - self.length.started, 1),
            "probes": self.probes,
            "stage": 1 if stage == "unimodal" else 2,
            "rss_mb": round(resident, 2),
            "history_mb": round(history, 2),
            "rest_mb": round(resident - history, 2),
            "objects": len(objects),
            "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in objects),
            "files": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            **{name: round(mean(times), 3) for name, times in self.times.items() if name in FIGURES},
        }
        for name, column in self.samples.items():
            column.append(found[name])
        self.times.clear()


def resident_bytes() -> int:
    """Memory of this process that is in RAM (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def bytes_of(thing: Any, seen: set[int] | None = None) -> int:
    """Memory of nested lists, dictionaries and data classes and what is in them; what is there twice counts once."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, dict):
        parts: Sequence[Any] = [*thing, *thing.values()]
    elif isinstance(thing, (list, tuple)):
        parts = thing
    else:
        # A probe of the history and what it consists of.
        parts = [vars(thing)] if is_dataclass(thing) else []
    return sys.getsizeof(thing) + sum(bytes_of(part, seen) for part in parts)


def soak(suite: Suite, length: Length, seed: int, probes_per_sample: int = PROBES_PER_SAMPLE) -> Watch:
    """One training of this length."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(seed)
    model = FusionForClassification.from_modality_pretrained(
        suite.build_encoders(), num_labels=suite.num_classes, fusion=suite.fusion
    )
    watch = Watch(length, probes_per_sample)
    with tempfile.TemporaryDirectory() as folder:
        trainer = FusionTrainer(
            model=model,
            args=FusionTrainingArguments(
                output_dir=folder,
                max_steps=MANY_STEPS,
                per_device_train_batch_size=suite.batch_size,
                per_device_eval_batch_size=512,
                learning_rate=suite.learning_rates[0],
                lr_scheduler_type="constant",
                joint_pausing=True,
                eval_strategy="steps",
                eval_steps=STEPS_PER_PROBE,
                save_strategy="steps",
                save_steps=STEPS_PER_PROBE * PROBES_PER_CHECKPOINT,
                save_total_limit=2,
                logging_steps=STEPS_PER_PROBE * PROBES_PER_CHECKPOINT,
                seed=seed,
                disable_tqdm=True,
                report_to="none",
                use_cpu=True,
            ),
            train_dataset=suite.train,
            eval_dataset=suite.validation,
            strategy=Restless(suite.modalities, length),
            callbacks=[watch],
        )
        watch.trainer = trainer
        trainer.train()
    return watch


def growth(samples: Mapping[str, Sequence[float]], figure: str) -> dict[str, Any]:
    """A figure in the first and the last quarter of each stage, and its growth per 1 000 probes.

    The slope is that of the means of `BLOCKS` blocks of each stage, the level of a stage being free; the interval is
    Student's, of 95 %. Means of blocks, because neighbouring samples resemble each other.
    """
    used = slice(int(WARM_UP * len(samples["probes"])), None)
    x, y, stages = (np.asarray(samples[name][used], float) for name in ("probes", figure, "stage"))
    quarters: dict[str, list[float]] = {"first_quarter": [], "last_quarter": []}
    dx, dy = [], []
    for stage in np.unique(stages):
        own = y[stages == stage]
        quarter = max(1, len(own) // 4)
        quarters["first_quarter"].append(round(own[:quarter].mean(), 3))
        quarters["last_quarter"].append(round(own[-quarter:].mean(), 3))
        for values, centred in ((x[stages == stage], dx), (own, dy)):
            means = np.array([block.mean() for block in np.array_split(values, BLOCKS)])
            centred.append(means - means.mean())
    slope, half = _slope(np.concatenate(dx), np.concatenate(dy), degrees=len(dx) * (BLOCKS - 1) - 1)
    return {
        **quarters,
        "per_1000_probes": round(1e3 * slope, 4),
        "interval": [round(1e3 * (slope - half), 4), round(1e3 * (slope + half), 4)],
    }


def _slope(x: np.ndarray, y: np.ndarray, degrees: int) -> tuple[float, float]:
    """Of centred values, with the half width of its 95 % interval."""
    slope = float(x @ y / (x @ x))
    error = math.sqrt(float(((y - slope * x) ** 2).sum()) / degrees / float(x @ x))
    return slope, float(student.ppf(0.975, degrees)) * error


def table(line: Mapping[str, Any]) -> str:
    """What grew, as a Markdown table; a figure of both stages is written 1 / 2."""
    rows = [
        "| figure (stage 1 / 2) | first quarter | last quarter | growth per 1 000 probes |",
        "| --- " * 4 + "|",
    ]
    for name, told in FIGURES.items():
        found = line["growth"][name]
        first, last = (
            " / ".join(f"{v:,.1f}" for v in found[key]) for key in ("first_quarter", "last_quarter")
        )
        low, high = found["interval"]
        rows.append(
            f"| {told} | {first} | {last} | {found['per_1000_probes']:+.3g} [{low:+.3g}, {high:+.3g}] |"
        )
    return "\n".join(rows)


def draw(line: Mapping[str, Any], path: Path) -> None:
    """Every figure over the run; times are those of the processor, which other work on the machine does not change."""
    samples = {name: np.asarray(column, float) for name, column in line["samples"].items()}
    probes = samples["probes"]
    border = probes[samples["stage"] == 1][-1]
    panels: tuple[tuple[str, dict[str, np.ndarray]], ...] = (
        (
            "memory, MB",
            {"resident": samples["rss_mb"], "without the record": samples["rest_mb"]},
        ),
        ("Python objects, thousands", {"": samples["objects"] / 1e3}),
        ("open files, threads, tensors", {FIGURES[n]: samples[n] for n in ("files", "threads", "tensors")}),
        ("step, ms", {"": samples["step_cpu_ms"]}),
        ("evaluation and probe, ms", {"": samples["probe_cpu_ms"]}),
        ("checkpoint, ms", {"": samples["save_cpu_ms"]}),
    )
    figure, grid = plt.subplots(2, 3, figsize=(11, 5.4), layout="constrained", sharex=True)
    for axes, (title, series) in zip(grid.flat, panels, strict=True):
        for label, values in series.items():
            axes.plot(probes, values, lw=1.2, label=label or None)
        shown = np.concatenate(list(series.values()))
        # There is no checkpoint between some samples.
        low, top = np.nanmin(shown), np.nanmax(shown)
        # Memory is mostly that of Python and torch: only what it grows by is of interest.
        is_level = low > 0.9 * top
        axes.set_ylim(0.9 * top if is_level else 0, 1.05 * top)
        axes.axvline(border, color="k", lw=0.8, ls=":")
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        if len(series) > 1:
            axes.legend(fontsize=7, loc="lower right" if is_level else "center right")
    for axes in grid[1]:
        axes.set_xlabel("probes")
    figure.suptitle(
        f"One run of {line['minutes']:.0f} minutes: {line['probes']:,} probes, {line['switches']:,} changes of who "
        "trains (dotted: stage 2 begins; times are processor time)",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draw", action="store_true", help="train nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    if args.minutes < SHORTEST:
        parser.error(f"--minutes is {args.minutes:g}; give at least {SHORTEST}, for a slope")
    path = args.output / "soak.jsonl"
    if not args.draw:
        torch.set_num_threads(1)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            # A line per probe.
            watch = soak(load_suite("digits"), Length(seconds=60 * args.minutes), args.seed)
        line = {
            "benchmark": "soak",
            "seed": args.seed,
            "probes": watch.probes,
            "switches": watch.switches,
            "steps": watch.steps,
            "minutes": args.minutes,
            "growth": {name: growth(watch.samples, name) for name in FIGURES},
            "samples": watch.samples,
            **environment("transformers", "accelerate"),
        }
        args.output.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    (line,) = read_lines(path)
    draw(line, path.with_suffix(".png"))
    print(table(line))


if __name__ == "__main__":
    main()
