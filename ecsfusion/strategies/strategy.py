"""The base class of training strategies: what a strategy sets, and its hooks in the order of a training step.

A strategy is a way to train the fusion model: two stages under a rule, or one of the methods that they are compared
with. `FusionTrainer` owns the loop and calls the hooks; a strategy holds its rule, its numbers and its state.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from accelerate import PartialState
from torch import Tensor

if TYPE_CHECKING:
    from ecsfusion.controller.rule import Rule, RunContext
    from ecsfusion.evaluation.outputs import Evaluation
    from ecsfusion.modeling import FusionForClassification, FusionOutput


class TrainerOfStrategy(Protocol):
    """What a strategy may use of the [`FusionTrainer`] that calls it."""

    # The FusionForClassification
    model: Any
    args: Any
    state: Any
    accelerator: Any

    def load_folder(self, name: str) -> FusionForClassification:
        """The model in a folder of the run: "initial" (where `Strategy.resets`), or stage 1's peak, "unimodal"."""

    def evaluate_training_rows(self) -> Evaluation:
        """What the model answers on training rows, as many as the evaluation set has at most."""


class Strategy:
    """A way to train. For one of your own, subclass and write the hooks that it needs::

        class LouderAudio(Strategy):
            name = "louder-audio"
            stages = "joint"

            def adjust_gradients(self, model):
                for parameter in model.modality_parameters("audio").values():
                    if parameter.grad is not None:
                        parameter.grad.mul_(2.0)

    and pass the class as `FusionTrainer(..., strategy=LouderAudio)`.

    Whatever a strategy must remember belongs into `self.state`, a dictionary of JSON values that is saved with every
    checkpoint (or override `state_dict` and `load_state_dict`, where tensors are faster to work with). Random numbers
    come from torch's global generator, which is restored as well.

    Args:
        modalities: names of the modalities of the model.

    Raises:
        ValueError: more or fewer modalities than the strategy is defined for.
    """

    name: ClassVar[str] = ""
    stages: ClassVar[str] = "joint"
    """What it trains: "joint" (stage 2 alone), "two-stage" or "unimodal" (stage 1 alone); the latter need a rule."""
    auxiliary_weight: ClassVar[float | None] = None
    """Weight of each unimodal loss in stage 2; None to leave it to the arguments."""
    takes_unimodal_share: ClassVar[bool] = False
    """Whether the arguments `max_unimodal_share` and `unimodal_epochs` have a say in its stage 1."""
    only_two: ClassVar[str] = ""
    """Why the strategy is for two modalities only, in a few words; empty if it is not."""
    only_one_process: ClassVar[str] = ""
    """Why it cannot be trained by several processes, in a few words; empty if it can."""
    not_fp16: ClassVar[str] = ""
    """Why it cannot be trained in float16 with a loss scale (bfloat16 needs none), in a few words."""
    only_single_label: ClassVar[str] = ""
    """Why it is for classification with one label a row only, in a few words; empty if it is not."""
    needs_evaluations: ClassVar[str] = ""
    """Why it needs evaluations in training, in a few words; empty if it does not."""
    only_fusion: ClassVar[str] = ""
    """Name of the fused head that it needs; empty if any will do."""
    modalities_per_step: ClassVar[int | None] = None
    """How many modalities an optimizer step trains; None for all that are active."""
    resets: ClassVar[bool] = False
    """Whether it goes back to the weights before training, which `trainer.load_folder("initial")` then gives."""
    has_own_loss: ClassVar[bool] = False
    """Whether `loss` is written: then there is no place for a loss function of the user's."""

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
        """The strategy's name, or that of its class where it has none."""
        return self.name or type(self).__name__

    def learning_rates(self, learning_rate: float) -> dict[str, float]:
        """Learning rates by modality (or "fusion") that this strategy sets, given the common one."""
        return {}

    def make_rule(self, context: RunContext) -> Rule | None:
        """A fresh rule that decides in this run who trains in stage 1; None where there is no stage 1.

        Raises:
            ValueError: a rule that cannot do what the context asks for.
        """
        return None

    def begin_stage(self, trainer: TrainerOfStrategy) -> None:
        """Called when training starts (or goes on after a restart) and at the change to stage 2, before its first step.

        `trainer.model` has the weights that the stage starts from, and `trainer.model.stage` says which it is.
        """

    def prepare_inputs(self, model: FusionForClassification, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch that is trained on, in place of this one; on the device already."""
        return inputs

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> Tensor | None:
        """The loss of a batch, a scalar, in place of the model's own; None to keep that.

        Use `model.head_loss(logits, labels)` for the loss of a head. Rows that lack a modality have NaN in its logits
        and embeddings, see `outputs.present`.
        """
        return None

    def adjust_gradients(self, model: FusionForClassification) -> None:
        """Change the gradients, once for each optimizer step: unscaled, averaged over processes, not clipped yet."""

    def after_step(self, model: FusionForClassification) -> None:
        """Called after each optimizer step."""

    def after_evaluation(self, trainer: TrainerOfStrategy, evaluation: Evaluation) -> None:
        """Called after each evaluation of the probe set in training, on every process with the same evaluation."""

    def state_dict(self) -> dict[str, Any]:
        """Everything the strategy remembers, as JSON values."""
        return copy.deepcopy(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.state = copy.deepcopy(state)


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of this tensor over all processes, so that they all go on with the same number."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # NCCL does not see what is on the CPU.
        summed = values.detach().to(PartialState().device, copy=True)
        torch.distributed.all_reduce(summed)
        return (summed / torch.distributed.get_world_size()).to(values.device)
    return values.detach()


def check_share(share: float) -> None:
    """Raises ValueError for what is no part of the budget."""
    if not 0.0 < share < 1.0:
        raise ValueError(f"share is {share}; it is a part of the budget, between 0 and 1.")


def rows_of(outputs: FusionOutput, name: str) -> Tensor:
    """Indices (n,) of the rows that have this modality."""
    present = outputs.present or {}
    return present[name].nonzero()[:, 0]
