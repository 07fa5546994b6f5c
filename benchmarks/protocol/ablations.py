"""Rules that leave out, or replace, one part of two-stage training: what is each part worth?"""

from __future__ import annotations

from collections.abc import Sequence

from ecsfusion.controller.peak_synergy import PeakSynergy
from ecsfusion.controller.rule import Decision, Reading, Rule

STOP_PATIENCE = 5
TOLERANCES = {"accuracy": 0.02, "information": 0.05, "synergy": 0.05}
"""How much a reading may be below the best and still count as equal: a share, and bits."""


class NotPaused(PeakSynergy):
    """Peak synergy without pausing anybody."""

    name = "not-paused"

    def _pause(self, reading: Reading) -> str:
        return ""


class NotRestored(PeakSynergy):
    """Peak synergy, but stage 2 goes on from the last weights of stage 1, as in the paper."""

    name = "not-restored"

    def end_stage(self, reading: Reading, why: str) -> Decision:
        """Stage 1 ends where it is."""
        self.peak_step = None
        return super().end_stage(reading, why)


class _EndsBy(Rule):
    """All modalities train; stage 1 ends when a signal has not risen in some readings, and its peak is restored."""

    signal = ""

    def __init__(self, modalities: Sequence[str], *, max_unimodal_share: float = 0.5) -> None:
        super().__init__(modalities, max_unimodal_share=max_unimodal_share)
        self.state = {"best": None, "waited": 0}

    def value(self, reading: Reading) -> float:
        """The signal at this reading."""
        if self.signal == "accuracy":
            return reading.mean_accuracy(self.modalities)
        if self.signal == "synergy":
            return reading.synergy
        return sum(reading.mutual_information.values())

    def decide_unimodal(self, reading: Reading) -> Decision:
        value, best, tolerance = self.value(reading), self.state["best"], TOLERANCES[self.signal]
        if best is None or value > best:
            self.state["best"] = value
        if best is None or value >= best - tolerance:
            self.mark_peak(reading)
        self.state["waited"] = 0 if best is None or value > best + tolerance else self.state["waited"] + 1
        if self.state["waited"] >= STOP_PATIENCE:
            return self.end_stage(
                reading, f"{self.signal} has not risen in {STOP_PATIENCE} readings and is {value:.2f}"
            )
        return self.train(reading, self.modalities, f"{self.signal} is {value:.2f}")


class EndsByAccuracy(_EndsBy):
    """The signal is the mean validation accuracy of the unimodal heads."""

    name, signal = "ends-by-accuracy", "accuracy"


class EndsByInformation(_EndsBy):
    """The signal is the mutual information of the modalities with the label, summed over them."""

    name, signal = "ends-by-information", "information"


class EndsBySynergy(_EndsBy):
    """The signal is the synergy, corrected for bias."""

    name, signal = "ends-by-synergy", "synergy"


RULES: dict[str, type[Rule]] = {
    rule.name: rule for rule in (NotPaused, NotRestored, EndsByAccuracy, EndsByInformation, EndsBySynergy)
}
