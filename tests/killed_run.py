"""A tiny two-stage run that can be killed at a chosen or a random moment, and what it left when it ended."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import torch
from fusion_fixtures import TwoViews, stage_one_only, two_views
from ranks import ends as ends
from ranks import start_ranks
from safetensors.torch import load_file
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from ecsfusion import Decision, FusionTrainer, FusionTrainingArguments, Rule
from ecsfusion.training import checkpoints, resuming
from ecsfusion.training.best_heads import BestHeads
from ecsfusion.training.stages import Stages

# Of a budget of 21, so that the last epoch is not whole.
STEPS = 20
STAGE_CHANGE = 12


class Moves(Rule):
    """Pauses, resets, moves the peak at steps 4 and 8, and ends stage 1 at step 12, back at the peak of step 8."""

    name = "moves"
    resets = True

    def __init__(self) -> None:
        super().__init__(("left", "right"), max_unimodal_share=1.0)

    def decide_unimodal(self, reading) -> Decision:
        step = reading.step
        if step == 4:
            self.mark_peak(reading)
            return self.train(reading, ["right"], "right alone")
        if step == 6:
            return self.train(reading, ["left", "right"], "left starts again", reset=["left"])
        if step == 8:
            self.mark_peak(reading)
        if step >= STAGE_CHANGE:
            return self.end_stage(reading, "it is time")
        return self.train(reading, ["left", "right"], "both")


def train(
    folder: Path,
    resume: bool,
    processes: int = 1,
    moves: bool = True,
    stage_one: bool = False,
    **options: object,
) -> FusionTrainer:
    """The run; it saves at every step, and the model at the end.

    By the rule above, or by the strategy of the options where `moves` is False; without a stage 2 where `stage_one`.
    """
    strategy = stage_one_only(Moves()) if stage_one else Moves() if moves else None
    logging.disable_progress_bar()
    arguments = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 8 // processes,
        "per_device_eval_batch_size": 8,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 1,
        "save_total_limit": 2,
        "logging_steps": 2,
        "disable_tqdm": True,
        "use_cpu": True,
        "report_to": "none",
        "seed": 5,
    }
    model = two_views()
    for encoder in model.encoders.values():
        # Dropout, so that the random state matters.
        for part in encoder.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.1
    trainer = FusionTrainer(
        model=model,
        args=FusionTrainingArguments(**(arguments | options)),
        train_dataset=TwoViews(56, 0),
        eval_dataset=TwoViews(41, 1),
        strategy=strategy,
    )
    trainer.pop_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if trainer.is_world_process_zero():
        decisions = [
            {
                "step": probe.step,
                "stage": probe.stage,
                "trained": probe.training,
                "restored": probe.restored,
                **probe.decision.to_json(),
                "unique": probe.reading.unique,
                "synergy": probe.reading.synergy,
                "accuracy": probe.reading.accuracy,
            }
            for probe in trainer.record.history
        ]
        (folder / "decisions.json").write_text(json.dumps(decisions))
    return trainer


def outcome(folder: Path) -> dict[str, object]:
    """All that must be the same after a run: weights of both stages, the readout, the decisions."""
    config = json.loads((folder / "config.json").read_text())
    return {
        "weights": load_file(folder / "model.safetensors"),
        "peak": load_file(folder / "unimodal" / "model.safetensors"),
        "readout": config["readout"],
        "decisions": json.loads((folder / "decisions.json").read_text()),
    }


def differences(one: dict, other: dict) -> list[str]:
    """Names of what is not bit for bit the same."""
    found = [part for part in ("readout", "decisions") if one[part] != other[part]]
    for part in ("weights", "peak"):
        if one[part].keys() != other[part].keys():
            found.append(f"names of {part}")
        else:
            found += [
                f"{part} {key}" for key in one[part] if not torch.equal(one[part][key], other[part][key])
            ]
    return found


def kill_in(moment: str, count: int) -> None:
    """Kill this process in the `count`-th call of a function, halfway where that can be."""
    owners = (FusionTrainer, Stages, BestHeads, resuming, checkpoints)
    owner = next(owner for owner in owners if hasattr(owner, moment))
    original, calls = getattr(owner, moment), []

    def killer(*args: object, **kwargs: object) -> object:
        calls.append(moment)
        if len(calls) == count:
            if moment == "replace_folder":
                # The worst point: the old is away, the new is not there yet.
                _new, folder = (Path(str(path)) for path in args)
                if folder.is_dir():
                    folder.rename(f"{folder}.old")
            elif moment == "_save_rng_state":
                # A checkpoint whose last file is cut off.
                original(*args, **kwargs)
                for file in Path(str(args[1])).glob("optimizer.pt"):
                    os.truncate(file, file.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, moment, killer)


def start(
    folder: Path,
    resume: bool,
    processes: int = 1,
    moment: str | None = None,
    count: int = 1,
    **options: object,
) -> list[multiprocessing.Process]:
    """The run by forked processes, killed in the `count`-th call of `moment`."""

    def rank() -> None:
        if moment is not None:
            kill_in(moment, count)
        trainer = train(folder, resume, processes, **options)
        if trainer.args.world_size != processes:
            raise RuntimeError(f"{trainer.args.world_size} processes train, not {processes}")
        trainer.end_training()

    return start_ranks(rank, processes)
