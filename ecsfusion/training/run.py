"""What the collaborators of the trainer may use of it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import TrainerControl, TrainerState

    from ecsfusion.controller.rule import Rule
    from ecsfusion.modeling import FusionForClassification
    from ecsfusion.training.plan import Plan
    from ecsfusion.training.record import StageRecord
    from ecsfusion.training_args import FusionTrainingArguments


class Run(Protocol):
    """A [`FusionTrainer`], as far as its collaborators look at it."""

    args: FusionTrainingArguments
    model: FusionForClassification
    plan: Plan
    state: TrainerState
    control: TrainerControl
    accelerator: Accelerator
    optimizer: Any
    lr_scheduler: Any
    callback_handler: Any
    is_in_train: bool
    model_wrapped: Any

    @property
    def record(self) -> StageRecord:
        """Stage, who trains, and the history of probes."""

    @property
    def rule(self) -> Rule | None:
        """The rule of the run; None where there is no stage 1."""

    def is_world_process_zero(self) -> bool:
        """Whether this process speaks for all."""

    def saving(self, what: str, folder: str) -> AbstractContextManager[None]:
        """Around what writes to a folder of this run."""

    def save_folder(self, name: str) -> None:
        """Write model and processor to a folder of the output directory, whole or not at all."""

    def load_folder(self, name: str) -> FusionForClassification:
        """The model that a folder of the output directory holds, on the device."""

    def begin_stage(self) -> None:
        """Let the strategy prepare the stage that the model has been set to."""

    def restart_schedule(self, learning_rates: list[float]) -> None:
        """Give the parameter groups these rates and start the schedule of the present stage."""
