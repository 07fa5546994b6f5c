"""The decomposition of the embeddings of an evaluation, for two or more modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np
import torch

from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ecsfusion.pid.decomposition import PID
from ecsfusion.pid.estimate import fast_pid, fast_pids

METHOD: Final = "clusters"
"""How a run measures: the thresholds of rules and diagnostics were set on values of this method."""
REGRESSION_BINS = 8
"""The number of classes into which a regression target is cut at its quantiles, for the decomposition."""


def decompose_embeddings(
    embeddings: Mapping[str, np.ndarray],
    labels: np.ndarray,
    problem_type: str = SINGLE_LABEL,
    device: torch.device | None = None,
    **options: Any,
) -> PID:
    """Decompose what embeddings know about the labels.

    For two modalities this is `fast_pid`. With more, each modality is decomposed against all the others together. Then
    the uniqueness and the information of a modality are those against the rest, and redundancy, synergy and all other
    values are the largest that any modality has with the rest. With several labels, all values are means over the
    labels. A regression target is cut into `REGRESSION_BINS` classes. The method is `METHOD`.

    Args:
        embeddings: (N, D_m) by modality.
        labels: (N,) class indices, or the labels of another problem type.
        problem_type: see `ecsfusion.model.problem_types`.
        device: the device of the computation. The tensors of the result are on the CPU.
        **options: other options of `fast_pid`.
    """
    if problem_type == MULTI_LABEL:
        labels, options["num_classes"] = (labels > 0.5).astype(np.int64), 2
    elif problem_type == REGRESSION:
        options |= {"num_classes": None, "bins": REGRESSION_BINS}
        labels = labels.reshape(len(labels)) if labels.size == len(labels) else labels
    rows = {name: torch.as_tensor(values, device=device) for name, values in embeddings.items()}
    targets = torch.as_tensor(labels, device=device)
    if len(rows) == 2:
        return _mean_over_labels(fast_pid(rows, targets, method=METHOD, **options))
    pids = fast_pids(rows, targets, method=METHOD, **options)
    against_rest = [_mean_over_labels(pids[f"{name}, rest"]) for name in rows]
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
