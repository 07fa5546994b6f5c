"""One pair of optimizer parameter groups per modality, with its own learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from ecsfusion.modeling import FusionForClassification


def parameter_groups(
    model: FusionForClassification,
    decayed: Collection[str],
    *,
    weight_decay: float,
    learning_rates: Mapping[str, float],
    weight_decays: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Make the parameter groups `MODALITY` and `MODALITY.no_decay` of each modality, and those of the fused head.

    Those of the fused head are called `fusion` and `fusion.no_decay`. A head with a rate or weight decay apart from its
    encoder has groups of its own, `MODALITY.head` and `MODALITY.head.no_decay`. Parameters that the user froze are left
    out; those of a paused modality are not, because it will be resumed.

    Args:
        model: the model to train.
        decayed: full names of the parameters that weight decay applies to.
        weight_decay: the common weight decay.
        learning_rates: learning rates by modality, for "MODALITY.head" or for "fusion"; a head uses that of its
            modality, and the others the optimizer's default.
        weight_decays: weight decays likewise; the others use the common one.

    Raises:
        ValueError: a learning rate or weight decay for a name that is none of these.
    """
    members = parameters_by_part(model)
    heads = {head_of(name): name for name in model.modalities}
    by_argument = {"modality_learning_rates": learning_rates, "modality_weight_decays": weight_decays}
    for argument, by_name in by_argument.items():
        unknown = [name for name in by_name if name not in members and name not in heads]
        if unknown:
            raise ValueError(
                f"{argument} names {unknown}, but the parameter groups are {list(members)}, and for heads apart from "
                f"their encoders {list(heads)}."
            )
    groups = []
    for head, modality in heads.items():
        if head in learning_rates or head in weight_decays:
            prefix = f"heads.{modality}."
            members[head] = {key: p for key, p in members[modality].items() if key.startswith(prefix)}
            members[modality] = {key: p for key, p in members[modality].items() if key not in members[head]}
    learning_rates, weight_decays = (_for_heads(values, heads) for values in (learning_rates, weight_decays))
    for name, parameters in members.items():
        trainable = {key: p for key, p in parameters.items() if p.requires_grad or model.is_paused(key)}
        for suffix, with_decay in (("", True), (".no_decay", False)):
            chosen = [p for key, p in trainable.items() if (key in decayed) == with_decay]
            if chosen:
                groups.append(
                    {
                        "params": chosen,
                        "name": name + suffix,
                        **({"lr": learning_rates[name]} if name in learning_rates else {}),
                        "weight_decay": weight_decays.get(name, weight_decay) if with_decay else 0.0,
                    }
                )
    return groups


def parameters_by_part(model: FusionForClassification) -> dict[str, dict[str, nn.Parameter]]:
    """All parameters by their full names: those of each modality, and all others under "fusion"."""
    members = {name: model.modality_parameters(name) for name in model.modalities}
    taken = {key for group in members.values() for key in group}
    members["fusion"] = {key: p for key, p in model.named_parameters() if key not in taken}
    return members


def head_of(modality: str) -> str:
    """The name of the parameter group of a modality's head, where it is apart from its encoder."""
    return f"{modality}.head"


def _for_heads(values: Mapping[str, float], heads: Mapping[str, str]) -> dict[str, float]:
    """The values by group, in which a head that is apart has the value of its modality unless it has its own."""
    return {**{head: values[name] for head, name in heads.items() if name in values}, **values}
