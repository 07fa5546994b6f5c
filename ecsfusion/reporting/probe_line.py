"""One probe as one readable line."""

from __future__ import annotations

from collections.abc import Sequence

from ecsfusion.controller.probe import Probe
from ecsfusion.model.names import CALIBRATED, FUSED


def probe_line(probe: Probe, modalities: Sequence[str]) -> str:
    """The line that a run prints for a probe: step, who trains, the atoms in bits, and the score of every head."""
    reading = probe.reading
    paused = [name for name in modalities if name not in probe.training]
    unique = "  ".join(f"{name} {reading.unique[name]:.2f}" for name in modalities)
    is_accuracy = reading.measurement.score == "accuracy"
    heads = [head for head in (*modalities, FUSED, CALIBRATED) if head in reading.accuracy]
    scores = "  ".join(
        f"{head} {100 * reading.accuracy[head]:.1f}"
        if is_accuracy
        else f"{head} {reading.accuracy[head]:.3f}"
        for head in heads
    )
    return (
        f"step {probe.step:>5} | {probe.phase:<8} | training {', '.join(probe.training)}"
        f"{' | paused ' + ', '.join(paused) if paused else ''}"
        f" | R {reading.redundancy:.2f}  U {unique}  S {reading.synergy:.2f} bits"
        f" | {reading.measurement.score} {scores}{' %' if is_accuracy else ''}"
    )
