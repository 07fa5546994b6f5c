"""One pair of optimizer parameter groups per modality, with its own learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from torch import nn

from ecsfusion.modeling import FusionForClassification
from ecsfusion.training_args import FusionTrainingArguments


def parameter_groups(
    model: FusionForClassification, args: FusionTrainingArguments, decayed: Collection[str]
) -> list[dict[str, Any]]:
    """Parameter groups named `MODALITY` and `MODALITY.no_decay`, and `fusion` likewise.

    Parameters that the user froze are left out; those of a paused modality are not, for it will be resumed.

    Args:
        model: the model to train.
        args: its learning rates and weight decays, by name where they differ.
        decayed: full names of the parameters that weight decay applies to.

    A learning rate that is not given by name is left to the optimizer's own default.

    Raises:
        ValueError: a learning rate or weight decay for a name that is neither a modality nor "fusion".
    """
    members = parameters_by_part(model)
    # The arguments have turned JSON text from a command line into dictionaries by now.
    rates = cast("dict[str, float]", args.modality_learning_rates or {})
    decays = cast("dict[str, float]", args.modality_weight_decays or {})
    for argument, by_name in (("modality_learning_rates", rates), ("modality_weight_decays", decays)):
        unknown = [name for name in by_name if name not in members]
        if unknown:
            raise ValueError(f"{argument} names {unknown}, but the parameter groups are {list(members)}.")
    groups = []
    for name, parameters in members.items():
        trainable = {key: p for key, p in parameters.items() if p.requires_grad or model.is_paused(key)}
        for suffix, with_decay in (("", True), (".no_decay", False)):
            chosen = [p for key, p in trainable.items() if (key in decayed) == with_decay]
            if chosen:
                groups.append(
                    {
                        "params": chosen,
                        "name": name + suffix,
                        **({"lr": rates[name]} if name in rates else {}),
                        "weight_decay": decays.get(name, args.weight_decay) if with_decay else 0.0,
                    }
                )
    return groups


def parameters_by_part(model: FusionForClassification) -> dict[str, dict[str, nn.Parameter]]:
    """All parameters, by full name, of each modality and of the rest, which is called "fusion"."""
    members = {name: model.modality_parameters(name) for name in model.modalities}
    taken = {key for group in members.values() for key in group}
    members["fusion"] = {key: p for key, p in model.named_parameters() if key not in taken}
    return members
