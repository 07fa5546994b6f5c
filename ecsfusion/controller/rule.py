"""What a controller sees and what it answers: one :class:`Reading` per probe in, one :class:`Decision` out.

Plain Python: no tensors, and a state that is JSON, so that an interrupted run goes on with the same
decisions.
"""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

STAGES = ("unimodal", "joint")
RESERVED_NAMES = ("fused", "redundancy", "synergy")


@dataclass(frozen=True)
class Reading:
    """One probe of the model on held-out samples. Information is in bits, accuracies and shares are in 0..1.

    Attributes: step: optimizer steps done; 0 is the untrained start. epoch: epochs done. progress: share of
        the whole training budget, both stages, that is used. stage: "unimodal" or "joint". training: the
        modalities that trained up to this reading. redundancy, unique, synergy: the atoms of the
        decomposition, corrected for estimation bias; uniqueness per
            modality.
        floor: the level that pure noise reaches: of each modality's uniqueness, of "redundancy" and of
        "synergy".
        accuracy: validation accuracy of each modality's own head, and of the "fused" head.
        mutual_information: of each modality with the label.
        conditional_mutual_information: I(X1; X2 | Y), what the modalities know of each other beyond the label; its noise is
            that of synergy. Where it is zero, the modalities' own posteriors say all that there is to say.
        raw: the uncorrected (plug-in) atoms: {"redundancy": ..., "unique": {...}, "synergy": ...}.
    """

    step: int
    epoch: float
    progress: float
    stage: str
    training: tuple[str, ...]
    redundancy: float
    unique: dict[str, float]
    synergy: float
    floor: dict[str, float]
    accuracy: dict[str, float]
    mutual_information: dict[str, float] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)
    conditional_mutual_information: float = 0.0

    def mean_accuracy(self, names: Sequence[str]) -> float:
        return float(sum(self.accuracy[name] for name in names) / len(names))


@dataclass(frozen=True)
class Decision:
    """What happens after a reading.

    Attributes:
        training: the modalities that train from now on; never empty.
        reason: one sentence with the numbers.
        ends_stage: stage 1 ends now; the next training step is joint.
        restore: the step whose weights start stage 2; None: the present weights. The reading of that step had
            ``peak`` set, and no later one had.
        peak: the weights of this reading are the best candidate so far to start stage 2: keep them.
        reset: modalities that go back to their initial weights now; if it names all, the fused head does too.
            With ``ends_stage``, stage 2 starts from these weights (``restore`` is None then), and a ``peak`` is kept.
        overdue: the rule would end stage 1 here, but its length is given.
    """

    training: tuple[str, ...]
    reason: str
    ends_stage: bool = False
    restore: int | None = None
    peak: bool = False
    reset: tuple[str, ...] = ()
    overdue: bool = False


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


class Rule:
    """A rule for who trains. For one of your own, subclass and write :meth:`decide_unimodal`::

        class AudioFirst(Rule):
            initial_training = ("audio",)

            def decide_unimodal(self, reading):
                if reading.accuracy["audio"] < 0.5:
                    return self.train(reading, ["audio"], "audio trains alone until its accuracy is 0.5")
                return self.end_stage(reading, "audio's accuracy has reached 0.5")

    and pass the class, or an instance, where a rule's name is expected. Whatever the rule must remember
    belongs in ``self.state``, a dictionary of JSON values (lists, not tuples; string keys) that is saved
    with every checkpoint. For every rule this class checks the reading and ends stage 1 at the first reading
    where ``latest_end`` of the budget is used: ``max_unimodal_share``, unless a rule says otherwise. In stage "joint"
    all modalities train; a rule that can pause there too also writes :meth:`decide_joint`, which is asked when
    ``joint_pausing`` is on.

    Args:
        modalities: at least two different names.
        max_unimodal_share: the largest share of the training budget that stage 1 may use, in (0, 1].
    """

    name: ClassVar[str] = ""
    resets: ClassVar[bool] = False
    """whether the rule may put modalities back to their initial weights, which are then kept for it"""
    joint_pausing: bool = False
    """whether the rule may pause modalities in stage "joint" as well"""
    ends_early: bool = True
    """whether the rule may end stage 1 before ``max_unimodal_share``; without, that is its length"""
    joint_follows: bool = True
    """whether there is a stage 2; without, training is over when stage 1 is"""

    def __init__(self, modalities: Sequence[str], *, max_unimodal_share: float = 0.5) -> None:
        if not isinstance(modalities, Iterable):
            raise TypeError(f"modalities must be at least two different names, got {modalities!r}.")
        names = (modalities,) if isinstance(modalities, str) else tuple(modalities)
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"modalities must be names, that is strings, got {list(names)}.")
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"modalities must be at least two different names, got {list(names)}.")
        taken = [name for name in names if name in RESERVED_NAMES]
        if taken:
            raise ValueError(f"modalities holds {taken[0]!r}, a reserved name; rename the modality.")
        if not isinstance(max_unimodal_share, (int, float, numbers.Real)) or not 0 < max_unimodal_share <= 1:
            raise ValueError(f"max_unimodal_share must be in (0, 1], got {max_unimodal_share!r}.")
        self.modalities = names
        self.max_unimodal_share = max_unimodal_share
        self.state: dict[str, Any] = {}
        self.peak_step: int | None = None

    @property
    def initial_training(self) -> tuple[str, ...]:
        """The modalities that train before the first reading."""
        return self.modalities

    def decide(self, reading: Reading) -> Decision:
        """Decide from one reading.

        Raises:
            ValueError: the reading lacks a value, or one is not a finite number. Such a reading means that
                the embeddings or the weights are broken; to train on would hide it.
        """
        check_reading(reading, self.modalities)
        if reading.stage == "joint":
            if not self.joint_pausing:
                return Decision(self.modalities, "all modalities train jointly")
            return self._only_training(self.decide_joint(reading))
        decision = self.decide_unimodal(reading)
        is_used = reading.progress >= self.latest_end - 1e-9
        if is_used and not decision.ends_stage:
            bound = self.latest_end
            used = f"{reading.progress:.0%} of the budget is used and stage 1 may use {bound:.0%}"
            return self.end_stage(reading, used)
        if decision.ends_stage and not is_used and not self.ends_early:
            why = decision.reason.removeprefix("stage 1 ends: ").rsplit("; ", 1)[0]
            return replace(
                decision,
                training=reading.training,
                reason=f"stage 1 goes on, for its length is given: otherwise it would end, {why}",
                ends_stage=False,
                restore=None,
                peak=self.peak_step == reading.step,
                overdue=True,
            )
        return decision

    @property
    def latest_end(self) -> float:
        """The share of the training budget at which stage 1 ends at the latest, as things stand."""
        return self.max_unimodal_share

    @property
    def fuses(self) -> bool:
        """Whether the fused head is trained in stage 1 too, from now on: then the loss is that of stage 2. In what a
        person sees of the run this is "scouting"."""
        return False

    @property
    def pauses_at(self) -> PauseThreshold | None:
        """The lead at which a modality is paused, so that a run can warn of a pause that came late; None where a lead
        alone pauses nobody."""
        return None

    @property
    def excluded_from_readout(self) -> tuple[str, ...]:
        """Modalities from which training was excluded_from_readout lest the fused head rely on them alone. For the same reason the
        readout gives their own heads no weight beside others."""
        return ()

    def decide_joint(self, reading: Reading) -> Decision:
        """Decide in stage "joint", where only ``training`` and ``reason`` count. By default nobody is paused."""
        return Decision(self.modalities, "all modalities train jointly")

    @property
    def can_pause_jointly(self) -> bool:
        """Whether this rule has a :meth:`decide_joint` of its own."""
        return type(self).decide_joint is not Rule.decide_joint

    def _only_training(self, decision: Decision) -> Decision:
        if decision.ends_stage or decision.reset:
            raise ValueError(
                f"{type(self).__name__}.decide_joint ends a stage or resets a modality; stage 2 knows neither: "
                "choose who trains."
            )
        return decision

    def decide_unimodal(self, reading: Reading) -> Decision:
        """Decide in stage "unimodal", from a reading that was checked. Every rule writes this."""
        raise TypeError(f"{type(self).__name__} must define decide_unimodal(reading).")

    def mark_peak(self, reading: Reading) -> None:
        """Make this reading's weights the ones that :meth:`end_stage` starts stage 2 from."""
        self.peak_step = reading.step

    def train(
        self, reading: Reading, modalities: Iterable[str], reason: str, reset: Sequence[str] = ()
    ) -> Decision:
        """Stage 1 goes on, these modalities train. ``reset`` forgets the peak: it holds what is put back."""
        if reset and not self.resets:
            raise ValueError(f"{type(self).__name__} resets {list(reset)}: set resets = True on the class.")
        if reset:
            self.peak_step = None
        peak = self.peak_step == reading.step
        return Decision(
            self.ordered(modalities), reason, peak=peak, reset=self.ordered(reset) if reset else ()
        )

    def end_stage(self, reading: Reading, why: str) -> Decision:
        """Stage 1 ends; stage 2 starts from the marked peak, else from the present weights."""
        restore = None if self.peak_step == reading.step else self.peak_step
        start = "the present weights" if restore is None else f"the weights of step {restore}"
        then = f"stage 2 starts from {start}" if self.joint_follows else f"the model keeps {start}"
        reason = f"stage 1 ends: {why}; {then}"
        return Decision(self.modalities, reason, ends_stage=True, restore=restore, peak=restore is None)

    def ordered(self, names: Iterable[str]) -> tuple[str, ...]:
        """These modalities, at least one, in the order of ``self.modalities``."""
        chosen = set(names)
        if not chosen or not chosen <= set(self.modalities):
            raise ValueError(f"modalities must be some of {list(self.modalities)}, got {sorted(chosen)}.")
        return tuple(name for name in self.modalities if name in chosen)

    def state_dict(self) -> dict[str, Any]:
        """Everything the rule remembers, as JSON values."""
        return {
            "rule": self.name or type(self).__name__,
            "modalities": list(self.modalities),
            "peak_step": self.peak_step,
            "state": copy.deepcopy(self.state),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; the rule and the modalities must be the same."""
        mine = self.state_dict()
        for key in ("rule", "modalities"):
            if state.get(key) != mine[key]:
                raise ValueError(
                    f"the saved controller has {key} {state.get(key)!r}, this run has {mine[key]!r}."
                )
        self.peak_step = state["peak_step"]
        self.state = copy.deepcopy(state["state"])


def check_reading(reading: Reading, modalities: Sequence[str]) -> None:
    """Raise ValueError naming the first value of the reading that a rule cannot work with."""
    if reading.stage not in STAGES:
        raise ValueError(f"reading.stage must be one of {list(STAGES)}, got {reading.stage!r}.")
    values: dict[str, Any] = {"progress": reading.progress, "epoch": reading.epoch, "step": reading.step}
    values |= {"redundancy": reading.redundancy, "synergy": reading.synergy}
    for group in ("unique", "accuracy", "floor"):
        if not isinstance(getattr(reading, group), Mapping):
            raise ValueError(f"reading.{group} is {getattr(reading, group)!r}; give numbers by modality.")
        names = [*modalities, "redundancy", "synergy"] if group == "floor" else modalities
        values |= {f"{group}[{name!r}]": getattr(reading, group).get(name) for name in names}
    check_finite(values)


def check_finite(values: dict[str, Any]) -> None:
    """Raise ValueError naming the first of the reading's values that is missing or not a finite number."""
    for name, value in values.items():
        if value is None:
            raise ValueError(f"reading.{name} is missing; the rule needs it at every probe.")
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise ValueError(f"reading.{name} is {value}; look for NaN in the embeddings and in the loss.")
