"""What a rule answers to a reading."""

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
        restore: the step whose weights start stage 2; None for the present weights. The reading of that step had
            `peak` set, and no later one had.
        peak: the weights of this reading are the best candidate so far to start stage 2: they are kept.
        reset: modalities that go back to their initial weights now; if it names all, the fused head does too. With
            `ends_stage`, stage 2 starts from these weights (`restore` is None then), and a `peak` is kept.
        overdue: the rule would end stage 1 here, but its length is given.
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
        """The decision that `to_json` made these values of."""
        return cls(**{**values, "training": tuple(values["training"]), "reset": tuple(values["reset"])})


@dataclass(frozen=True)
class PauseThreshold:
    """The lead in uniqueness at which a rule pauses a modality.

    Attributes:
        ratio: to the uniqueness of the next, or to its noise floor.
        margin: before the next, in bits.
        patience: readings in a row with that lead after which it is paused.
    """

    ratio: float
    margin: float
    patience: int
