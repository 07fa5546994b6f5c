"""Scores of the heads: accuracy or explained variance, calibration error, and the score of chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ecsfusion.evaluation.measurement import Scale
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.model.names import FUSED
from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL, mean_loss
from ecsfusion.model.readout import Readout, expected_calibration_error
from ecsfusion.pid.folds import make_folds


def score_name(problem_type: str) -> str:
    """The name of the score in metrics: "accuracy", or "r2" in regression."""
    return "r2" if problem_type == REGRESSION else "accuracy"


def score(answers: torch.Tensor, labels: torch.Tensor, problem_type: str) -> float:
    """The score of answers, which is 1 at best: the share of right decisions, or in regression R^2.

    R^2 is 1 - (squared error) / (variance), the mean over the targets that are not the same in all rows; 0 where there
    are none. The score is NaN if there are no rows.

    Args:
        answers: probabilities (N, C), or predictions in regression.
        labels: class indices (N,), or the labels of another problem type.
        problem_type: see `ecsfusion.model.problem_types`.
    """
    if problem_type == SINGLE_LABEL:
        return float((answers.argmax(dim=-1) == labels).double().mean())
    if problem_type == MULTI_LABEL:
        return float(((answers > 0.5) == (labels > 0.5)).double().mean())
    targets = labels.double().reshape(answers.shape)
    error = (answers.double() - targets).square().sum(dim=0)
    spread = (targets - targets.mean(dim=0)).square().sum(dim=0)
    varies = (targets != targets[:1]).any(dim=0)
    if len(targets) and not bool(varies.any()):
        return 0.0
    return float((1 - error / spread)[varies].mean())


def scale_of(evaluation: Evaluation, problem_type: str) -> Scale:
    """The number of rows of an evaluation set, and the score of the best constant answer on it.

    Rows of one group count as one. The number is that of the modality with the fewest, among those that the set has.
    The best constant answer is the most frequent class, or in regression the mean.
    """
    counts = [evaluation.count(mask) for mask in evaluation.present.values() if bool(mask.any())]
    rows = min(counts, default=0)
    if problem_type == REGRESSION:
        return Scale(rows, 0.0)
    if problem_type == MULTI_LABEL:
        share = (evaluation.labels > 0.5).double().mean(dim=0)
        return Scale(rows, float(torch.maximum(share, 1 - share).mean()))
    return Scale(rows, float(evaluation.labels.bincount().max()) / len(evaluation.labels))


def head_answers(logits: torch.Tensor, problem_type: str) -> torch.Tensor:
    """The probabilities (N, C) of one head, or its predictions in regression."""
    if problem_type == SINGLE_LABEL:
        return logits.softmax(dim=-1)
    return logits.sigmoid() if problem_type == MULTI_LABEL else logits


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, problem_type: str) -> float:
    """The expected calibration error of probabilities (N, C).

    With several labels, each label of each row counts as a decision between yes and no.
    """
    if problem_type == MULTI_LABEL:
        yes = probabilities.double().reshape(-1)
        probabilities = torch.stack([1 - yes, yes], dim=1)
        labels = (labels > 0.5).long().reshape(-1)
    return expected_calibration_error(probabilities, labels)


def quality(evaluation: Evaluation, name: str, problem_type: str) -> tuple[float, float]:
    """The score of a modality's head on the rows that have it, and minus its loss to compare equal scores."""
    rows = evaluation.present[name]
    logits, labels = evaluation.heads[name][rows], evaluation.labels[rows]
    answers = head_answers(logits, problem_type)
    return score(answers, labels, problem_type), -float(mean_loss(logits, labels, problem_type))


def calibrated_answers(
    heads: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    readout: Readout | None,
    present: Mapping[str, np.ndarray],
    problem_type: str,
    excluded_from_readout: Sequence[str] = (),
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """The probabilities or predictions (N, C) of the calibrated combination of the heads.

    Without a readout, one is fitted on each half of the rows for the other, so that no row is used both to fit and to
    judge; with groups on one half of the groups for the other. A single row gets the answer of the fused head.

    Args:
        heads: logits (N, C) by head.
        labels: class indices (N,), or the labels of another problem type.
        readout: the fitted readout of the model, or None.
        present: which rows have a modality, (N,) bool, by modality.
        problem_type: see `ecsfusion.model.problem_types`.
        excluded_from_readout: modalities whose heads get no weight in rows that have others.
        groups: (N,) int64 numbers from 0 of the source of each row, at least two; None where rows stand alone.
    """
    masks = {m: torch.from_numpy(mask) for m, mask in present.items()}
    if readout is None and len(labels) < 2:
        return head_answers(heads[FUSED], problem_type)
    parts = [(slice(None), readout)] if readout is not None else None
    if parts is None:
        parts = cross_fitted(
            heads,
            labels,
            masks,
            problem_type,
            excluded_from_readout,
            groups,
            subsets=not all(bool(mask.all()) for mask in masks.values()),
        )
    return combine(heads, masks, parts)


def cross_fitted(
    heads: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    present: Mapping[str, torch.Tensor],
    problem_type: str,
    excluded_from_readout: Sequence[str] = (),
    groups: torch.Tensor | None = None,
    *,
    subsets: bool = True,
) -> list[tuple[Any, Readout]]:
    """Two halves of the rows, each with a readout that was fitted on the other half.

    Args:
        heads: logits (N, C) by head, of at least two rows.
        labels: class indices (N,), or the labels of another problem type.
        present: which rows have a modality, (N,) bool, by modality.
        problem_type: see `ecsfusion.model.problem_types`.
        excluded_from_readout: as in `calibrated_answers`.
        groups: as in `calibrated_answers`.
        subsets: as in `Readout.fit`.

    Returns:
        Pairs of an index of rows and the readout that answers for them.
    """
    halves = _halves(labels, groups, problem_type)
    return [
        (
            own,
            Readout.fit(
                {h: z[other] for h, z in heads.items()},
                labels[other],
                {m: mask[other] for m, mask in present.items()},
                problem_type,
                subsets=subsets,
                excluded_from_readout=excluded_from_readout,
                groups=None if groups is None else groups[other],
            ),
        )
        for own, other in (halves, halves[::-1])
    ]


def combine(
    heads: Mapping[str, torch.Tensor],
    present: Mapping[str, torch.Tensor],
    parts: Sequence[tuple[Any, Readout]],
) -> torch.Tensor:
    """The probabilities or predictions (N, C), float64, of readouts that each answer for a part of the rows.

    Args:
        heads: logits (N, C) by head.
        present: which rows have a modality, (N,) bool, by modality; of a row with none the answer is the prior.
        parts: pairs of an index of rows and their readout.
    """
    answers = torch.empty(next(iter(heads.values())).shape, dtype=torch.float64)
    for rows, readout in parts:
        masks = {m: mask[rows] for m, mask in present.items()}
        answers[rows] = readout.answers({h: z[rows] for h, z in heads.items()}, masks).double()
    return answers


def _halves(labels: torch.Tensor, groups: torch.Tensor | None, problem_type: str) -> tuple[Any, Any]:
    """Two halves of the rows, or of whole groups, with even shares of the classes, whatever the order of the rows."""
    first = torch.zeros(len(labels), dtype=torch.bool)
    if groups is None:
        # Not every second row: classes may alternate.
        order = labels.unique(dim=0, return_inverse=True)[1].argsort(stable=True)
        first[order[::2]] = True
        return first, ~first
    classes = labels if problem_type == SINGLE_LABEL else torch.zeros_like(groups)
    folds = make_folds(torch.arange(len(groups)), classes, groups, 2)
    first[folds.order] = folds.fold == 0
    return first, ~first
