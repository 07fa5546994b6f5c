"""One optimizer step: which rows share a batch, whose loss it is, how gradients are clipped, who moves how far."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint, has_length

from ecsfusion.data.lengths import SeededLengthGroupedSampler, row_lengths
from ecsfusion.strategies import Strategy
from ecsfusion.training.clipping import clip_by_part, total_norm
from ecsfusion.training.divergence import DivergenceError, logits_by_head, what_broke
from ecsfusion.training.head_losses import LossOfAllHeads
from ecsfusion.training.parameter_groups import parameter_groups
from ecsfusion.training.publishing import PublishingTrainer

OWN_GROUPS = frozenset({"params", "model", "optimizer_dict"})  # of optimizers that take no parameter groups


class SteppingTrainer(PublishingTrainer):
    """The part of [`FusionTrainer`] that takes steps, each modality with its own rate and its own clipping."""

    compute_loss_func: Any
    optimizer_cls_and_kwargs: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._heads: dict[str, torch.Tensor] = {}  # logits of the latest training batch
        self._parts: dict[str, list[nn.Parameter]] = {}
        self._grad_norms: dict[str, torch.Tensor] = {}
        self.strategy: Strategy
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None:
            self.compute_loss_func = LossOfAllHeads(self.compute_loss_func, lambda: self.model)
        # The model smooths every head's labels; the Trainer's smoother knows only one set of logits.
        self.label_smoother = None
        self._parameter_groups()  # fails now, not after the data is loaded, on a name that matches nothing
        self._check_optimizer()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """As `transformers.Trainer.training_step`; a loss that is no number ends training.

        Raises:
            DivergenceError: it names the modality and the step.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not bool(loss.isfinite()):  # the Trainer waits for this number in any case
            self._diverged(f"the loss is {float(loss)}", what_broke(self._heads, inputs))
        return loss

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """The optimizer of `args.optim` over the parameter groups of the modalities."""
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if not OWN_GROUPS & set(kwargs):
            kwargs["params"] = self._parameter_groups()
        elif self.args.modality_learning_rates or self.args.modality_weight_decays:
            raise ValueError(
                f"optim is {str(getattr(args.optim, 'value', args.optim))!r}, which makes parameter groups of its own; "
                "leave out modality_learning_rates and modality_weight_decays, or choose another optimizer."
            )
        return optimizer_class, kwargs

    def _check_optimizer(self) -> None:
        by_name = self.args.modality_learning_rates or self.args.modality_weight_decays
        if by_name and self.optimizer is not None:
            raise ValueError(
                "optimizers holds an optimizer, so modality_learning_rates and modality_weight_decays (given here, or "
                "set by the strategy) would have no effect; give its parameter groups their rates, or leave "
                "`optimizers` out."
            )

    def _parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model, self.args, self.get_decay_parameter_names(self.model))

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not has_length(dataset):
            return super()._get_train_sampler(train_dataset)
        lengths = row_lengths(dataset, self.model.modalities, self.args.length_column_name)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SeededLengthGroupedSampler(batch_size, lengths, seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_eval_sampler(eval_dataset)
        # A probe reads its rows in their order.
        return (
            SequentialSampler(eval_dataset)
            if has_length(eval_dataset) and self.args.world_size <= 1
            else None
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As `transformers.Trainer.compute_loss`."""
        training = self.model.training
        if training and not any(name in inputs for name in self.label_names):
            raise ValueError(
                f"a batch of train_dataset has {sorted(inputs)} but no labels; add 'labels' or 'label' to its rows."
            )
        if training:
            inputs = self.strategy.prepare_inputs(self.model, inputs)
        # A copy: the Trainer takes the labels out for a loss function of the user's.
        loss, outputs = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
        if training:
            self._heads = logits_by_head(outputs)
            if self.model.stage == "joint":
                own = self.strategy.loss(self.model, outputs, inputs["labels"])
                loss = loss if own is None else own
        return (loss, outputs) if return_outputs else loss

    def _diverged(self, what: str, why: str) -> None:
        folder = self.args.output_dir
        last = get_last_checkpoint(folder) if os.path.isdir(folder) else None
        kept = (
            "no checkpoint had been saved" if last is None else f"the last checkpoint, {last}, is as it was"
        )
        raise DivergenceError(f"after {self.state.global_step} steps, {what}: {why}. Training stops; {kept}.")

    # The training loop calls these two; the Trainer has no public hook for clipping.

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if not self._clips_by_part():
            return super()._clip_grad_norm(model)
        return self._clip(self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None and self._clips_by_part():
            grad_norm = self._clip(math.inf)
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _clips_by_part(self) -> bool:
        """DeepSpeed and the first FSDP own the gradients, and clip them together."""
        kind, accelerator = self.accelerator.distributed_type, self.accelerator
        return kind != DistributedType.DEEPSPEED and (kind != DistributedType.FSDP or accelerator.is_fsdp2)

    def _clip(self, max_norm: float) -> torch.Tensor:
        self.accelerator.unscale_gradients()
        self.strategy.adjust_gradients(self.model)
        self._grad_norms = clip_by_part(self._parts, max_norm)
        norm = total_norm(self._grad_norms)
        if self.accelerator.scaler is None and not bool(norm.isfinite()):  # a scaler skips such a step
            broken = [name for name, value in self._grad_norms.items() if not bool(value.isfinite())]
            self._diverged(
                f"the gradient of {' and '.join(broken)} is not finite",
                "the loss was; lower its rate in modality_learning_rates, or look for a division by zero",
            )
        return norm
