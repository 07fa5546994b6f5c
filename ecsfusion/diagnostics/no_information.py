"""A modality without any information about the label: it never had some, or lost it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ecsfusion.diagnostics.finding import SYNERGY, Finding, Scale

INFORMATION = 0.02
"""Bits about the label that count as none although the noise floor is lower."""
LOST_READINGS = 2
"""In a row: one reading may be that of a step that went astray."""


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
        if all(name in entry["training"] and _is_silent(entry, name, scale) for entry in entries):
            yield Finding(
                "no information",
                name,
                f"{name} says nothing about the label ({last['information'][name]:.3f} bits, noise floor "
                f"{last['floor'][name]:.3f}; its head's accuracy is {last['accuracy'][name]:.3f}, chance "
                f"{scale.chance:.3f}): look at its inputs and whether its rows belong to these labels, raise its rate "
                "in modality_learning_rates, or leave it out.",
            )


def lost_modality(history: Sequence[Mapping[str, Any]], scale: Scale) -> Iterator[Finding]:
    """For each modality that clearly knew the label and has said nothing in the last `LOST_READINGS` probes.

    It clearly knew where its accuracy was six standard errors above chance and its information twice the noise floor;
    what it knew before it was put back to its initial weights does not count.
    """
    for name in history[-1]["unique"]:
        since = max((i + 1 for i, entry in enumerate(history) if name in entry["reset"]), default=0)
        before, latest = history[since:-LOST_READINGS], history[-LOST_READINGS:]
        knew = [entry for entry in before if _clearly_knows(entry, name, scale)]
        if (
            since <= len(history) - LOST_READINGS
            and knew
            and all(_is_silent(entry, name, scale) for entry in latest)
        ):
            then = knew[-1]
            yield Finding(
                "information lost",
                name,
                f"{name} said {then['information'][name]:.2f} bits about the label at step {then['step']}, with an "
                f"accuracy of {then['accuracy'][name]:.3f}, and has said nothing since step {latest[0]['step']} "
                f"(accuracy {latest[-1]['accuracy'][name]:.3f}, chance {scale.chance:.3f}): look whether its inputs "
                "have failed, or lower its rate in modality_learning_rates.",
            )


def _clearly_knows(entry: Mapping[str, Any], name: str, scale: Scale) -> bool:
    clear = max(entry["floor"][name], INFORMATION)
    is_right = entry["accuracy"][name] > scale.chance + 6 * scale.error(scale.chance)
    return is_right and entry["information"][name] > 2 * clear


def _is_silent(entry: Mapping[str, Any], name: str, scale: Scale) -> bool:
    return (
        entry["information"][name] <= max(entry["floor"][name], INFORMATION)
        and entry["synergy"] <= max(entry["floor"]["synergy"], SYNERGY)
        and scale.is_chance(entry["accuracy"][name])
    )
