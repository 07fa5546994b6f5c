"""What each modality contributes to the answers of the model on an evaluation set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.evaluation.scores import combine, cross_fitted, score
from ecsfusion.model.contributions import MAX_MODALITIES, log2_probability, only, shapley_values
from ecsfusion.model.problem_types import REGRESSION, SINGLE_LABEL
from ecsfusion.model.readout import Readout, prior_of


def contributions_of(
    evaluation: Evaluation, readout: Readout | None, problem_type: str = SINGLE_LABEL
) -> dict[str, Any] | None:
    """The Shapley values of the modalities for the calibrated answer, as plain JSON values.

    The answer from some of the modalities is that of the model to rows that lack the others. Where a row lacks a
    modality, this adds nothing to its answer.

    Args:
        evaluation: the model's outputs.
        readout: the model's fitted readout; None to judge by cross-fitting on these rows.
        problem_type: see `ecsfusion.model.problem_types`.

    Returns:
        "score": by modality, the part of the score, as a fraction, beyond that of the prior; "bits": by modality, the
        part of what the answer tells of the label beyond the class frequencies, in bits a row (of all labels
        together); empty in regression. None with more than `MAX_MODALITIES`, with fewer than two rows to judge by
        cross-fitting, and where the heads of the modalities are not trained: they show nothing.
    """
    heads, labels, names = evaluation.heads, evaluation.labels, tuple(evaluation.present)
    untrained = set(evaluation.excluded_from_readout) == set(names) or (
        readout is not None and readout.fused_head_alone
    )
    if len(names) > MAX_MODALITIES or untrained or (readout is None and len(labels) < 2):
        return None
    groups = evaluation.group_numbers()
    parts: list[tuple[Any, Readout]] = [] if readout is None else [(slice(None), readout)]
    if readout is None:
        fitted = cross_fitted(
            heads, labels, evaluation.present, problem_type, evaluation.excluded_from_readout, groups
        )
        # Of all rows: where classes are equally frequent, the commonest of one half is the rarest of the other.
        prior = prior_of(labels, next(iter(heads.values())).shape[1], problem_type)
        parts = [(rows, replace(half, prior=prior)) for rows, half in fitted]

    def value(present: tuple[str, ...]) -> Tensor:
        answers = combine(heads, only(evaluation.present, present), parts)
        values = [torch.tensor(score(answers, labels, problem_type), dtype=torch.float64)]
        if problem_type != REGRESSION:
            values.append(log2_probability(answers, labels, problem_type).mean())
        return torch.stack(values)

    values = shapley_values(names, value)
    return {
        "score": {name: float(each[0]) for name, each in values.items()},
        "bits": {} if problem_type == REGRESSION else {name: float(each[1]) for name, each in values.items()},
    }
