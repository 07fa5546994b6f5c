"""A modality without any information about the label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ecsfusion.signatures.finding import SYNERGY, Finding, Scale

INFORMATION = 0.02
"""Bits about the label that count as none although the noise floor is lower."""


def silent_modality(entries: Sequence[Mapping[str, Any]], scale: Scale) -> Iterator[Finding]:
    """For each modality that trained and says nothing, neither alone nor with others, in any of these probes.

    Its information is within its noise floor, its head's accuracy within three standard errors of chance, and so is
    synergy within its floor: where the label needs several modalities together, each alone says nothing, and that is no
    failure.

    Args:
        entries: probes in a row, or one of the trained model.
        scale: of the probe set.
    """
    last = entries[-1]
    for name in last["unique"]:
        if all(_is_silent(entry, name, scale) for entry in entries):
            yield Finding(
                "no information",
                name,
                f"{name} says nothing about the label ({last['information'][name]:.3f} bits, noise floor "
                f"{last['floor'][name]:.3f}; its head's accuracy is {last['accuracy'][name]:.3f}, chance "
                f"{scale.chance:.3f}): look at its inputs and whether its rows belong to these labels, raise its rate "
                "in modality_learning_rates, or leave it out.",
            )


def _is_silent(entry: Mapping[str, Any], name: str, scale: Scale) -> bool:
    return (
        name in entry["training"]
        and entry["information"][name] <= max(entry["floor"][name], INFORMATION)
        and entry["synergy"] <= max(entry["floor"]["synergy"], SYNERGY)
        and scale.is_chance(entry["accuracy"][name])
    )
