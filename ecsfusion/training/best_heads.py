"""The best heads: encoder and head of each modality from the epoch at which the modality alone was best.

A modality's head is often best at another epoch than the fused model. Then the model gets a second copy of that encoder
and head, from the better epoch. The copy answers for the modality alone and in the readout; the fused head uses the
first. This costs the memory of the copy and one more forward pass of it at inference. It is on by default.

During training, the best weights are in folders of the run. Every checkpoint holds these folders too. They are removed
when training ends.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import logging

from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.evaluation.scores import quality
from ecsfusion.modeling import FusionForClassification
from ecsfusion.training.checkpoints import link_folder, replace_folder
from ecsfusion.training.evaluator import untrained_heads
from ecsfusion.training.run import Run

logger = logging.get_logger(__name__)

WEIGHTS_FILE = "model.safetensors"
STEP_FILE = "step.json"


class BestHeads:
    """Keeps each modality's best weights while a run trains, and gives them to the model at its end.

    Args:
        run: the trainer.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._are_kept = False

    def begin(self, sharded_by: str | None) -> None:
        """Start a run: remove best heads from an earlier run, and find out whether heads can be copied.

        Args:
            sharded_by: what shards the weights; None if every process has whole heads.
        """
        self._run.model.set_best_heads({})
        self._are_kept = self._run.args.keep_best_heads
        if not self._are_kept:
            return
        obstacle = (
            f"no process has whole heads under {sharded_by}" if sharded_by else _obstacle(self._run.model)
        )
        if obstacle is not None:
            self._are_kept = False
            if self._run.is_world_process_zero():
                logger.warning(f"keep_best_heads is off in this run: {obstacle}.")

    def folders_in_use(self) -> list[str]:
        """The folders of weights that a checkpoint saved now refers to."""
        return [folder_of(name) for name in self._run.record.best_heads]

    def keep(self, evaluation: Evaluation) -> None:
        """Write the weights of every modality whose head is better than ever before in this run.

        Heads that nothing trains, as in plain joint training, are best by chance: no copy is made of them.
        """
        if not self._are_kept:
            return
        run, record, step = self._run, self._run.record, self._run.state.global_step
        model = run.model
        untrained = untrained_heads(run)
        qualities = {
            name: quality(evaluation, name, model.problem_type)
            for name in model.modalities
            if name not in untrained
        }
        # The first process decides for all.
        for name, quality_now in broadcast_object_list([qualities])[0].items():
            best = record.best_heads.get(name)
            if best is not None and quality_now <= tuple(best[1:]):
                continue
            record.best_heads[name] = [step, *quality_now]
            if run.args.should_save:
                folder = os.path.join(run.args.output_dir, folder_of(name))
                shutil.rmtree(f"{folder}.writing", ignore_errors=True)
                with run.saving(f"The best weights of {name!r}", f"{folder}.writing"):
                    save_modality(model, name, step, f"{folder}.writing")
                    replace_folder(f"{folder}.writing", folder)
        run.accelerator.wait_for_everyone()

    def give_to_model(self, final_step: int) -> bool:
        """Give the model the best heads of each modality that was best at another step than that of the final weights.

        Args:
            final_step: the step of the weights that training ended with.

        Returns:
            Whether there is such a modality.
        """
        weights = {
            name: load_modality(os.path.join(self._run.args.output_dir, folder_of(name)), int(best[0]))
            for name, best in self._run.record.best_heads.items()
            if int(best[0]) != final_step
        }
        self._run.model.set_best_heads(weights)
        return bool(weights)


def folder_of(name: str) -> str:
    """The folder of a run that holds a modality's best weights."""
    # The hyphen prevents a clash with the folder of a modality, whose name is a Python identifier.
    return f"best_heads-{name}"


def bring_back_older_folders(checkpoint: str, output_dir: str, modalities: Sequence[str]) -> None:
    """Copy the best weights from a checkpoint of an earlier version, whose folders had other names.

    Args:
        checkpoint: the checkpoint that the run resumes from.
        output_dir: the output folder of the run.
        modalities: names of the modalities of the model.
    """
    for name in modalities:
        older, folder = os.path.join(checkpoint, f"best-{name}"), os.path.join(output_dir, folder_of(name))
        if os.path.isdir(older):
            shutil.rmtree(f"{folder}.writing", ignore_errors=True)
            link_folder(older, f"{folder}.writing")
            replace_folder(f"{folder}.writing", folder)


def save_modality(model: FusionForClassification, name: str, step: int, folder: str) -> None:
    """Write encoder and head of one modality to a new folder."""
    path = Path(folder)
    path.mkdir(parents=True)
    save_file(_weights(_parts(model, name)), path / WEIGHTS_FILE)
    (path / STEP_FILE).write_text(json.dumps({"step": step}), encoding="utf-8")


def load_modality(folder: str, step: int) -> dict[str, Tensor]:
    """Read the weights that `save_modality` wrote at this step.

    Raises:
        ValueError: the folder holds the weights of another step.
    """
    path = Path(folder)
    saved: dict[str, Any] = json.loads((path / STEP_FILE).read_text(encoding="utf-8"))
    if saved["step"] != step:
        raise ValueError(
            f"{folder} holds step {saved['step']}, not {step}: another run wrote there. Train again in an empty "
            "output_dir."
        )
    return load_file(path / WEIGHTS_FILE)


def _obstacle(model: FusionForClassification) -> str | None:
    """Why the best heads of this model cannot be kept, as the end of a sentence; None if they can."""
    for name in model.modalities:
        part = _parts(model, name)
        try:
            # Try the copy now, so that a failure shows before training and not at its end.
            copy.deepcopy(part).load_state_dict(_weights(part))
        except Exception as error:
            # A module that the user wrote may raise any exception.
            kind = type(model.encoders[name]).__name__
            return f"a second copy of the encoder {kind} of {name!r} cannot be made ({' '.join(str(error).split())})"
    return None


def _parts(model: FusionForClassification, name: str) -> nn.ModuleDict:
    return nn.ModuleDict({"encoder": model.encoders[name], "head": model.heads[name]})


def _weights(part: nn.ModuleDict) -> dict[str, Tensor]:
    return {key: value.contiguous().cpu().clone() for key, value in part.state_dict().items()}
