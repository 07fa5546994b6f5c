"""The base class of training strategies: what a strategy sets, and its hooks in the order of a training step.

A strategy is a way to train the fusion model: in two stages under a rule, or by one of the methods that this is
compared with. `FusionTrainer` owns the training loop and calls the hooks of the strategy.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from accelerate import PartialState
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import TrainerState

    from ecsfusion.controller.rule import Rule, RunContext
    from ecsfusion.evaluation.outputs import Evaluation
    from ecsfusion.modeling import FusionForClassification, FusionOutput


class TrainerOfStrategy(Protocol):
    """For strategies: what a strategy may use of the [`FusionTrainer`] that calls it.

    Attributes:
        model: the `FusionForClassification` that is trained.
        args: the `FusionTrainingArguments`.
        state: the `transformers.TrainerState`.
        accelerator: the `accelerate.Accelerator`.
    """

    model: FusionForClassification
    args: Any
    state: TrainerState
    accelerator: Accelerator

    def load_folder(self, name: str) -> FusionForClassification:
        """Load a model that the run has saved: "unimodal", the peak of stage 1, or "initial" (if `Strategy.resets`)."""

    def evaluate_training_rows(self) -> Evaluation:
        """Evaluate training rows, at most as many as the evaluation set has."""


class Strategy:
    """A way to train the fusion model.

    To write a strategy, derive a class that defines the hooks that it needs::

        class LouderAudio(Strategy):
            name = "louder-audio"
            stages = "joint"

            def adjust_gradients(self, model):
                for parameter in model.modality_parameters("audio").values():
                    if parameter.grad is not None:
                        parameter.grad.mul_(2.0)

    and pass the class as `FusionTrainer(..., strategy=LouderAudio)`.

    What a strategy must remember belongs in `self.state`, a dictionary of JSON values that is saved with every
    checkpoint. A strategy that has to remember tensors overrides `state_dict` and `load_state_dict`. Draw random
    numbers from torch's global generator, whose state is saved too.

    Args:
        modalities: names of the modalities of the model.

    Raises:
        ValueError: more or fewer modalities than the strategy is defined for.
    """

    name: ClassVar[str] = ""
    stages: ClassVar[str] = "joint"
    """What it trains: "joint" (only stage 2), "two-stage" or "unimodal" (only stage 1). The last two need a rule."""
    auxiliary_weight: ClassVar[float | None] = None
    """Weight of each unimodal loss in stage 2; None to leave it to the arguments."""
    takes_unimodal_share: ClassVar[bool] = False
    """Whether the arguments `max_unimodal_share` and `unimodal_epochs` may set the length of its stage 1."""
    only_two: ClassVar[str] = ""
    """Why the strategy is for two modalities only, in a few words; empty if it is not."""
    only_one_process: ClassVar[str] = ""
    """Why it cannot be trained by several processes, in a few words; empty if it can."""
    not_sharded: ClassVar[str] = ""
    """Why it cannot be trained where FSDP version 2 shards the weights, in a few words; empty if it can."""
    not_fp16: ClassVar[str] = ""
    """Why it cannot be trained in float16 with a loss scale, in a few words; empty if it can."""
    only_single_label: ClassVar[str] = ""
    """Why it is only for classification with one label per row, in a few words; empty if it is not."""
    needs_evaluations: ClassVar[str] = ""
    """Why it needs evaluations in training, in a few words; empty if it does not."""
    only_fusion: ClassVar[str] = ""
    """Name of the fused head that it needs; empty if it works with any."""
    modalities_per_step: float | None = None
    """How many modalities an optimizer step trains on average; None for all that are active."""
    resets: ClassVar[bool] = False
    """Whether it uses the weights from before training, which `trainer.load_folder("initial")` then loads."""
    has_own_loss: ClassVar[bool] = False
    """Whether it defines `loss`. Then the user cannot give a loss function."""
    loss_trains_heads: ClassVar[bool] = True
    """Whether that `loss` trains the head of each modality. Heads that nothing trains get no weight in the readout."""

    def __init__(self, modalities: Sequence[str]) -> None:
        self.modalities = tuple(modalities)
        if self.only_two and len(self.modalities) != 2:
            raise ValueError(
                f"the strategy {self.label!r} is for two modalities ({self.only_two}), and the model has "
                f"{list(self.modalities)}; choose another strategy."
            )
        self.state: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """The name of the strategy, or the name of its class if it has none."""
        return self.name or type(self).__name__

    def learning_rates(self, learning_rate: float) -> dict[str, float]:
        """The learning rates that this strategy sets, by modality or for "fusion".

        Args:
            learning_rate: the common learning rate.
        """
        return {}

    def make_rule(self, context: RunContext) -> Rule | None:
        """Make the rule that decides in this run which modalities train in stage 1; None if there is no stage 1.

        Raises:
            ValueError: the rule cannot do what the context asks for.
        """
        return None

    def begin_stage(self, trainer: TrainerOfStrategy) -> None:
        """Prepare a stage; called when training starts, when it is resumed, and when stage 2 begins.

        `trainer.model` has the weights that the stage starts from, and `trainer.model.stage` is the name of the stage.
        """

    def prepare_inputs(self, model: FusionForClassification, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the batch to train on in place of this one, which is on the device already."""
        return inputs

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> Tensor | None:
        """Return the loss of a batch, a scalar, in place of the model's own; None to keep that.

        Use `model.head_loss(logits, labels)` for the loss of a head. Rows that lack a modality have NaN in its logits
        and embeddings; `outputs.present` says which rows these are.
        """
        return None

    def adjust_gradients(self, model: FusionForClassification) -> None:
        """Change the gradients, once in each optimizer step.

        They are averaged over the processes, without a loss scale, and not clipped yet. Under FSDP version 2 they are
        DTensors, of which each process has some rows.
        """

    def after_step(self, model: FusionForClassification) -> None:
        """Do something after each optimizer step."""

    def after_evaluation(self, trainer: TrainerOfStrategy, evaluation: Evaluation) -> None:
        """Do something after each evaluation of the probe set in training.

        It is called on every process, with the same evaluation.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything the strategy remembers, as JSON values."""
        return copy.deepcopy(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.state = copy.deepcopy(state)


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes, so that all of them use the same values."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # NCCL works with tensors on the device only.
        summed = values.detach().to(PartialState().device, copy=True)
        torch.distributed.all_reduce(summed)
        return (summed / torch.distributed.get_world_size()).to(values.device)
    return values.detach()


def check_share(share: float) -> None:
    """Check that `share` is a share of the budget.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share is {share}; it is a part of the budget, between 0 and 1.")


def rows_of(outputs: FusionOutput, name: str) -> Tensor:
    """Indices (n,) of the rows that have this modality."""
    present = outputs.present or {}
    return present[name].nonzero()[:, 0]
