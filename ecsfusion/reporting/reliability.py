"""How often the model is right at each confidence, before calibration and after: the numbers and a picture of them."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ecsfusion.evaluation.measurement import Measurement
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.evaluation.scores import calibrated_answers, head_answers
from ecsfusion.extras import extra_for
from ecsfusion.model.names import CALIBRATED, FUSED
from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION
from ecsfusion.model.readout import Readout
from ecsfusion.reporting.heads import head_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#D55E00", "#0072B2", "#009E73")
"""Of the palette of Okabe and Ito."""
MARKERS = ("o", "s", "^")


def reliability_of(evaluation: Evaluation, readout: Readout | None, problem_type: str) -> dict[str, Any]:
    """What `Measurement.reliability` holds: answers by confidence, as plain JSON values.

    With several labels, each of them is a question with the answers yes and no.

    Args:
        evaluation: the model's outputs.
        readout: the model's fitted readout; None to judge the calibrated combination by cross-fitting on these rows,
            as the scores of the evaluation do.
        problem_type: see `ecsfusion.model.problem_types`.

    Returns:
        By head, "fused" and "calibrated", what `answers_by_confidence` returns; empty in regression.
    """
    if problem_type == REGRESSION:
        return {}
    heads, labels = evaluation.heads, evaluation.labels
    present = {name: mask.numpy() for name, mask in evaluation.present.items()}
    answers = {
        FUSED: head_answers(heads[FUSED], problem_type),
        CALIBRATED: calibrated_answers(
            heads,
            labels,
            readout,
            present,
            problem_type,
            evaluation.excluded_from_readout,
            evaluation.group_numbers(),
        ),
    }
    if problem_type == MULTI_LABEL:
        yes = {head: p.double().reshape(-1) for head, p in answers.items()}
        answers = {head: torch.stack([1 - p, p], dim=1) for head, p in yes.items()}
        labels = (labels > 0.5).long().reshape(-1)
    return {head: answers_by_confidence(p, labels) for head, p in answers.items()}


def answers_by_confidence(probabilities: Tensor, labels: Tensor, num_bins: int = 15) -> dict[str, list[Any]]:
    """Group answers by confidence, the largest probability, in bins of equal width.

    Args:
        probabilities: (N, C), rows that sum to 1.
        labels: (N,) class indices.
        num_bins: number of bins, which are closed on the right; empty ones are left out.

    Returns:
        A value for each bin: "confidence", the mean; "accuracy", the share of right answers; "rows", their number.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    right = (predicted == labels).double()
    bins = (confidence * num_bins).ceil().clamp(1, num_bins).long() - 1
    counts = torch.bincount(bins, minlength=num_bins)
    used = counts > 0
    sums = [torch.zeros(num_bins, dtype=torch.float64).index_add(0, bins, x) for x in (confidence, right)]
    means = [(total[used] / counts[used]).tolist() for total in sums]
    return {"confidence": means[0], "accuracy": means[1], "rows": counts[used].tolist()}


def plot_reliability(measurement: Measurement, split: str, path: str | PathLike[str] | None = None) -> Figure:
    """Draw accuracy over confidence, where the diagonal is perfect; below it, the share of answers at each confidence.

    Args:
        measurement: with `reliability` and `calibration_error`.
        split: name of the rows that were evaluated.
        path: where to save the picture; not saved when None.

    Raises:
        ValueError: the measurement has no reliability, as in regression.
    """
    reliability = measurement.reliability
    if not reliability:
        raise ValueError("the measurement has no reliability: there is nothing to draw.")
    with extra_for("a picture"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter
    figure = Figure(figsize=(6, 6.4), dpi=100, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    upper.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle=(0, (3, 2)), label="perfect")
    for number, (head, bins) in enumerate(reliability.items()):
        color = COLORS[number % len(COLORS)]
        upper.plot(
            bins["confidence"],
            bins["accuracy"],
            color=color,
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            label=f"{head_label(head)}: expected calibration error {measurement.calibration_error[head]:.3f}",
        )
        shares = [rows / sum(bins["rows"]) for rows in bins["rows"]]
        width = 0.055 / len(reliability)
        offset = (number - (len(reliability) - 1) / 2) * width
        lower.bar([value + offset for value in bins["confidence"]], shares, width=width, color=color)
    upper.set_ylabel(f"right answers, {split}")
    figure.legend(frameon=False, loc="outside upper left", fontsize=9)
    lower.set_ylabel("share of rows")
    lower.set_xlabel("confidence (the largest probability)")
    upper.set_ylim(-0.02, 1.02)
    lower.set_xlim(-0.02, 1.04)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    lower.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if path is not None:
        figure.savefig(path)
    return figure
