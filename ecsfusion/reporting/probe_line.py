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
    scores = "  ".join(f"{name} {100 * reading.accuracy[name]:.1f}" for name in modalities)
    calibrated = reading.accuracy.get(CALIBRATED)
    return (
        f"step {probe.step:>5} | {probe.phase:<8} | training {', '.join(probe.training)}"
        f"{' | paused ' + ', '.join(paused) if paused else ''}"
        f" | R {reading.redundancy:.2f}  U {unique}  S {reading.synergy:.2f} bits"
        f" | accuracy {scores}  fused {100 * reading.accuracy[FUSED]:.1f}"
        f"{'' if calibrated is None else f'  calibrated {100 * calibrated:.1f}'} %"
    )
