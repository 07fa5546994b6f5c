"""Ends a training run that diverges, with an error that names the modality and where to look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

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


def what_broke(heads: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> str:
    """A clause that names the first head whose logits are not finite, and whether its inputs are the cause."""
    for name, logits in heads.items():
        if not bool(logits.isfinite().all()):
            if name == FUSED:
                return "the fused head's logits are not finite"
            if not _is_finite(inputs.get(name)):
                return f"the inputs of {name} hold NaN or infinite values; look at its rows and its processor"
            return f"the logits of {name} are not finite; lower its rate in modality_learning_rates"
    return "all logits are finite; look at the loss function and the labels"


def _is_finite(values: Any) -> bool:
    if isinstance(values, Mapping):
        return all(_is_finite(value) for value in values.values())
    return not isinstance(values, torch.Tensor) or bool(values.isfinite().all())
