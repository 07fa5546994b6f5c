"""Shortcut: what only one modality knows, and what does not hold on other data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ecsfusion.diagnostics.finding import Finding, Scale

KEPT = 0.5
"""Share of its lead over chance that a head must keep. Other data may be harder; a head that loses most of its worth
there relied on something else."""


def shortcut(
    validation: Mapping[str, Any],
    scale: Scale,
    other: Mapping[str, Any],
    other_scale: Scale,
    name_of_other: str,
) -> Iterator[Finding]:
    """For each modality that is unique on validation, and whose head keeps less than `KEPT` of its worth elsewhere.

    Worth is accuracy above chance; the loss must be beyond three standard errors. Any further evaluation set is
    compared, whatever its name: one that is like validation loses nothing.

    Args:
        validation: a probe of the trained model on the probe set.
        scale: of that set.
        other: a probe of the same model on the other set.
        other_scale: of that one.
        name_of_other: for the sentence.
    """
    for name, unique in validation["unique"].items():
        here, there = validation["accuracy"][name], other["accuracy"][name]
        worth, left = here - scale.chance, there - other_scale.chance
        noise = math.hypot(scale.error(here), other_scale.error(there))
        if unique > validation["floor"][name] and left < KEPT * worth and worth - left > 3 * noise:
            yield Finding(
                "shortcut",
                f"{name}, {name_of_other}",
                f"{name} may carry a shortcut: it says {unique:.2f} bits about the label that no other modality says, "
                f"with an accuracy of {here:.3f} on validation, but {there:.3f} on {name_of_other} (chance "
                f"{other_scale.chance:.3f}); look at what the model answers there without {name}, or leave it out.",
            )
