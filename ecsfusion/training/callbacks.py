"""Callbacks of a run: the record that checkpoints keep, the progress bars, and the lines of a log file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ecsfusion.training.record import StageRecord

SECONDS_BETWEEN_LINES = 60.0
"""The time between two lines of progress in a log file."""


def show_progress_of_stages(trainer: Trainer) -> None:
    """Put the callbacks of this library in the place of those by which `transformers` shows progress."""
    # PrinterCallback would print every evaluation as a dictionary of thirty numbers.
    if trainer.pop_callback(PrinterCallback) is not None:
        trainer.add_callback(LinesOfProgress())
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(FusionProgressCallback())
    elif DEFAULT_PROGRESS_CALLBACK is not ProgressCallback and trainer.pop_callback(
        DEFAULT_PROGRESS_CALLBACK
    ):
        # It imports IPython, which only a notebook has for certain.
        from ecsfusion.training.notebook import NotebookTableCallback

        trainer.add_callback(NotebookTableCallback())


@contextmanager
def without_bars(is_quiet: bool) -> Iterator[None]:
    """A context in which `transformers` shows no bars for reading and writing weights, if `is_quiet`."""
    hides = is_quiet and logging.is_progress_bar_enabled()
    if hides:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hides:
            logging.enable_progress_bar()


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


class LinesOfProgress(TrainerCallback):
    """A line a minute where there are no bars, such as in the log file of a cluster's job.

    The line says the step, the stage, the paused modalities, the latest loss and the time that is left. Between the
    lines of probes a quick run prints none.
    """

    def __init__(self) -> None:
        self._started = self._latest = monotonic()
        self._first_step = 0
        self._loss = ""
        self._batches = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start to count the time."""
        self._started = self._latest = monotonic()
        self._first_step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remember the loss for the next line."""
        if logs and "loss" in logs:
            self._loss = f" | loss {logs['loss']:.3f}"

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Print a line if a minute has passed since the latest one."""
        self._batches = 0
        if state.is_world_process_zero and self._is_time():
            seconds_a_step = (self._latest - self._started) / max(state.global_step - self._first_step, 1)
            minutes = seconds_a_step * (state.max_steps - state.global_step) / 60
            print(
                f"step {state.global_step:>5} of {state.max_steps} | {stage_name(model)}{self._loss} | "
                f"{seconds_a_step:.2g} s a step, about {minutes:.0f} min left",
                flush=True,
            )

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Print a line if a minute has passed, in a long probe as well."""
        self._batches += 1
        if state.is_world_process_zero and self._is_time():
            whole = f" of {len(eval_dataloader)}" if has_length(eval_dataloader) else ""
            print(f"step {state.global_step:>5} | evaluating, batch {self._batches}{whole}", flush=True)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the batches of the next evaluation anew."""
        self._batches = 0

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Count the batches of the next evaluation anew."""
        self._batches = 0

    def _is_time(self) -> bool:
        now = monotonic()
        if now - self._latest < SECONDS_BETWEEN_LINES:
            return False
        self._latest = now
        return True


def stage_name(model: Any) -> str:
    """The stage and the paused modalities, for a progress bar: "stage 1, audio paused"."""
    paused = [name for name in model.modalities if name not in model.active]
    stage = "stage 1" if model.stage == "unimodal" else "stage 2"
    if model.stage == "unimodal" and model.trains_fused_head:
        stage = f"{stage}, scouting"
    return f"{stage}, {' and '.join(paused)} paused" if paused else stage
