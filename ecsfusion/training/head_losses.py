"""A loss function of the user's own, applied to every head as the model applies its own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ecsfusion.modeling import FusionForClassification, FusionOutput


class LossOfAllHeads:
    """`Trainer`'s `compute_loss_func` for a model of several heads.

    The function that the user gives is called once for each head that trains, as
    `function(outputs, labels, num_items_in_batch=...)`, where `outputs.logits` (N, C) are this head's on the rows that
    have its modality and `labels` are theirs. As in `Trainer`, it returns the sum over its rows divided by
    `num_items_in_batch`. The results are added by `FusionForClassification.sum_of_losses`: in stage 1 those of the
    modalities that train; in stage 2 the fused head's + `auxiliary_weight` times the others'.

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

        def head_loss(logits: Tensor, head_labels: Tensor) -> Tensor:
            items: Tensor | float | None = num_items_in_batch
            if items is not None and len(head_labels) < len(labels):
                # The sum of losses multiplies by the share of rows that the head has. That is right for a mean
                # over these rows; a sum divided by the items of the whole batch counts its rows already.
                items = items * (len(head_labels) / len(labels))
            return self.function(FusionOutput(logits=logits), head_labels, num_items_in_batch=items)

        unimodal_logits = outputs.unimodal_logits or {}
        present = outputs.present or dict.fromkeys(unimodal_logits)
        return self.model().sum_of_losses(unimodal_logits, outputs.logits, labels, present, head_loss)
