"""Gradients of a PID with respect to the outputs of two heads.

The posteriors of a batch are the atoms of the decomposition, one row and one column for each sample, so nothing is lost
to clusters. The gradient is that of `ecsfusion.pid.differentiable`: by the envelope theorem, without unrolling.
"""

import torch
from torch import Tensor

from ecsfusion.pid.checks import check_positive
from ecsfusion.pid.decomposition import Decomposition, checked_options
from ecsfusion.pid.differentiable import entropy_with_gradient, largest_conditional_entropy
from ecsfusion.pid.inputs import check_classes, class_labels
from ecsfusion.pid.union import matched


def logit_pid(
    logits1: Tensor,
    logits2: Tensor,
    labels: Tensor,
    joint_logits: Tensor | None = None,
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 2000,
) -> Decomposition:
    """What the posteriors of two heads say about the label, with gradients with respect to their logits; in bits.

        pid = logit_pid(outputs.image_logits, outputs.audio_logits, labels)
        loss = cross_entropy + 0.1 * pid.redundancy
        loss.backward()

    The values are those that the posteriors claim: an overconfident head claims too much. Beside a cross-entropy they
    stay honest. All posteriors are scaled until their means are the class frequencies of `labels`, because a
    decomposition needs modalities that agree on the label's distribution. Where a head is too certain for that, rows
    count more whose classes it says too rarely.

    Args:
        logits1: (N, C) floating point; the outputs of the head of the first modality.
        logits2: (N, C): the same of the second, for the same samples.
        labels: (N,) class indices from 0.
        joint_logits: (N, C): the outputs of a head that sees both; None leaves the synergy at zero.
        tolerance: certified width in bits at which the solver stops.
        max_iterations: the number of iterations after which the solver stops in any case.

    Returns:
        Decomposition, float64, without floors and intervals. Every atom is within `gap` of its true value and not
        clamped. `conditional_mutual_information` is None: posteriors do not show it.

    Raises:
        TypeError: for logits that are no floating point tensors, and labels that are no integers.
        ValueError: for other shapes, values or devices than those above, and bad options.
    """
    checked_options(tolerance, max_iterations, None)
    given = {"logits1": logits1, "logits2": logits2}
    given |= {} if joint_logits is None else {"joint_logits": joint_logits}
    for name, values in given.items():
        if not isinstance(values, Tensor) or not values.is_floating_point():
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"{name} must be a floating point tensor (N, C), got {kind}")
        if values.ndim != 2 or values.shape != logits1.shape or 0 in values.shape:
            raise ValueError(
                f"{name} must have the shape (N, C) of logits1, got {tuple(values.shape)} and {tuple(logits1.shape)}"
            )
        if values.device != logits1.device:
            raise ValueError(f"{name} is on {values.device}, logits1 on {logits1.device}; move one of them")
        finite = torch.isfinite(values.detach()).all(-1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise ValueError(f"{name} must be finite, found NaN or infinite values, first in row {row}")
    targets = class_labels(labels, len(logits1), logits1.device, None)
    if targets.ndim != 1:
        raise ValueError(f"labels must have the shape (N,), got {tuple(targets.shape)}")
    classes = logits1.shape[1]
    check_positive(classes, "C")
    check_classes(targets, classes)
    prior = torch.bincount(targets, minlength=classes).double() / len(targets)
    tables = [_table(values, prior) for values in given.values()]
    label = entropy_with_gradient(prior, 1)
    conditional = [
        entropy_with_gradient(table, 2) - entropy_with_gradient(table.sum(-1), 1) for table in tables
    ]
    largest, gap = largest_conditional_entropy(tables[0], tables[1], tolerance, max_iterations)
    both = conditional[2] if joint_logits is not None else largest
    return Decomposition(
        redundancy=label - conditional[0] - conditional[1] + largest,
        unique=torch.stack([conditional[1] - largest, conditional[0] - largest], -1),
        synergy=largest - both,
        mutual_information=torch.stack([label - conditional[0], label - conditional[1]], -1),
        joint_mutual_information=label - both,
        conditional_mutual_information=None,
        gap=gap,
    )


def _table(logits: Tensor, prior: Tensor) -> Tensor:
    """The joint table (N, C) float64 of row and label that logits (N, C) claim, of which each class has its share.

    The first scaling is made of logarithms: of a head that prefers one class by hundreds the other posteriors are 0 in
    float64. The last is of the classes alone: if every row is certain, no scaling of its posterior changes it.
    """
    told = torch.log_softmax(logits.double(), -1)
    # A shift of a class in all rows changes nothing that is matched, so it has no gradient.
    shift = prior.log() - told.detach().logsumexp(0)
    posteriors = matched(torch.softmax(told + shift, -1), prior, 0.0)
    share = posteriors.sum(0)
    return posteriors * torch.where(prior > 0, prior / torch.where(prior > 0, share, 1.0), 0.0)
