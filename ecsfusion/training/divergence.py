"""Training that has broken down, said in one sentence: which modality, and where to look."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.trainer_utils import get_last_checkpoint

from ecsfusion.model.names import FUSED
from ecsfusion.modeling import FusionOutput
from ecsfusion.training.run import Run


class DivergenceError(FloatingPointError):
    """The loss or a gradient is no finite number any more; the optimizer has not stepped on it."""


def raise_divergence(run: Run, broken: str, why: str) -> NoReturn:
    """End training, in a sentence that names what broke, why, and the last checkpoint.

    Args:
        run: the trainer.
        broken: what is no finite number.
        why: where to look.
    """
    folder = run.args.output_dir
    last = get_last_checkpoint(folder) if os.path.isdir(folder) else None
    kept = "no checkpoint had been saved" if last is None else f"the last checkpoint, {last}, is as it was"
    raise DivergenceError(f"after {run.state.global_step} steps, {broken}: {why}. Training stops; {kept}.")


def logits_by_head(outputs: FusionOutput) -> dict[str, Tensor]:
    """Detached logits by head, of the rows that have its modality."""
    heads = {
        name: z.detach()[outputs.present[name]] if outputs.present else z.detach()
        for name, z in (outputs.unimodal_logits or {}).items()
    }
    return heads if outputs.logits is None else {**heads, FUSED: outputs.logits.detach()}


def what_broke(heads: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> str:
    """The first head whose logits are not finite, and whether its inputs are to blame."""
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
