"""A loss function of the user's own, applied to every head as the model applies its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ecsfusion.modeling import FusionForClassification, FusionOutput


class LossOfAllHeads:
    """`Trainer`'s `compute_loss_func` for a model of several heads.

    The function that the user gives is called once for each head that trains, as
    `function(outputs, labels, num_items_in_batch=...)`, where `outputs.logits` (N, C) are this head's on the rows that
    have its modality and `labels` are theirs. As in `Trainer`, it returns the sum over its rows divided by
    `num_items_in_batch`. The results are added as the model does it: in stage 1 those of the modalities that train; in
    stage 2 the fused head's + `auxiliary_weight` times the others'.

    Args:
        function: the user's.
        model: gives the model that is trained, whose stage and weight count.
    """

    def __init__(self, function: Callable[..., Tensor], model: Callable[[], FusionForClassification]) -> None:
        self.function = function
        self.model = model

    def __call__(
        self, outputs: FusionOutput, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss of a batch, a scalar."""
        losses = []
        for name, logits in (outputs.unimodal_logits or {}).items():
            mask = None if outputs.present is None else outputs.present[name]
            if mask is None or bool(mask.all()):
                losses.append(self._of_head(logits, labels, num_items_in_batch))
            elif bool(mask.any()):
                # A mean over the rows that have the modality must count as much as these rows do; a sum over
                # num_items_in_batch counts them already.
                share = float(mask.double().mean())
                items = None if num_items_in_batch is None else num_items_in_batch * share
                losses.append(share * self._of_head(logits[mask], labels[mask], items))
        model = self.model()
        total = torch.stack(losses).sum() if losses else _zero(model)
        if not model.trains_fusion or outputs.logits is None:
            return total
        seen = torch.stack(list((outputs.present or {}).values())).any(dim=0)
        if bool(seen.all()):
            fused = self._of_head(outputs.logits, labels, num_items_in_batch)
        elif not bool(seen.any()):
            fused = outputs.logits.sum() * 0.0
        else:  # rows whose only modality is paused
            share = float(seen.double().mean())
            items = None if num_items_in_batch is None else num_items_in_batch * share
            fused = share * self._of_head(outputs.logits[seen], labels[seen], items)
        return fused + model.config.auxiliary_weight * total

    def _of_head(self, logits: Tensor, labels: Tensor, items: Any) -> Tensor:
        return self.function(FusionOutput(logits=logits), labels, num_items_in_batch=items)


def _zero(model: FusionForClassification) -> Tensor:
    """No row has a modality that trains: a loss of zero that has a gradient, also zero."""
    heads = [cast("nn.Linear", model.heads[name]) for name in model.active]
    return torch.stack([head.bias.sum() for head in heads]).sum() * 0.0
