"""Callbacks of a run: the record that checkpoints keep, and the progress bars."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState, ProgressCallback

from ecsfusion.training.record import StageRecord


class ControllerCallback(TrainerCallback, ExportableState):
    """Holds the record of a run. The Trainer saves it with every checkpoint and restores it from there."""

    def __init__(self) -> None:
        self.record = StageRecord()

    def state(self) -> dict[str, Any]:
        """The state that a checkpoint keeps, as `ExportableState` demands it."""
        return {"args": {}, "attributes": {"saved_record": self.saved_record}}

    @property
    def saved_record(self) -> dict[str, Any]:
        """The record as plain JSON, with the number of its format; setting it restores the record."""
        return self.record.to_json()

    @saved_record.setter
    def saved_record(self, values: dict[str, Any]) -> None:
        self.record = StageRecord.from_json(values)


class FusionProgressCallback(ProgressCallback):
    """Progress bars that also show the stage, the paused modalities, and the progress of a probe.

    Losses are shown on the bar; each probe is printed as one line.
    """

    # transformers sets both to None and declares nothing, so mypy would take them for None.
    training_bar: Any
    prediction_bar: Any

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Advance the bar of the run, and show the stage on it."""
        super().on_step_end(args, state, control, **kwargs)
        if state.is_world_process_zero:
            self.training_bar.set_description_str(stage_name(model), refresh=False)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Advance the bar of a probe, and show that the decomposition follows the last batch."""
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)
        bar = self.prediction_bar
        if bar is not None:
            is_last = bar.n >= (bar.total or 0)
            bar.set_description_str("probe: decomposing" if is_last else "probe: embedding")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss on the bar."""
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.3f}")


def stage_name(model: Any) -> str:
    """The stage and the paused modalities, for a progress bar: "stage 1, audio paused"."""
    paused = [name for name in model.modalities if name not in model.active]
    stage = "stage 1" if model.stage == "unimodal" else "stage 2"
    if model.stage == "unimodal" and model.trains_fused_head:
        stage = f"{stage}, scouting"
    return f"{stage}, {' and '.join(paused)} paused" if paused else stage
