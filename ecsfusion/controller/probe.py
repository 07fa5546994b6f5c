"""One entry of a run's history: a reading and the decision that followed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ecsfusion.controller.decision import Decision
from ecsfusion.controller.reading import Reading


@dataclass(frozen=True)
class Probe:
    """One probe of a run.

    Attributes:
        reading: what was measured.
        decision: what the rule decided.
        trained_fused_head: whether the fused head trained up to this probe.
    """

    reading: Reading
    decision: Decision
    trained_fused_head: bool

    @property
    def step(self) -> int:
        """The number of optimizer steps before this probe."""
        return self.reading.step

    @property
    def stage(self) -> str:
        """The stage that this probe was made in: "unimodal" or "joint"."""
        return self.reading.stage

    @property
    def training(self) -> tuple[str, ...]:
        """The modalities that trained up to this probe."""
        return self.reading.training

    @property
    def phase(self) -> str:
        """The same as `stage`, but "scouting" in the part of stage 1 in which the fused head trained as well."""
        return "scouting" if self.stage == "unimodal" and self.trained_fused_head else self.stage

    @property
    def restored(self) -> int | None:
        """The step whose weights end stage 1, or 0 for the initial weights; None unless this probe ended stage 1."""
        if not (self.decision.ends_stage and self.stage == "unimodal"):
            return None
        if set(self.decision.reset) == set(self.decision.training):
            return 0
        return self.step if self.decision.restore is None else self.decision.restore

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them."""
        return {
            "reading": self.reading.to_json(),
            "decision": self.decision.to_json(),
            "trained_fused_head": self.trained_fused_head,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Probe:
        """Make the probe from the values that `to_json` returned."""
        return cls(
            Reading.from_json(values["reading"]),
            Decision.from_json(values["decision"]),
            values["trained_fused_head"],
        )
