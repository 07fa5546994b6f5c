"""What a model says to one row: the probabilities of each head, the calibrated ones, and the contributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ecsfusion.model.answers import answer_of
from ecsfusion.model.names import FUSED
from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION, problem_type_of
from ecsfusion.model.readout import Readout
from ecsfusion.processing import FusionProcessor


@dataclass(frozen=True)
class RowAnswer:
    """The answer to one row.

    Attributes:
        labels: names of the C classes, labels or targets.
        answer: (C,) what the model answers: probabilities, or predictions in regression.
        heads: the same of each head that saw the row: the modalities that it has, and "fused" where it was trained.
        missing: the modalities that the row lacks.
        problem_type: that of the model.
        is_calibrated: whether the answer is the calibrated combination of the heads; otherwise it is the fused head's.
        is_fused_asked: whether the fused head is part of the answer; with missing modalities it mostly is not.
        contributions: by modality the contribution to the answer, one number in bits, or in regression (C,) in the unit
            of the targets; empty where there are none.
        why_no_contributions: a sentence, where there are none.
    """

    labels: tuple[str, ...]
    answer: tuple[float, ...]
    heads: dict[str, tuple[float, ...]]
    missing: tuple[str, ...]
    problem_type: str
    is_calibrated: bool
    is_fused_asked: bool
    contributions: dict[str, tuple[float, ...]] = field(default_factory=dict)
    why_no_contributions: str = ""


@torch.no_grad()
def answer_row(model: Any, processor: FusionProcessor, values: Mapping[str, Any]) -> RowAnswer:
    """Answer one row of raw values.

    Args:
        model: a `FusionForClassification` in evaluation.
        processor: its processor.
        values: by modality a raw value as `FusionProcessor` takes it; one that is absent or None is missing.

    Raises:
        ValueError: no value at all, or one that cannot be read; nothing answers for all modalities.
        TypeError: a raw value of a wrong type.
    """
    given = {name: values[name] for name in model.modalities if values.get(name) is not None}
    if not given:
        raise ValueError(f"the row has no input; give at least one of {', '.join(model.modalities)}.")
    # In lists, because one value may itself be a list, of numbers or of the frames of a video.
    batch = processor(**{name: [value] for name, value in given.items()}).to(model.device)
    outputs = model(**batch)
    kind = problem_type_of(model.config)
    logits = dict(outputs.unimodal_logits)
    if model.config.stage != "unimodal" and outputs.logits is not None:
        logits[FUSED] = outputs.logits
    readout = None if model.config.readout is None else Readout.from_dict(model.config.readout)
    contributions, why = {}, ""
    if readout is None:
        why = "The model has no readout, so that its answer is the fused head's and cannot be divided."
    else:
        try:
            found = model.contributions(**batch)
            contributions = {name: tuple(found[name].reshape(-1).tolist()) for name in given}
        except ValueError as error:
            why = str(error)
    return RowAnswer(
        labels=tuple(str(model.config.id2label[index]) for index in range(model.config.num_labels)),
        answer=tuple(answer_of(outputs, model.config)[0].double().tolist()),
        heads={name: tuple(_probabilities(z[0], kind).tolist()) for name, z in logits.items()},
        missing=tuple(name for name in model.modalities if name not in given),
        problem_type=kind,
        is_calibrated=readout is not None,
        is_fused_asked=readout is None or readout.fused_head_alone or len(given) == len(model.modalities),
        contributions=contributions,
        why_no_contributions=why,
    )


def _probabilities(logits: Tensor, problem_type: str) -> Tensor:
    """Probabilities (C,) of one head's logits (C,); in regression its predictions."""
    logits = logits.double()
    if problem_type == REGRESSION:
        return logits
    return logits.sigmoid() if problem_type == MULTI_LABEL else logits.softmax(dim=-1)
