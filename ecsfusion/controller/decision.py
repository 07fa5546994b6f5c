"""The decision that a rule makes from a reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Decision:
    """What happens after a reading.

    Attributes:
        training: the modalities that train from now on; never empty.
        reason: one sentence with the numbers.
        ends_stage: stage 1 ends now; the next training step is joint.
        restore: the step whose weights start stage 2; None for the present weights. The decision at that step had
            `peak` set, and no later decision had.
        peak: the weights of this reading are the best so far to start stage 2 from, and are kept.
        reset: modalities that go back to their initial weights now. If these are all modalities, the fused head goes
            back too. With `ends_stage`, stage 2 starts from these weights, `restore` is None, and a `peak` is kept.
        overdue: the rule would end stage 1 here, but the user has set the length of stage 1.
    """

    training: tuple[str, ...]
    reason: str
    ends_stage: bool = False
    restore: int | None = None
    peak: bool = False
    reset: tuple[str, ...] = ()
    overdue: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them."""
        return {**asdict(self), "training": list(self.training), "reset": list(self.reset)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Decision:
        """Make the decision from the values that `to_json` returned."""
        return cls(**{**values, "training": tuple(values["training"]), "reset": tuple(values["reset"])})


@dataclass(frozen=True)
class PauseThreshold:
    """The lead in uniqueness at which a rule pauses a modality.

    Attributes:
        ratio: the modality's uniqueness, divided by that of the next modality or by the noise floor of the next.
        margin: how far the modality's uniqueness is above that of the next modality, in bits.
        patience: readings in a row with such a lead after which the modality is paused.
    """

    ratio: float
    margin: float
    patience: int
