"""Each modality's own best epoch: which it was, its weights on disk, and the model that answers with them.

A modality's head is often best at another epoch than the fused model. Then the model carries a second copy of that
encoder and head, of the better epoch, which answers for the modality alone and in the readout; the fused head keeps the
first. That costs the memory of the copy and one more forward of it at inference. It is on by default.

While training, the best weights are in folders of the run, of which every checkpoint holds its own; they are removed
when training is over.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.evaluation.probe import head_answers, score
from ecsfusion.model.problem_types import mean_loss
from ecsfusion.modeling import FusionForClassification

WEIGHTS_FILE = "model.safetensors"
STEP_FILE = "step.json"


def folder_of(name: str) -> str:
    """The folder of a run that holds a modality's best weights."""
    return f"best_heads-{name}"  # which is no Python identifier, and so no modality's own folder


def why_not_kept(model: FusionForClassification) -> str | None:
    """Why the best heads of this model cannot be kept, as the end of a sentence; None where they can."""
    for name in model.modalities:
        part = _parts(model, name)
        try:  # now, and not when training is over
            copy.deepcopy(part).load_state_dict(_weights(part))
        except Exception as error:  # of a module of one's own: anything
            kind = type(model.encoders[name]).__name__
            return f"a second copy of the encoder {kind} of {name!r} cannot be made ({' '.join(str(error).split())})"
    return None


def _parts(model: FusionForClassification, name: str) -> nn.ModuleDict:
    return nn.ModuleDict({"encoder": model.encoders[name], "head": model.heads[name]})


def _weights(part: nn.ModuleDict) -> dict[str, Tensor]:
    return {key: value.contiguous().cpu().clone() for key, value in part.state_dict().items()}


def quality(evaluation: Evaluation, name: str, problem_type: str) -> tuple[float, float]:
    """How good a modality's head is on the rows that have it: its score, and among equals minus its loss."""
    rows = evaluation.present[name]
    logits, labels = evaluation.heads[name][rows], evaluation.labels[rows]
    answers = head_answers(logits, problem_type)
    return score(answers, labels, problem_type), -float(mean_loss(logits, labels, problem_type))


def save_modality(model: FusionForClassification, name: str, step: int, folder: str) -> None:
    """Write encoder and head of one modality to a new folder."""
    path = Path(folder)
    path.mkdir(parents=True)
    save_file(_weights(_parts(model, name)), path / WEIGHTS_FILE)
    (path / STEP_FILE).write_text(json.dumps({"step": step}), encoding="utf-8")


def load_modality(folder: str, step: int) -> dict[str, Tensor]:
    """What `save_modality` wrote at this step.

    Raises:
        ValueError: the folder holds another step.
    """
    path = Path(folder)
    found: dict[str, Any] = json.loads((path / STEP_FILE).read_text(encoding="utf-8"))
    if found["step"] != step:
        raise ValueError(
            f"{folder} holds step {found['step']}, not {step}: another run wrote there. Train again in an empty "
            "output_dir."
        )
    return load_file(path / WEIGHTS_FILE)
