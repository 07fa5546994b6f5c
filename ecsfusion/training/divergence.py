"""Ends a training run that diverges, with an error that names the modality and where to look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers.trainer_utils import has_length

from ecsfusion.data.numbered_rows import NumberedRow, NumberedRows
from ecsfusion.model.names import FUSED
from ecsfusion.modeling import FusionOutput
from ecsfusion.training.run import Run


class DivergenceError(FloatingPointError):
    """The loss or a gradient is not a finite number. The optimizer has not made a step with it."""


def raise_divergence(run: Run, broken: str, why: str) -> NoReturn:
    """Raise the error that ends training.

    Args:
        run: the trainer.
        broken: a clause that says what is not a finite number.
        why: a clause that says why, or where to look.

    Raises:
        DivergenceError: names what is broken, why, and the last checkpoint of this run.
    """
    last = run.latest_checkpoint_of_run
    saved = (
        "this run has saved no checkpoint" if last is None else f"the last checkpoint, {last}, is unchanged"
    )
    raise DivergenceError(f"after {run.state.global_step} steps, {broken}: {why}. Training stops; {saved}.")


def logits_by_head(outputs: FusionOutput) -> dict[str, Tensor]:
    """The detached logits of each head, in the rows that have its modality."""
    heads = {
        name: z.detach()[outputs.present[name]] if outputs.present else z.detach()
        for name, z in (outputs.unimodal_logits or {}).items()
    }
    return heads if outputs.logits is None else {**heads, FUSED: outputs.logits.detach()}


def what_broke(heads: Mapping[str, Tensor], inputs: Mapping[str, Any], dataset: Any = None) -> str:
    """A clause that names the first head whose logits are not finite, and whether its inputs are the cause.

    Args:
        heads: the logits of the batch, by head.
        inputs: the batch.
        dataset: the training rows, in which the row with such inputs is looked for.
    """
    for name, logits in heads.items():
        if not bool(logits.isfinite().all()):
            if name == FUSED:
                return "the fused head's logits are not finite"
            if not _is_finite(inputs.get(name)):
                where = _first_row(dataset, name)
                return f"the inputs of {name} hold NaN or infinite values{where}; look at its rows and its processor"
            return f"the logits of {name} are not finite; lower its rate in modality_learning_rates"
    return "all logits are finite; look at the loss function and the labels"


def _first_row(dataset: Any, name: str) -> str:
    """Where the first row of the data set is whose values of this modality are not finite; empty if none is found.

    The batch does not tell, because its rows are shuffled.
    """
    if isinstance(dataset, IterableDataset) or not has_length(dataset):
        return ""
    rows = NumberedRows(dataset)
    for index in range(len(rows)):
        row = rows[index]
        if isinstance(row, NumberedRow) and not _is_finite(row.get(name)):
            return f", first in row {row.number} of train_dataset"
    return ""


def _is_finite(values: Any) -> bool:
    if isinstance(values, Mapping):
        return all(_is_finite(value) for value in values.values())
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return bool(np.isfinite(values).all())
    return not isinstance(values, torch.Tensor) or bool(values.isfinite().all())
