"""The trainer as the other modules of `ecsfusion.training` see it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ecsfusion.strategies.strategy import TrainerOfStrategy

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn
    from transformers import TrainerControl, TrainerState

    from ecsfusion.controller.rule import Rule
    from ecsfusion.modeling import FusionForClassification
    from ecsfusion.training.plan import Plan
    from ecsfusion.training.record import StageRecord
    from ecsfusion.training_args import FusionTrainingArguments


class Run(TrainerOfStrategy, Protocol):
    """For the modules of `ecsfusion.training`: what they may use of the [`FusionTrainer`] that they belong to."""

    args: FusionTrainingArguments
    model: FusionForClassification
    plan: Plan
    state: TrainerState
    control: TrainerControl
    accelerator: Accelerator
    optimizer: torch.optim.Optimizer
    is_in_train: bool
    train_dataset: Any
    model_wrapped: nn.Module

    @property
    def record(self) -> StageRecord:
        """The stage, the modalities that train, and the history of probes."""

    @property
    def rule(self) -> Rule | None:
        """The rule of the run; None if there is no stage 1."""

    @property
    def latest_checkpoint_of_run(self) -> Path | None:
        """The latest checkpoint that this run has written or was resumed from, and that still exists."""

    def evaluation_sets(self) -> dict[str, Any]:
        """The evaluation sets, by their names in error messages, the probe set first."""

    def is_world_process_zero(self) -> bool:
        """Whether this is the first process."""

    def saving(self, what: str, folder: str) -> AbstractContextManager[None]:
        """A context for code that writes to a folder of this run."""

    def save_folder(self, name: str) -> None:
        """Write model and processor to a folder of the output directory, completely or not at all."""

    def begin_stage(self) -> None:
        """Let the strategy prepare the stage that the model has been set to."""

    def restart_schedule(self, learning_rates: list[float]) -> None:
        """Set the rates of the parameter groups and start the schedule of the present stage."""
