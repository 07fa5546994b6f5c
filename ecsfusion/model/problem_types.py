"""Kinds of labels, named as `config.problem_type` in transformers, and their losses.

| `problem_type` | labels | logits mean | loss |
| --- | --- | --- | --- |
| `single_label_classification` | (B,) class indices | (B, C), softmax | cross-entropy |
| `multi_label_classification` | (B, C) of 0 and 1 | (B, C), a sigmoid each | binary cross-entropy |
| `regression` | (B,) or (B, C) real | (B, C), the prediction | mean squared error |

Where the configuration has no problem type, it is regression for `num_labels=1`, and single-label classification
otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


def problem_type_of(config: Any) -> str:
    """The problem type of a model's configuration, by its number of labels where it is not set."""
    return config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE_LABEL)


def check_problem_type(problem_type: str) -> None:
    """Raises ValueError for a problem type that is none of the three."""
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type is {problem_type!r}; give one of {', '.join(PROBLEM_TYPES)}.")


def check_problem(config: Any) -> None:
    """Raises ValueError for a configuration with an unknown problem type or without classes."""
    if config.problem_type is not None:
        check_problem_type(config.problem_type)
    if config.num_labels < 1:
        raise ValueError(f"num_labels is {config.num_labels}; give the number of classes.")


def mean_loss(logits: Tensor, labels: Tensor, problem_type: str, label_smoothing: float = 0.0) -> Tensor:
    """The loss of one head, a scalar: the mean over rows (and over labels or targets, where there are several).

    Args:
        logits: (N, C).
        labels: as the table at the top of this module says.
        problem_type: one of `PROBLEM_TYPES`.
        label_smoothing: share of the label's weight that is spread over all classes (for several labels: over yes
            and no).

    Raises:
        ValueError: label smoothing in regression.
    """
    logits = logits.float()
    if problem_type == SINGLE_LABEL:
        return F.cross_entropy(logits, labels.long(), label_smoothing=label_smoothing)
    if problem_type == MULTI_LABEL:
        smooth = labels.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth)
    if label_smoothing:
        raise ValueError(
            f"label smoothing is {label_smoothing}, but a real target has no classes; set it to 0."
        )
    return F.mse_loss(logits, labels.to(logits.dtype).reshape(logits.shape))


def check_labels(labels: Tensor, num_labels: int, problem_type: str) -> None:
    """Check that labels are what the problem type asks for; their values are checked on the CPU only.

    Args:
        labels: (B,) or (B, C).
        num_labels: C.
        problem_type: one of `PROBLEM_TYPES`.

    Raises:
        TypeError: no tensor of real numbers with rows.
        ValueError: another shape or dtype, or values that are no classes, not between 0 and 1, or not finite.
    """
    if not isinstance(labels, Tensor) or labels.is_complex() or not labels.ndim:
        kind = (
            f"of {labels.dtype}, shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else "no tensor"
        )
        raise TypeError(f"labels are {kind}: {type(labels).__name__}; give a tensor with one entry per row.")
    shape = tuple(labels.shape)
    # On a GPU, reading the values would make the host wait for the device at every step.
    on_cpu = labels.device.type == "cpu" and labels.numel() > 0
    # torch cannot compare some of the unsigned integer types.
    values = labels if labels.is_floating_point() else labels.long()
    if problem_type == SINGLE_LABEL:
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                f"labels have shape {shape} and dtype {labels.dtype}; give one class index per row, or build the "
                f'model with problem_type="{MULTI_LABEL}" or "{REGRESSION}".'
            )
        smallest, largest = (int(values.min()), int(values.max())) if on_cpu else (0, 0)
        if smallest < 0:
            raise ValueError(
                f"labels hold the class {smallest}, but classes count from 0: correct the labels, or leave 'labels' "
                "out of rows that have none."
            )
        if largest >= num_labels:
            raise ValueError(
                f"labels hold the class {largest}, but the model has {num_labels} classes, from 0: correct the labels "
                "or num_labels."
            )
    elif problem_type == MULTI_LABEL:
        if labels.ndim != 2 or labels.shape[1] != num_labels:
            raise ValueError(f"labels have shape {shape}; give 0 or 1 for each of the {num_labels} labels.")
        if on_cpu and not (float(values.min()) >= 0 and float(values.max()) <= 1):
            wrong = next(value for value in values.flatten().tolist() if not 0 <= value <= 1)
            raise ValueError(
                f"labels are not all between 0 and 1, found {wrong:g}; give 0 or 1 for each of the labels."
            )
    else:
        if shape[1:] != (num_labels,) and not (labels.ndim == 1 and num_labels == 1):
            wanted = "(B,) or (B, 1)" if num_labels == 1 else f"(B, {num_labels})"
            raise ValueError(f"labels have shape {shape}; give the targets as {wanted}.")
        if on_cpu and not bool(torch.isfinite(values).all()):
            raise ValueError("labels hold NaN or infinite values; remove these rows.")
