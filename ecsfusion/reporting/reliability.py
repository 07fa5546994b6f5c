"""How often the model is right when it says that it is sure: before calibration and after, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.evaluation.probe import calibrated_answers, head_answers
from ecsfusion.model.names import FUSED
from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION
from ecsfusion.model.readout import Readout

COLORS = ("#D55E00", "#0072B2", "#009E73")  # of Okabe and Ito
MARKERS = ("o", "s", "^")


@dataclass(frozen=True)
class Reliability:
    """Answers by confidence, in bins of equal width; empty bins are left out.

    Attributes:
        confidence: mean of the largest probability in each bin.
        accuracy: share of right answers in each bin.
        rows: number of answers in each bin.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, probabilities: Tensor, labels: Tensor, num_bins: int = 15) -> Reliability:
        """Of probabilities (N, C) whose rows sum to 1 and class indices (N,)."""
        confidence, predicted = probabilities.double().max(dim=1)
        right = (predicted == labels).double()
        bins = (confidence * num_bins).ceil().clamp(1, num_bins).long() - 1  # closed on the right
        counts = torch.bincount(bins, minlength=num_bins)
        sums = [torch.zeros(num_bins, dtype=torch.float64).index_add(0, bins, x) for x in (confidence, right)]
        used = counts > 0
        means = [(total[used] / counts[used]).tolist() for total in sums]
        return cls(tuple(means[0]), tuple(means[1]), tuple(counts[used].tolist()))

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of accuracy and confidence, weighed by rows (see `ecsfusion.model.readout`)."""
        parts = zip(self.confidence, self.accuracy, self.rows, strict=True)
        return sum(rows * abs(accuracy - sure) for sure, accuracy, rows in parts) / sum(self.rows)


def reliability_of(
    evaluation: Evaluation, readout: Readout | None, problem_type: str
) -> dict[str, Reliability]:
    """Of the fused head, and of the calibrated combination as the evaluation's metrics judged it; {} in regression.

    With several labels, each of them is a question with the answers yes and no.
    """
    if problem_type == REGRESSION:
        return {}
    heads, labels = evaluation.heads, evaluation.labels
    present = {name: mask.numpy() for name, mask in evaluation.present.items()}
    answers = {
        "fused head": head_answers(heads[FUSED], problem_type),
        "calibrated combination": calibrated_answers(
            heads, labels, readout, present, problem_type, evaluation.excluded_from_readout
        ),
    }
    if problem_type == MULTI_LABEL:
        yes = {name: p.double().reshape(-1) for name, p in answers.items()}
        answers = {name: torch.stack([1 - p, p], dim=1) for name, p in yes.items()}
        labels = (labels > 0.5).long().reshape(-1)
    return {name: Reliability.of(p, labels) for name, p in answers.items()}


def plot_reliability(
    found: Mapping[str, Reliability], split: str, path: str | PathLike[str] | None = None
) -> Figure:
    """Accuracy over confidence, where the diagonal is perfect; below, how many answers are how sure.

    Args:
        found: by name, such as "fused head", in the order of drawing.
        split: name of the rows that were asked.
        path: where to save the picture; not saved when None.

    Raises:
        ValueError: nothing to draw.
    """
    if not found:
        raise ValueError("found is empty: there is no reliability to draw.")
    figure = Figure(figsize=(6, 6.4), dpi=100, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    upper.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle=(0, (3, 2)), label="perfect")
    for number, (name, one) in enumerate(found.items()):
        color = COLORS[number % len(COLORS)]
        error = one.expected_calibration_error
        upper.plot(
            one.confidence,
            one.accuracy,
            color=color,
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            label=f"{name}: expected calibration error {error:.3f}",
        )
        share = [rows / sum(one.rows) for rows in one.rows]
        width = 0.055 / len(found)
        places = [sure + (number - (len(found) - 1) / 2) * width for sure in one.confidence]
        lower.bar(places, share, width=width, color=color)
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
