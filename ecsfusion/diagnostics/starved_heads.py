"""Diagnostic: fresh heads train at the small rate of the pretrained encoders before them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ecsfusion.diagnostics.finding import Finding

MAX_STARVED_RATE = 1e-4
"""A head that starts from nothing hardly moves in a few epochs at this rate or a smaller one, at which pretrained
encoders are fine-tuned."""


class StartingModel(Protocol):
    """What the diagnostic reads of a model before training."""

    config: Any
    """A `FusionConfig`."""
    sources: dict[str, str | None]
    """By modality, the name or path of the weights that the encoder started from; None for random ones."""


def starved_heads(model: StartingModel, rates: Mapping[str, float]) -> Iterator[Finding]:
    """Find heads that start from nothing, behind pretrained encoders, at a rate that is small even for these.

    Nothing is reported of a model that was loaded as a whole or has a readout, because its heads are trained.

    Args:
        model: the model before training.
        rates: the learning rate of each modality's head, and of "fusion".

    Yields:
        At most one finding.
    """
    pretrained = [name for name, source in model.sources.items() if source is not None]
    is_trained = bool(getattr(model.config, "_name_or_path", "")) or model.config.readout is not None
    if is_trained or not pretrained:
        return
    starved = [name for name in (*pretrained, "fusion") if 0 < rates[name] <= MAX_STARVED_RATE]
    if starved:
        heads = [f"the head of {name}" if name != "fusion" else "the fused head" for name in starved]
        yield Finding(
            "starved heads",
            "",
            f"{' and '.join(heads)} {'start' if len(heads) > 1 else 'starts'} from nothing at a rate of "
            f"{max(rates[name] for name in starved):g}, at which pretrained encoders are fine-tuned but heads hardly "
            "learn: give heads a rate of their own, such as head_learning_rate=1e-3.",
        )
