"""What a report reads of a run."""

from __future__ import annotations

from typing import Any, Protocol


class Run(Protocol):
    """A [`FusionTrainer`] after training, as far as a report looks at it."""

    args: Any
    model: Any
    state: Any
    train_dataset: Any
    reports: dict[str, dict[str, Any]]

    @property
    def controller(self) -> Any:
        """The callback that holds the rule."""

    @property
    def record(self) -> Any:
        """Stage, who trains, and the history of probes."""
