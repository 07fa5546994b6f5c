"""The reading that a rule decides from: a measurement of the probe set, and when in the run it was made."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ecsfusion.evaluation.measurement import Information, Measurement

STAGES = ("unimodal", "joint")


@dataclass(frozen=True)
class Reading:
    """One measurement of the model on held-out rows, and when it was made.

    Information is in bits. Scores and shares are between 0 and 1.

    Attributes:
        step: optimizer steps so far; 0 is the untrained start.
        epoch: epochs so far.
        progress: the share of the training budget of both stages that is used.
        stage: "unimodal" or "joint".
        training: the modalities that trained up to this reading.
        measurement: scores of all heads and the decomposition.
    """

    step: int
    epoch: float
    progress: float
    stage: str
    training: tuple[str, ...]
    measurement: Measurement

    @property
    def information(self) -> Information:
        """The decomposition of this measurement."""
        return cast("Information", self.measurement.information)

    @property
    def redundancy(self) -> float:
        """Redundancy, without the bias of the estimate."""
        return self.information.redundancy

    @property
    def unique(self) -> dict[str, float]:
        """Uniqueness by modality, without the bias of the estimate."""
        return self.information.unique

    @property
    def synergy(self) -> float:
        """Synergy, without the bias of the estimate."""
        return self.information.synergy

    @property
    def floor(self) -> dict[str, float]:
        """The noise floors: by modality that of its uniqueness, and those of "redundancy" and "synergy"."""
        return self.information.floor

    @property
    def mutual_information(self) -> dict[str, float]:
        """I(X_m; Y) by modality."""
        return self.information.mutual_information

    @property
    def dependence(self) -> float:
        """What ties the modalities given the label; 0 if rows are too few to tell, and at step 0.

        It is what readouts of all embeddings together know of the label beyond the product of the posteriors of each
        modality (by clusters: I(X1; X2 | Y), what they know of each other). Its noise floor is that of synergy. If it
        is zero, the posteriors of the single modalities determine the posterior of all modalities together.

        Raises:
            ValueError: it was not measured, because the rule did not ask for it (`Rule.asks_for_dependence`).
        """
        information = self.information
        if information.is_by_heads and information.measured_dependence is None and self.step > 0:
            raise ValueError(
                f"reading.dependence was not measured at step {self.step}, because the rule did not ask for it; let "
                "its property asks_for_dependence return True before the readings that it needs it of."
            )
        return information.dependence

    @property
    def plugin(self) -> dict[str, Any]:
        """By clusters, the atoms before the correction of bias: "redundancy", "unique" by modality, "synergy"."""
        return self.information.plugin

    @property
    def accuracy(self) -> dict[str, float]:
        """The score of each modality's own head, of the "fused" head, and of the "calibrated" combination."""
        return self.measurement.scores

    @property
    def score_in_words(self) -> str:
        """What sentences call `accuracy`, see `Measurement.score_in_words`."""
        return self.measurement.score_in_words

    def mean_accuracy(self, names: Sequence[str]) -> float:
        """The mean score of these modalities' own heads."""
        return float(sum(self.accuracy[name] for name in names) / len(names))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "progress": self.progress,
            "stage": self.stage,
            "training": list(self.training),
            "measurement": self.measurement.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Reading:
        """Make the reading from the values that `to_json` returned."""
        measurement = Measurement.from_json(values["measurement"])
        return cls(**{**values, "training": tuple(values["training"]), "measurement": measurement})


def check_reading(reading: Reading, modalities: Sequence[str]) -> None:
    """Check that a reading has every value that rules work with.

    Raises:
        ValueError: names the first value that is missing or not a finite number.
    """
    if reading.stage not in STAGES:
        raise ValueError(f"reading.stage must be one of {list(STAGES)}, got {reading.stage!r}.")
    if reading.measurement.information is None:
        raise ValueError("reading.measurement has no decomposition; a rule needs one at every probe.")
    values: dict[str, Any] = {"progress": reading.progress, "epoch": reading.epoch, "step": reading.step}
    values |= {"redundancy": reading.redundancy, "synergy": reading.synergy}
    for group in ("unique", "accuracy", "floor"):
        if not isinstance(getattr(reading, group), Mapping):
            raise ValueError(f"reading.{group} is {getattr(reading, group)!r}; give numbers by modality.")
        names = [*modalities, "redundancy", "synergy"] if group == "floor" else modalities
        values |= {f"{group}[{name!r}]": getattr(reading, group).get(name) for name in names}
    check_finite(values)


def check_finite(values: dict[str, Any]) -> None:
    """Check that the values of a reading, by their names, are finite numbers.

    Raises:
        ValueError: names the first value that is missing or not a finite number.
    """
    for name, value in values.items():
        if value is None:
            raise ValueError(f"reading.{name} is missing; the rule needs it at every probe.")
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise ValueError(f"reading.{name} is {value}; look for NaN in the embeddings and in the loss.")
