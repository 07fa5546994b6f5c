"""Applies a loss function of the user to every head of the model."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ecsfusion.modeling import FusionForClassification, FusionOutput


class LossOfAllHeads:
    """A `compute_loss_func` for the Trainer that applies the user's function to each head.

    The function of the user is called once for each head that trains, as
    `function(outputs, labels, num_items_in_batch=...)`. There `outputs.logits` (N, C) are the logits of this head in
    the rows that have its modality, and `labels` are the labels of these rows. As for the Trainer, it returns the sum
    over its rows divided by `num_items_in_batch`. `FusionForClassification.sum_of_losses` adds the results: in stage 1
    those of the modalities that train; in stage 2 that of the fused head and, times `auxiliary_weight`, those of the
    modalities.

    Args:
        function: the loss function of the user.
        model: returns the model that is trained, whose stage and weight of unimodal losses are used.
    """

    def __init__(self, function: Callable[..., Tensor], model: Callable[[], FusionForClassification]) -> None:
        self.function = function
        self.model = model

    def __call__(
        self, outputs: FusionOutput, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Raises:
            TypeError: the function of the user returned no scalar tensor, such as `outputs.loss`, which is None here.
        """

        def head_loss(logits: Tensor, head_labels: Tensor) -> Tensor:
            items: Tensor | float | None = num_items_in_batch
            if items is not None and len(head_labels) < len(labels):
                # `sum_of_losses` multiplies the loss of a head by its share of the rows, which is right for a mean
                # over these rows. The user's sum is divided by the items of the whole batch, so it must not be
                # reduced twice.
                items = items * (len(head_labels) / len(labels))
            loss = self.function(FusionOutput(logits=logits), head_labels, num_items_in_batch=items)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
                raise TypeError(
                    f"compute_loss_func returned {what}; let it make a scalar tensor of outputs.logits and labels."
                )
            return loss

        unimodal_logits = outputs.unimodal_logits or {}
        present = outputs.present or dict.fromkeys(unimodal_logits)
        return self.model().sum_of_losses(unimodal_logits, outputs.logits, labels, present, head_loss)
