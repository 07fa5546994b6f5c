"""Diagnostics of rows that belong together: groups on both sides of a split, few groups, and rows that repeat."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import torch

from ecsfusion.diagnostics.finding import Finding
from ecsfusion.evaluation.measurement import Information
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.pid.estimate import repeated_rows

MAX_FLOOR_SHARE = 0.25
"""The largest noise floor, as a share of the bits of equally likely classes, that groups are enough for."""
MIN_GROUPS = 10
"""With fewer groups, how much groups differ is itself hardly known."""
STEPS_PER_DEVIATION = 8
"""Embeddings of the same input in two batches differ in the last digits. They are compared in such steps."""


def shared_groups(trained: Collection[int], groups: Sequence[int | None], split: str) -> Iterator[Finding]:
    """Find groups of an evaluation set that are in the training set, too.

    Args:
        trained: the groups of the training rows.
        groups: the group of each row of the evaluation set.
        split: the name of the evaluation set.

    Yields:
        At most one finding.
    """
    every = {group for group in groups if group is not None}
    shared = every & set(trained)
    if shared:
        rows = sum(group in shared for group in groups)
        yield Finding(
            "shared groups",
            split,
            f"{len(shared)} of the {len(every)} groups of {split} are in the training rows, too ({rows} of its "
            f"{len(groups)} rows): its scores are those of known groups, and say little about new ones; put every "
            "group into one set.",
        )


def few_groups(information: Information) -> Iterator[Finding]:
    """Find that the probed rows are of few groups, or of so few that noise reaches much of the label's information.

    Args:
        information: the decomposition of the probe set.

    Yields:
        At most one finding.
    """
    groups, rows, classes = information.num_groups, information.num_samples, information.num_classes
    if groups is None or classes < 2:
        return
    if groups < 2:
        yield Finding(
            "few groups",
            "",
            f"all {rows} probed rows are of one group, so that they count one by one: floors and intervals say nothing "
            "about other groups; give rows of more groups.",
        )
        return
    floor, most = information.floor.get("synergy", 0.0), math.log2(classes)
    allowed = MAX_FLOOR_SHARE * most
    if floor > allowed or groups < MIN_GROUPS:
        needed = max(math.ceil(groups * floor / allowed), MIN_GROUPS)
        # By clusters, the noise of few groups is extrapolated, beyond what there is to know.
        reached = min(floor, most)
        yield Finding(
            "few groups",
            "",
            f"the {rows} probed rows are of {groups} groups: noise alone may reach {reached:.2f} bits of the "
            f"{most:.2f} that {classes} classes have at most, and other groups may differ by more than "
            f"the intervals say; give about {needed} groups.",
        )


def repeating_rows(evaluation: Evaluation) -> Iterator[Finding]:
    """Find that many rows of one modality are equal, where those of another are not, and no groups are named.

    Args:
        evaluation: the outputs of the model.

    Yields:
        At most one finding.
    """
    complete = torch.stack(list(evaluation.present.values())).all(dim=0)
    if evaluation.groups is not None or not bool(complete.any()):
        return
    compared = {}
    for name in evaluation.embeddings:
        rows = evaluation.embedded(name, complete).float()
        deviation = rows.std(dim=0, correction=0)
        # A column that does not vary has only the differences between batches.
        scaled = (rows - rows.mean(dim=0)) / torch.where(deviation > 0, deviation, torch.inf)
        compared[name] = (scaled * STEPS_PER_DEVIATION).round()
    found = repeated_rows(compared)
    if found is not None:
        name, number = found
        yield Finding(
            "repeated rows",
            name,
            f"{name} has only {number} distinct rows of {int(complete.sum())}, while other modalities have more: rows "
            "that share a source (a subject, a recording, a picture) are not independent, so that the calibrated score "
            "is too good and the intervals are too narrow; name the column of the source in group_column_name.",
        )
