"""The loss of a batch, made from the losses of its heads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

HeadLoss = Callable[[Tensor, Tensor], Tensor]
"""The loss of one head, a scalar: a function of its logits (N, C) on N rows and of the labels of these rows."""

Present = Mapping[str, Tensor | None]
"""Which rows have each modality, (B,) bool; None where all rows have it."""


def sum_of_losses(
    head_loss: HeadLoss,
    unimodal_logits: Mapping[str, Tensor],
    fused_logits: Tensor | None,
    labels: Tensor,
    present: Present,
    auxiliary_weight: float,
    trained_heads: Iterable[nn.Linear],
) -> Tensor:
    """The loss of a batch: a sum over its heads.

    Without fused logits it is the sum of the unimodal losses, otherwise the fused head's loss + `auxiliary_weight`
    times that sum. A head that is run on some of the rows counts by their share of all rows.

    Args:
        head_loss: the loss of one head on its rows.
        unimodal_logits: (B, C) by modality; the values in rows without the modality are not used.
        fused_logits: (B, C) of the fused head, or None if it is not trained.
        labels: of all B rows.
        present: for each of these modalities, the rows that have it.
        auxiliary_weight: weight of the unimodal losses beside the fused one.
        trained_heads: the unimodal heads that are trained.

    Returns:
        A scalar. Where no row has a modality that is trained, the unimodal sum is zero and gives the `trained_heads`
        a gradient of zero.
    """
    losses = [
        loss
        for name, logits in unimodal_logits.items()
        if (loss := share_of_loss(head_loss, logits, labels, present.get(name))) is not None
    ]
    if losses:
        total = torch.stack(losses).sum()
    else:
        total = torch.stack([head.bias.sum() for head in trained_heads]).sum() * 0.0
    if fused_logits is None:
        return total
    fused = loss_of_fused_head(head_loss, fused_logits, labels, [*present.values()])
    return fused + auxiliary_weight * total


def loss_of_fused_head(
    head_loss: HeadLoss, logits: Tensor, labels: Tensor, present: Collection[Tensor | None]
) -> Tensor:
    """The fused head's part of the loss of a batch, on the rows that have at least one modality that was run.

    Args:
        head_loss: the loss of one head on its rows.
        logits: (B, C).
        labels: of all B rows.
        present: for each modality that was run the rows that have it, (B,) bool, or None for all rows.

    Returns:
        A scalar; zero, with a gradient of zero, if there is no such row.
    """
    masks = [mask for mask in present if mask is not None]
    some = torch.stack(masks).any(dim=0) if len(masks) == len(present) else None
    loss = share_of_loss(head_loss, logits, labels, some)
    return logits.sum() * 0.0 if loss is None else loss


def share_of_loss(
    head_loss: HeadLoss, logits: Tensor, labels: Tensor, present: Tensor | None
) -> Tensor | None:
    """One head's part of the loss of a batch: its loss on its rows, times their share of all rows.

    Args:
        head_loss: the loss of one head on its rows, a mean.
        logits: (B, C); the values in other rows are not used.
        labels: of all B rows.
        present: its rows, (B,) bool, or None for all rows.

    Returns:
        A scalar, or None if the head has no rows.
    """
    if present is None:
        return head_loss(logits, labels)
    rows = present.nonzero()[:, 0]
    if not len(rows):
        return None
    if len(rows) == len(labels):
        return head_loss(logits, labels)
    return head_loss(logits[rows], labels[rows]) * (len(rows) / len(labels))
