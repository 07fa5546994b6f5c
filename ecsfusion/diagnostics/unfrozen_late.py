"""Diagnostic: weights were unfrozen after the optimizer was made, which does not have them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from torch import nn

from ecsfusion.diagnostics.finding import Finding


def unfrozen_late(
    parts: Mapping[str, Iterable[nn.Parameter]], optimized: Collection[int]
) -> Iterator[Finding]:
    """Find weights that require a gradient and do not train, as where a callback unfreezes an encoder step by step.

    Args:
        parts: the parameters by modality, and of the fused head.
        optimized: the ids of those that the optimizer has.

    Yields:
        At most one finding for each part.
    """
    for name, parameters in parts.items():
        number = sum(p.requires_grad and id(p) not in optimized for p in parameters)
        if number:
            yield Finding(
                "unfrozen late",
                name,
                f"{number} weights of {name} were frozen when the optimizer was made, so that it does not have them, "
                "and they do not train, though they require a gradient now: unfreeze them before train().",
            )
