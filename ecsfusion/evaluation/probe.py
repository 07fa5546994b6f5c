"""One evaluation pass -> what each modality knows and how well each head predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from ecsfusion.diagnostics.estimate import shows_dependence
from ecsfusion.diagnostics.finding import Scale
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.model.names import FUSED
from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ecsfusion.model.readout import Readout, expected_calibration_error
from ecsfusion.pid.decomposition import PID
from ecsfusion.pid.estimate import fast_pid, fast_pids

REGRESSION_BINS = 8
"""Classes that a real target is cut into at its quantiles, for the decomposition."""


def probe_metrics(
    evaluation: Evaluation,
    probed: np.ndarray | None,
    *,
    readout: Readout | None,
    problem_type: str = SINGLE_LABEL,
    **pid_options: Any,
) -> tuple[dict[str, float], PID | None]:
    """Scores of all heads and the decomposition of the label's information, from one pass.

    The score of a head is its accuracy (with several labels: the share of right decisions), in regression the share of
    variance that it explains, R^2. That of a modality's head is over the rows that have it; the decomposition is of the
    rows that have every modality, or of some of them.

    Args:
        evaluation: the pass.
        probed: (n,) indices of the rows to decompose, which have every modality; None to decompose none.
        readout: the model's fitted readout, or None to estimate the calibrated score by two-fold
            cross-fitting on these very rows.
        problem_type: see `ecsfusion.model.problem_types`.
        **pid_options: passed to `decompose_embeddings`.

    Returns:
        A flat dictionary of floats (fractions for scores, bits for information) with keys that are the same
        at every call, and the decomposition itself.

    Raises:
        ValueError: no row has every modality.
    """
    heads, targets = evaluation.heads, evaluation.labels
    rows = {m: mask.numpy() for m, mask in evaluation.present.items()}
    complete = np.logical_and.reduce(list(rows.values()))
    if not complete.any():
        counts = ", ".join(f"{int(mask.sum())} have {name}" for name, mask in rows.items())
        raise ValueError(
            f"no row of the evaluation set has every modality (of {len(targets)}, {counts}); a probe needs such rows."
        )
    calibrated = calibrated_answers(
        heads, targets, readout, rows, problem_type, evaluation.excluded_from_readout
    )
    fused = head_answers(heads[FUSED], problem_type)
    name = score_name(problem_type)
    metrics = {name: score(fused, targets, problem_type)}
    for m, mask in rows.items():
        there = torch.from_numpy(mask)
        answers = head_answers(heads[m][there], problem_type)
        metrics[f"{name}_{m}"] = score(answers, targets[there], problem_type)
    metrics[f"{name}_calibrated"] = score(calibrated, targets, problem_type)
    if problem_type != REGRESSION:
        metrics["calibration_error"] = _calibration_error(fused, targets, problem_type)
        metrics["calibration_error_calibrated"] = _calibration_error(calibrated, targets, problem_type)
    metrics["complete_rows"] = float(complete.sum())
    if probed is None:
        return metrics, None
    pid = decompose_embeddings(
        {m: h[probed] for m, h in evaluation.embeddings.items()},
        targets.numpy()[probed],
        problem_type=problem_type,
        **pid_options,
    )
    return metrics | _information(pid, tuple(rows)), pid


def score_name(problem_type: str) -> str:
    """The name of the score in metrics: "accuracy", or "r2" in regression."""
    return "r2" if problem_type == REGRESSION else "accuracy"


def score(answers: torch.Tensor, labels: torch.Tensor, problem_type: str) -> float:
    """How good answers (N, C) are, 1 at best: of probabilities the share of right decisions, of predictions R^2.

    R^2 is 1 - (squared error) / (variance), the mean over targets; NaN without rows.
    """
    if problem_type == SINGLE_LABEL:
        return float((answers.argmax(dim=-1) == labels).double().mean())
    if problem_type == MULTI_LABEL:
        return float(((answers > 0.5) == (labels > 0.5)).double().mean())
    targets = labels.double().reshape(answers.shape)
    error = (answers.double() - targets).square().sum(dim=0)
    spread = (targets - targets.mean(dim=0)).square().sum(dim=0)
    return float((1 - error / spread.clamp_min(torch.finfo(torch.float64).tiny)).mean())


def scale_of(evaluation: Evaluation, problem_type: str) -> Scale:
    """What scores on an evaluation set are measured against: its rows, and what a constant answer scores there.

    Rows are those of the modality that has the fewest. A constant is the most frequent class, in regression the mean.
    """
    rows = min(int(mask.sum()) for mask in evaluation.present.values())
    if problem_type == REGRESSION:
        return Scale(rows, 0.0)
    if problem_type == MULTI_LABEL:
        share = (evaluation.labels > 0.5).double().mean(dim=0)
        return Scale(rows, float(torch.maximum(share, 1 - share).mean()))
    return Scale(rows, float(evaluation.labels.bincount().max()) / len(evaluation.labels))


def head_answers(logits: torch.Tensor, problem_type: str) -> torch.Tensor:
    """Probabilities (N, C) of one head, or its predictions in regression."""
    if problem_type == SINGLE_LABEL:
        return logits.softmax(dim=-1)
    return logits.sigmoid() if problem_type == MULTI_LABEL else logits


def _calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, problem_type: str) -> float:
    if problem_type == MULTI_LABEL:  # every label of every row is a question of its own
        yes = probabilities.double().reshape(-1)
        probabilities = torch.stack([1 - yes, yes], dim=1)
        labels = (labels > 0.5).long().reshape(-1)
    return expected_calibration_error(probabilities, labels)


def decompose_embeddings(
    embeddings: Mapping[str, np.ndarray],
    labels: np.ndarray,
    problem_type: str = SINGLE_LABEL,
    device: torch.device | None = None,
    **options: Any,
) -> PID:
    """`fast_pid` of two modalities; with more, each modality against all the others together.

    It is computed on `device` (milliseconds on a GPU) and comes back to the processor.

    With more than two the uniqueness and the information of a modality are those against the rest; redundancy and
    synergy are the largest that any modality has with the rest (all other values of the result likewise). With several
    labels all values are means over the labels; a real target is cut into `REGRESSION_BINS` classes.
    """
    if problem_type == MULTI_LABEL:
        labels, options["num_classes"] = (labels > 0.5).astype(np.int64), 2
    elif problem_type == REGRESSION:
        options |= {"num_classes": None, "bins": REGRESSION_BINS}
        labels = labels.reshape(len(labels)) if labels.size == len(labels) else labels
    rows = {name: torch.as_tensor(values, device=device) for name, values in embeddings.items()}
    targets = torch.as_tensor(labels, device=device)
    if len(rows) == 2:
        return _mean_over_labels(fast_pid(rows, targets, **options))
    found = fast_pids(rows, targets, **options)
    against_rest = [_mean_over_labels(found[f"{name}, rest"]) for name in rows]
    return _one_of_many(against_rest, tuple(rows))


def _mean_over_labels(pid: PID) -> PID:
    means: dict[str, Any] = {
        part.name: (value if pid.redundancy.ndim == 0 else value.mean(dim=0)).cpu()
        for part in fields(pid)
        if isinstance(value := getattr(pid, part.name), torch.Tensor)
    }
    return replace(pid, plugin=None if pid.plugin is None else _mean_over_labels(pid.plugin), **means)


def _one_of_many(against_rest: Sequence[PID], names: tuple[str, ...]) -> PID:
    shared = against_rest[int(torch.stack([pid.redundancy for pid in against_rest]).argmax())]
    coupled = against_rest[int(torch.stack([pid.synergy for pid in against_rest]).argmax())]

    def by_modality(attribute: str) -> Any:
        values = [getattr(pid, attribute) for pid in against_rest]
        return None if values[0] is None else torch.stack([value[0] for value in values])

    def largest(attribute: str) -> torch.Tensor:
        return torch.stack([getattr(pid, attribute) for pid in against_rest]).amax(0)

    plugins = [pid.plugin for pid in against_rest if pid.plugin is not None]
    return replace(
        against_rest[0],
        names=names,
        redundancy=shared.redundancy,
        redundancy_floor=shared.redundancy_floor,
        redundancy_interval=shared.redundancy_interval,
        synergy=coupled.synergy,
        synergy_floor=coupled.synergy_floor,
        synergy_interval=coupled.synergy_interval,
        unique=by_modality("unique"),
        unique_floor=by_modality("unique_floor"),
        unique_interval=by_modality("unique_interval"),
        mutual_information=by_modality("mutual_information"),
        joint_mutual_information=largest("joint_mutual_information"),
        conditional_mutual_information=largest("conditional_mutual_information"),
        gap=largest("gap"),
        plugin=_one_of_many(plugins, names) if plugins else None,
    )


def metric_names(modalities: Sequence[str], problem_type: str = SINGLE_LABEL) -> tuple[str, ...]:
    """The keys of `probe_metrics`."""
    name = score_name(problem_type)
    calibration = ("calibration_error", "calibration_error_calibrated")
    by_modality = (name, "unique", "information", "unique_floor", "plugin_unique")
    return (
        name,
        f"{name}_calibrated",
        *(() if problem_type == REGRESSION else calibration),
        "complete_rows",
        *(f"{kind}{atom}" for kind in ("", "plugin_") for atom in ("redundancy", "synergy")),
        "conditional_mutual_information",
        "redundancy_floor",
        "synergy_floor",
        *(f"{kind}_{m}" for kind in by_modality for m in modalities),
    )


def calibrated_answers(
    heads: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    readout: Readout | None,
    present: Mapping[str, np.ndarray],
    problem_type: str,
    excluded_from_readout: Sequence[str] = (),
) -> torch.Tensor:
    """Probabilities or predictions (N, C) of the calibrated combination, by the given readout or one of other rows.

    Without a readout, even rows are combined by a fit on the odd rows and the other way round, so that no row
    judges itself; a single row is left to the fused head.
    """
    rows = {m: torch.from_numpy(mask) for m, mask in present.items()}

    def combine(fitted: Readout, part: slice) -> torch.Tensor:
        answers = fitted({h: z[part] for h, z in heads.items()}, {m: mask[part] for m, mask in rows.items()})
        return answers if problem_type == REGRESSION else answers.exp()

    if readout is not None:
        return combine(readout, slice(None))
    if len(labels) < 2:
        return head_answers(heads[FUSED], problem_type)
    answers = torch.empty(next(iter(heads.values())).shape, dtype=torch.float64)
    for fold in (0, 1):
        others = slice(1 - fold, None, 2)
        fitted = Readout.fit(
            {h: z[others] for h, z in heads.items()},
            labels[others],
            {m: mask[others] for m, mask in rows.items()},
            problem_type,
            subsets=not all(bool(mask.all()) for mask in rows.values()),
            excluded_from_readout=excluded_from_readout,
        )
        answers[fold::2] = combine(fitted, slice(fold, None, 2)).double()
    return answers


def _information(pid: PID, modalities: Sequence[str]) -> dict[str, float]:
    values = pid.to_dict()
    return {
        "redundancy": values["redundancy"],
        "synergy": values["synergy"],
        "conditional_mutual_information": values["conditional_mutual_information"]
        if shows_dependence(pid)
        else 0.0,
        **{f"unique_{m}": values["unique"][m] for m in modalities},
        **{f"information_{m}": values["mutual_information"][m] for m in modalities},
        "redundancy_floor": values["floor"]["redundancy"],
        "synergy_floor": values["floor"]["synergy"],
        **{f"unique_floor_{m}": values["floor"]["unique"][m] for m in modalities},
        "plugin_redundancy": values["plugin"]["redundancy"],
        "plugin_synergy": values["plugin"]["synergy"],
        **{f"plugin_unique_{m}": values["plugin"]["unique"][m] for m in modalities},
    }
