"""Makes the measurement of an evaluation from the outputs of the pass."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ecsfusion.evaluation.information import decompose
from ecsfusion.evaluation.measurement import Information, Measurement
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.evaluation.scores import (
    calibrated_answers,
    calibration_error,
    head_answers,
    scale_of,
    score,
    score_name,
)
from ecsfusion.model.names import CALIBRATED, FUSED
from ecsfusion.model.problem_types import REGRESSION, SINGLE_LABEL
from ecsfusion.model.readout import Readout
from ecsfusion.pid.decomposition import PID


def measure(
    evaluation: Evaluation,
    rows: np.ndarray | None,
    *,
    readout: Readout | None,
    problem_type: str = SINGLE_LABEL,
    **pid_options: Any,
) -> tuple[Measurement, PID | None]:
    """Measure the scores of all heads, and decompose the information of the embeddings about the label.

    The score of a head is its accuracy (with several labels: the share of right decisions), or in regression the share
    of the variance that it explains, R^2. The score of a modality's head is that over the rows that have the modality.

    Args:
        evaluation: the outputs of the pass.
        rows: (n,) indices of the rows to decompose, which have every modality; none, or None, for no decomposition.
        readout: the fitted readout of the model, or None to estimate the calibrated score by two-fold cross-fitting on
            these rows.
        problem_type: see `ecsfusion.model.problem_types`.
        **pid_options: passed to `decompose`.

    Returns:
        The measurement, and the decomposition with its tensors (None without `rows`). A modality that no row has, has
        no score.
    """
    start = time.perf_counter()
    heads, labels = evaluation.heads, evaluation.labels
    masks = {name: mask.numpy() for name, mask in evaluation.present.items()}
    complete = np.logical_and.reduce(list(masks.values()))
    excluded = evaluation.excluded_from_readout
    calibrated = calibrated_answers(
        heads, labels, readout, masks, problem_type, excluded, evaluation.group_numbers()
    )
    fused = head_answers(heads[FUSED], problem_type)
    scores = {
        name: score(head_answers(heads[name][mask], problem_type), labels[mask], problem_type)
        for name, mask in evaluation.present.items()
        if bool(mask.any())
    }
    scores |= {
        FUSED: score(fused, labels, problem_type),
        CALIBRATED: score(calibrated, labels, problem_type),
    }
    errors = {} if problem_type == REGRESSION else {FUSED: fused, CALIBRATED: calibrated}
    pid = None
    if rows is not None and len(rows):
        pid = decompose(evaluation, rows, problem_type=problem_type, **pid_options)
    measurement = Measurement(
        score=score_name(problem_type),
        scores=scores,
        calibration_error={
            head: calibration_error(answers, labels, problem_type) for head, answers in errors.items()
        },
        num_rows=len(labels),
        complete_rows=int(complete.sum()),
        scale=scale_of(evaluation, problem_type),
        information=None if pid is None else Information.from_pid(pid, _num_groups(evaluation, rows)),
        seconds=time.perf_counter() - start,
        num_groups=_num_groups(evaluation, slice(None)),
    )
    return measurement, pid


def _num_groups(evaluation: Evaluation, rows: Any) -> int | None:
    return None if evaluation.groups is None else len(evaluation.groups[rows].unique())
