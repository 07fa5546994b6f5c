"""The table of a run in a notebook. Only this module imports IPython, by way of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.utils.notebook import NotebookProgressCallback

from ecsfusion.evaluation.logged_values import logged_names
from ecsfusion.training.callbacks import stage_name


class NotebookTableCallback(NotebookProgressCallback):
    """The progress bar and table of `transformers` in a notebook, with the columns that matter.

    These are the losses, the stage, the score of every head, the atoms in bits, and the metrics of the user. The log
    has the other values.
    """

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Add a row to the table."""
        prefix = _prefix_of(metrics or {})
        columns = columns_that_matter(metrics or {}, prefix, model.modalities)
        if self.training_tracker is not None:
            columns = {f"{prefix}_stage": stage_name(model), **columns}
        super().on_evaluate(args, state, control, metrics=columns, **kwargs)


def columns_that_matter(metrics: Mapping[str, Any], prefix: str, modalities: Sequence[str]) -> dict[str, Any]:
    """The metrics of an evaluation that a table shows: all but those values of the measurement that are details.

    Args:
        metrics: values by name.
        prefix: that of the names, without "_".
        modalities: names of the modalities of the model.
    """
    details: set[str] = set()
    for score in ("accuracy", "r2"):
        details |= set(logged_names(modalities, score, with_optional=True)) - set(
            logged_names(modalities, score, in_tables=True)
        )
    return {key: value for key, value in metrics.items() if key.removeprefix(f"{prefix}_") not in details}


def _prefix_of(metrics: Mapping[str, Any]) -> str:
    """The prefix of an evaluation set, such as "eval" or "eval_shifted"; its loss has the shortest name."""
    losses = [key.removesuffix("_loss") for key in metrics if key.endswith("_loss")]
    return min(losses, key=len, default="eval")
