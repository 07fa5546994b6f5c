"""Decisions and warnings of a run as alerts of Trackio, where the run reports to it."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TrackioCallback

from ecsfusion.reporting.facts import decisions_of
from ecsfusion.training.record import StageRecord


class TrackioAlerts(TrainerCallback):
    """Sends each decision of the controller (level "info") and each warning ("warn") once, when it is known.

    Args:
        trainer: has the record of the run. What is in it when a run is resumed was sent before.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._sent: set[tuple[str, int, str]] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count what an earlier part of this run has sent."""
        self._sent = {(level, step, text) for level, step, _, text in alerts_of(self._trainer.record)}

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Send what is new."""
        self._send(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Send the last of it, before Trackio's own callback ends the run there."""
        self._send(state)

    def _send(self, state: TrainerState) -> None:
        import trackio

        # Trackio's callback opens the run when training begins or at the first log. Old versions have no alerts.
        is_open = hasattr(trackio, "alert") and trackio.context_vars.current_run.get() is not None
        if not state.is_world_process_zero or not is_open:
            return
        for level, step, title, text in alerts_of(self._trainer.record):
            if (level, step, text) not in self._sent:
                self._sent.add((level, step, text))
                trackio.alert(title=f"{title}, step {step}", text=text, level=trackio.AlertLevel(level))


def alerts_of(record: StageRecord) -> list[tuple[str, int, str, str]]:
    """Level, step, title and text of every decision that changed something, and of every warning."""
    decisions = [("info", step, "decision", reason) for step, reason in decisions_of(record.history)]
    warnings = [
        ("warn", int(each["step"]), str(each["diagnostic"]), str(each["sentence"]))
        for each in record.warnings
    ]
    return [*decisions, *warnings]


def alert_on_trackio(trainer: Trainer) -> None:
    """Add the callback to a trainer that reports to Trackio, before Trackio's own, which closes the run."""
    callbacks = trainer.callback_handler.callbacks
    place = next((i for i, each in enumerate(callbacks) if isinstance(each, TrackioCallback)), None)
    if place is not None:
        callbacks.insert(place, TrackioAlerts(trainer))
