"""What an evaluation shows that modalities know of the label, by their heads or by clusters of their embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.model.names import FUSED
from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ecsfusion.pid.decomposition import PID
from ecsfusion.pid.dependence import held_out_dependence
from ecsfusion.pid.estimate import fast_pid, fast_pids
from ecsfusion.pid.folds import independent_rows
from ecsfusion.pid.head_posteriors import head_pids

REGRESSION_BINS = 8
"""The number of classes into which a regression target is cut at its quantiles, for the decomposition."""


def decompose(
    evaluation: Evaluation,
    rows: np.ndarray,
    names: Sequence[str] | None = None,
    *,
    reads_heads: bool = False,
    measures_dependence: bool = False,
    problem_type: str = SINGLE_LABEL,
    device: torch.device | None = None,
    **options: Any,
) -> PID:
    """Decompose what the modalities of an evaluation know about the label.

    The heads of the model were not fitted on these rows, and read them at no cost. What they do not show is whether the
    label ties the modalities; then readouts of the embeddings are fitted here. Heads that are not trained show nothing:
    without `reads_heads`, and in regression, whose heads have no posteriors, the embeddings are clustered.

    Where rows have groups, they count as one row each: in folds, intervals and floors.

    Args:
        evaluation: the outputs of the pass.
        rows: (n,) indices of the rows, which have all these modalities.
        names: the modalities; None for all.
        reads_heads: whether the heads of the modalities are trained and read.
        measures_dependence: whether `dependence` is measured, by readouts of the embeddings.
        problem_type: see `ecsfusion.model.problem_types`.
        device: the device of the computation. The tensors of the result are on the CPU.
        **options: of `decompose_embeddings`. By heads, "num_clusters" (of posteriors; other than a number for the
            default) and "seed" count.
    """
    every = tuple(evaluation.embeddings)
    names = every if names is None else tuple(names)
    groups = evaluation.group_numbers(rows)
    if not reads_heads or problem_type == REGRESSION:
        pid = decompose_embeddings(
            {name: evaluation.embedded(name, rows) for name in names},
            evaluation.labels.numpy()[rows],
            problem_type,
            device,
            **options,
        )
        if groups is None:
            return pid
        classes = evaluation.labels[rows] if problem_type == SINGLE_LABEL else groups
        return _of_groups(pid, independent_rows(groups, classes) / len(rows))
    labels = evaluation.labels[rows].to(device)
    groups = None if groups is None else groups.to(device)
    # The fused head reads all modalities; of some of them it is no readout.
    heads = [*names, FUSED] if set(names) == set(every) else [*names]
    logits = {name: evaluation.heads[name][rows].to(device) for name in heads}
    pairs = [(names[0], names[1])] if len(names) == 2 else [(name, "rest") for name in names]
    num_clusters, seed = options.get("num_clusters"), options.get("seed", 0)
    if problem_type == SINGLE_LABEL:
        problems = [(logits, labels)]
    else:
        problems = [
            ({name: torch.stack([torch.zeros_like(z[:, i]), z[:, i]], 1) for name, z in logits.items()}, yes)
            for i, yes in enumerate((labels > 0.5).long().T)
        ]
    by_label = [
        head_pids(
            {name: z[name] for name in names},
            z.get(FUSED),
            target,
            pairs,
            num_clusters if isinstance(num_clusters, int) else None,
            seed,
            groups,
        )
        for z, target in problems
    ]
    share = _share_of_noise(labels)
    against_rest = [_mean([pids[f"{a}, {b}"] for pids in by_label], share) for a, b in pairs]
    pid = against_rest[0] if len(names) == 2 else _one_of_many(against_rest, names)
    if not measures_dependence:
        return pid
    embeddings = {name: evaluation.embedded(name, rows).to(device) for name in names}
    sides = [([a], [other for other in names if other != a]) for a, _ in pairs]
    dependence = torch.stack(
        [
            held_out_dependence(embeddings, target, next(iter(z.values())).shape[1], sides, seed, groups)
            for z, target in problems
        ]
    )
    return replace(pid, dependence=dependence.mean(0).amax().cpu())


def decompose_embeddings(
    embeddings: Mapping[str, np.ndarray | torch.Tensor],
    labels: np.ndarray,
    problem_type: str = SINGLE_LABEL,
    device: torch.device | None = None,
    **options: Any,
) -> PID:
    """Decompose what embeddings know about the labels, by clusters.

    For two modalities this is `fast_pid`. With more, each modality is decomposed against all the others together. Then
    the uniqueness and the information of a modality are those against the rest, and redundancy, synergy and all other
    values are the largest that any modality has with the rest. With several labels, all values are means over the
    labels, and the floors those of such means. A regression target is cut into `REGRESSION_BINS` classes.

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
    share = _share_of_noise(targets)
    if len(rows) == 2:
        return _mean_over_labels(fast_pid(rows, targets, method="clusters", **options), share)
    pids = fast_pids(rows, targets, method="clusters", **options)
    against_rest = [_mean_over_labels(pids[f"{name}, rest"], share) for name in rows]
    return _one_of_many(against_rest, tuple(rows))


def _of_groups(pid: PID, share: float) -> PID:
    """A decomposition by clusters with the floors and intervals of rows of which only this share is independent.

    Noise that is alike in a group is that of fewer rows (`ecsfusion.pid.folds.independent_rows`): its information is
    1 / share times as large, and an interval 1 / sqrt(share) times as wide. The correction has removed the bias of
    single rows.
    """
    plugin = pid.plugin

    def floor(name: str) -> Any:
        noise = getattr(pid, name)
        if noise is None or plugin is None:
            return noise
        with_bias = torch.maximum(getattr(plugin, name), noise)
        return with_bias / share - (with_bias - noise)

    def interval(name: str, value: torch.Tensor) -> Any:
        ends = getattr(pid, name)
        if ends is None:
            return None
        middle = value.unsqueeze(-1)
        return (middle + (ends - middle) / share**0.5).clamp_min(0.0)

    return replace(
        pid,
        redundancy_floor=floor("redundancy_floor"),
        unique_floor=floor("unique_floor"),
        synergy_floor=floor("synergy_floor"),
        redundancy_interval=interval("redundancy_interval", pid.redundancy),
        unique_interval=interval("unique_interval", pid.unique),
        synergy_interval=interval("synergy_interval", pid.synergy),
    )


def _share_of_noise(labels: torch.Tensor) -> float:
    """The noise of a mean over L labels (N, L), in that of one label: 1 for a single one, (N,).

    It is 1 / sqrt(L) for labels that have nothing to do with each other, and 1 for labels that are all alike: what
    noise knows of two labels is as alike as the square of their correlation.
    """
    if labels.ndim == 1 or labels.shape[1] == 1:
        return 1.0
    centered = labels.double() - labels.double().mean(0)
    scaled = centered / centered.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    alike = (scaled.T @ scaled).square().fill_diagonal_(1.0)
    return float(alike.mean().sqrt())


def _mean(pids: Sequence[PID], share: float) -> PID:
    """The mean of decompositions of the same modalities; its floors are this share of the mean floor."""
    means: dict[str, Any] = {
        part.name: torch.stack([getattr(pid, part.name) for pid in pids]).mean(0).cpu()
        for part in fields(PID)
        if isinstance(getattr(pids[0], part.name), torch.Tensor)
    }
    return replace(pids[0], **_with_floors(means, share))


def _mean_over_labels(pid: PID, share: float) -> PID:
    means: dict[str, Any] = {
        part.name: (value if pid.redundancy.ndim == 0 else value.mean(dim=0)).cpu()
        for part in fields(pid)
        if isinstance(value := getattr(pid, part.name), torch.Tensor)
    }
    plugin = None if pid.plugin is None else _mean_over_labels(pid.plugin, 1.0)
    return replace(pid, plugin=plugin, **_with_floors(means, share))


def _with_floors(means: dict[str, Any], share: float) -> dict[str, Any]:
    return {name: share * value if name.endswith("_floor") else value for name, value in means.items()}


def _one_of_many(against_rest: Sequence[PID], names: tuple[str, ...]) -> PID:
    shared = against_rest[int(torch.stack([pid.redundancy for pid in against_rest]).argmax())]
    coupled = against_rest[int(torch.stack([pid.synergy for pid in against_rest]).argmax())]

    def by_modality(attribute: str) -> Any:
        values = [getattr(pid, attribute) for pid in against_rest]
        return None if values[0] is None else torch.stack([value[0] for value in values])

    def largest(attribute: str) -> Any:
        values = [getattr(pid, attribute) for pid in against_rest]
        return None if values[0] is None else torch.stack(values).amax(0)

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
