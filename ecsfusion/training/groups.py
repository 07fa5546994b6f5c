"""The groups of rows in a run: which column names them, how they reach evaluations, and which were trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from ecsfusion.data.groups import (
    GROUPS,
    GroupCollator,
    check_group_column,
    column_of,
    group_key,
    has_column,
    keys_of,
)
from ecsfusion.diagnostics.finding import Finding
from ecsfusion.diagnostics.groups import shared_groups
from ecsfusion.training.run import Run


class RunGroups:
    """Carries the groups of rows, which `group_column_name` names, to the evaluations of a run.

    Args:
        run: the trainer.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._trained: set[int] = set()
        """The groups of the training rows, as far as they can be read without making the rows."""
        self._training_collator: GroupCollator | None = None

    @property
    def column(self) -> str | None:
        """The column that holds the group of a row; None where rows stand alone."""
        return self._run.args.group_column_name

    def begin(self) -> Iterator[Finding]:
        """Check the column of the probe set, and look for groups that training and evaluation share.

        Raises:
            ValueError: the probe set has no such column, the column is one that the model reads, or a row that will be
                evaluated has no group.
            TypeError: such a row has a group that is neither a text nor a whole number.
        """
        self._trained = set()
        if self.column is None:
            return
        sets = self._run.evaluation_sets()
        for dataset in list(sets.values())[:1]:
            self._check(dataset)
        self._trained = keys_of(column_of(self._run.train_dataset, self.column) or ())
        for place, (argument, dataset) in enumerate(sets.items()):
            # Sets other than the probe set may lack the column.
            values = column_of(dataset, self.column) if has_column(dataset, self.column) else None
            if values is not None:
                name = argument.removeprefix("eval_dataset['").removesuffix("']") if place else "validation"
                # Here, and not at the first evaluation, after an epoch.
                keys = [
                    group_key(each, self.column, f"row {i} of {argument}") for i, each in enumerate(values)
                ]
                yield from shared_groups(self._trained, keys, name)

    def shared(self, groups: Tensor | None, split: str) -> Iterator[Finding]:
        """Look for groups of an evaluation that the run has trained on."""
        if groups is not None:
            seen = set() if self._training_collator is None else self._training_collator.seen
            yield from shared_groups(self._trained | seen, groups.tolist(), split)

    def collator(
        self, collate: Callable[[Any], Any], dataset: Any, is_training: bool
    ) -> Callable[[Any], Any]:
        """The collator of a loader of a data set: the given one, which gets rows without the column.

        Raises:
            ValueError: as `begin`, of the probe set.
        """
        if self.column is None:
            return collate
        if is_training:
            self._training_collator = GroupCollator(collate, self.column)
            return self._training_collator
        self._check(dataset)
        return GroupCollator(collate, self.column, carries=has_column(dataset, self.column))

    def without_column(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A collator that makes a batch as the given one makes it of rows without the column."""
        return collate if self.column is None else GroupCollator(collate, self.column)

    def _check(self, dataset: Any) -> None:
        """Raise ValueError if this is the probe set, and it has no such column, or one that the model reads."""
        for argument, probe_set in list(self._run.evaluation_sets().items())[:1]:
            if dataset is probe_set and self.column is not None:
                check_group_column(dataset, self.column, self._run.model.modalities, argument)


def split_inputs(inputs: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The inputs of the model, and the groups (B,) of the rows of a batch; None where it has none."""
    if GROUPS not in inputs:
        return inputs, None
    return {key: value for key, value in inputs.items() if key != GROUPS}, inputs[GROUPS]


def without_groups(outputs: Any) -> Any:
    """The outputs of the model, without the groups that came along."""
    if not isinstance(outputs, tuple):
        return outputs
    kept = tuple(each for each in outputs if not (isinstance(each, Mapping) and GROUPS in each))
    return kept[0] if len(kept) == 1 else kept
