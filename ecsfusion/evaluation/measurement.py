"""The record of one evaluation: the scores of all heads and the decomposition, as plain numbers.

Rules, diagnostics, the model card, pictures, the history of a run and its logs all read this record. It holds no
tensors, and nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ecsfusion.model.names import CALIBRATED, FUSED

if TYPE_CHECKING:
    from ecsfusion.pid.decomposition import PID

MIN_ROWS_PER_CLASS_FOR_DEPENDENCE = 20
MIN_ROWS_FOR_DEPENDENCE = 64
"""With fewer rows, clusters of independent modalities often look dependent given the label, by whole bits, and with 64
rows in up to one case of five. Readouts took none of 40 for dependent, with as few as 40 rows
(benchmarks/bench_dependence.py); what they can see with so few is little."""


@dataclass(frozen=True)
class Scale:
    """The number of rows of an evaluation set and the score of chance on it.

    Attributes:
        rows: number of rows of the modality that has the fewest; rows of one group count as one.
        chance: score of the best answer that is the same for every row; 0 for R^2.
    """

    rows: int
    chance: float

    def error(self, score: float) -> float:
        """Standard error of a score over these rows, at least that of a single wrong answer.

        The standard error of an R^2, whose chance is 0, is below 1 / sqrt(rows) for every value.
        """
        if self.chance == 0.0:
            return 1 / math.sqrt(max(self.rows, 1))
        share = min(max(score, 1 / self.rows), 1 - 1 / self.rows) if self.rows > 1 else 0.5
        return math.sqrt(share * (1 - share) / max(self.rows, 1))

    def is_chance(self, score: float) -> bool:
        """Whether a score is within three standard errors of chance, or below."""
        return score <= self.chance + 3 * self.error(self.chance)


@dataclass(frozen=True)
class Information:
    """What the modalities know about the label, in bits: the numbers of an `ecsfusion.PID`.

    Attributes:
        redundancy: known to every modality.
        unique: by modality, known to it alone.
        synergy: known only to all modalities together.
        mutual_information: I(X_m; Y) by modality.
        joint_mutual_information: I(X1, X2; Y).
        conditional_mutual_information: I(X1; X2 | Y), what the modalities know of each other beyond the label; None by
            heads, which do not show it.
        gap: width of the solver's certified interval.
        floor: the value that noise alone reaches, by modality for its uniqueness, and for "redundancy" and "synergy".
        interval: the ends (low, high) of the confidence intervals, under the same keys; empty where none was asked for.
        plugin: the atoms before the correction of bias: "redundancy", "unique" by modality, "synergy".
        num_samples: rows that were decomposed.
        num_clusters: clusters of each side of the table; empty by heads.
        num_classes: classes of the label.
        measured_dependence: by heads, what readouts of the embeddings of all modalities know of the label beyond the
            product of the posteriors of each; None where that was not asked for.
        num_groups: groups of the rows that were decomposed; None where rows stand alone.
    """

    redundancy: float
    unique: dict[str, float]
    synergy: float
    mutual_information: dict[str, float]
    joint_mutual_information: float
    conditional_mutual_information: float | None
    gap: float = 0.0
    floor: dict[str, float] = field(default_factory=dict)
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    plugin: dict[str, Any] = field(default_factory=dict)
    num_samples: int = 0
    num_clusters: tuple[int, ...] = ()
    num_classes: int = 0
    measured_dependence: float | None = None
    num_groups: int | None = None

    @classmethod
    def from_pid(cls, pid: PID, num_groups: int | None = None) -> Information:
        """Take the numbers from a decomposition of one table, of rows of so many groups."""
        values = pid.to_dict()
        plugin = values["plugin"] or values
        return cls(
            redundancy=values["redundancy"],
            unique=values["unique"],
            synergy=values["synergy"],
            mutual_information=values["mutual_information"],
            joint_mutual_information=values["joint_mutual_information"],
            conditional_mutual_information=values["conditional_mutual_information"],
            gap=values["gap"],
            floor=_by_atom(values["floor"]),
            interval={name: (ends[0], ends[1]) for name, ends in _by_atom(values["interval"]).items()},
            plugin={name: plugin[name] for name in ("redundancy", "unique", "synergy")},
            num_samples=values["num_samples"] or 0,
            num_clusters=tuple(values["num_clusters"]),
            num_classes=values["num_classes"],
            measured_dependence=values["dependence"],
            num_groups=num_groups,
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Information:
        """Make the record from the values that `Measurement.to_json` returned."""
        interval = {name: (ends[0], ends[1]) for name, ends in values["interval"].items()}
        return cls(**{**values, "interval": interval, "num_clusters": tuple(values["num_clusters"])})

    @property
    def atoms(self) -> dict[str, float]:
        """All atoms under the keys of `floor`: "redundancy", "synergy", and each modality's uniqueness."""
        return {"redundancy": self.redundancy, "synergy": self.synergy, **self.unique}

    @property
    def shows_dependence(self) -> bool:
        """Whether there were enough rows to tell whether the modalities depend on each other given the label."""
        enough = max(MIN_ROWS_FOR_DEPENDENCE, MIN_ROWS_PER_CLASS_FOR_DEPENDENCE * self.num_classes)
        return self.num_samples >= enough

    @property
    def is_by_heads(self) -> bool:
        """Whether heads were read; if not, clusters of the embeddings were counted."""
        return self.conditional_mutual_information is None

    @property
    def has_dependence(self) -> bool:
        """Whether the dependence was measured, and of enough rows: by heads only where it was asked for."""
        return self.shows_dependence and not (self.is_by_heads and self.measured_dependence is None)

    @property
    def dependence(self) -> float:
        """What ties the modalities given the label, in bits: 0 if it was not asked for, or rows were too few to tell.

        By heads it is `measured_dependence`, by clusters I(X1; X2 | Y).
        """
        bits = self.measured_dependence if self.is_by_heads else self.conditional_mutual_information
        return bits if bits is not None and self.shows_dependence else 0.0

    @property
    def is_above_noise(self) -> bool:
        """Whether a modality alone knows something about the label: redundancy or a uniqueness is above its floor."""
        return self.redundancy > self.floor["redundancy"] or any(
            bits > self.floor[name] for name, bits in self.unique.items()
        )


@dataclass(frozen=True)
class Measurement:
    """One evaluation of the model.

    Attributes:
        score: the name of the score of the heads: "accuracy", or "r2" in regression.
        scores: the score of each head, as a fraction: by modality, "fused", and "calibrated", the calibrated
            combination of all heads.
        calibration_error: expected calibration error of "fused" and "calibrated"; empty in regression.
        num_rows: rows of the evaluation set.
        complete_rows: rows that have every modality.
        scale: the number of rows and the score of chance, to judge the scores by.
        information: the decomposition, or None where none was made.
        reliability: confidence and accuracy by head, for the reliability diagram; None in training.
        seconds: the time that scores and decomposition took.
        num_groups: groups of the rows, such as subjects; None where rows stand alone.
        contributions: what each modality contributes to the calibrated answer, see
            `ecsfusion.evaluation.contributions`; None in training, and where that cannot be told.
    """

    score: str
    scores: dict[str, float]
    calibration_error: dict[str, float]
    num_rows: int
    complete_rows: int
    scale: Scale
    information: Information | None = None
    reliability: dict[str, Any] | None = None
    seconds: float = field(default=0.0, compare=False)
    num_groups: int | None = None
    contributions: dict[str, Any] | None = None

    @property
    def modality_scores(self) -> dict[str, float]:
        """The score of each modality's own head."""
        return {head: value for head, value in self.scores.items() if head not in (FUSED, CALIBRATED)}

    @property
    def score_in_words(self) -> str:
        """What sentences call the score of a head."""
        return "R²" if self.score == "r2" else self.score

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measurement:
        """Make the record from the values that `to_json` returned."""
        information = values["information"]
        return cls(
            **{
                **values,
                "scale": Scale(**values["scale"]),
                "information": None if information is None else Information.from_json(information),
            }
        )


def _by_atom(values: Mapping[str, Any]) -> dict[str, Any]:
    flat = {"redundancy": values["redundancy"], "synergy": values["synergy"], **(values["unique"] or {})}
    return {name: value for name, value in flat.items() if value is not None}
