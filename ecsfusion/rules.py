"""The rules of stage 1: who trains, and when unimodal training ends.

In stage 1 every modality is trained by its own loss and the encoders share nothing, so to pause a modality
only withholds training from it; it does not speed up the others. Hence the rules of our own pause late,
resume early, and do not let the end of stage 1 throw training away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ecsfusion.decision import Decision, Reading, Rule, check_finite


@dataclass(frozen=True)
class Lead:
    """How far one modality's uniqueness (bits) is ahead of its strongest rival's."""

    unique: float
    floor: float
    rival: str
    rival_unique: float
    rival_floor: float

    @classmethod
    def over(cls, reading: Reading, name: str, rivals: Iterable[str]) -> Lead:
        rival = max(rivals, key=lambda other: reading.unique[other])
        unique, floor = reading.unique, reading.floor
        return cls(unique[name], floor[name], rival, unique[rival], floor[rival])

    @property
    def ratio(self) -> float:
        """To the rival's uniqueness, or to its noise floor where that is larger: noise is no denominator."""
        reference = max(self.rival_unique, self.rival_floor)
        return self.unique / reference if reference > 0 else math.copysign(math.inf, self.unique)

    def is_clear(self, ratio: float, margin: float) -> bool:
        """Above its own noise floor, and ahead by more than the ratio and more than the margin (bits)."""
        above_floor = self.unique > max(self.floor, 0.0)
        return above_floor and self.unique - self.rival_unique > margin and self.ratio > ratio

    def __str__(self) -> str:
        is_noise = self.rival_unique < self.rival_floor
        rival = f"the noise floor of {self.rival}'s" if is_noise else f"{self.rival}'s"
        return (
            f"its uniqueness {self.unique:.2f} bits is {self.ratio:.1f} times {rival}, floor {self.floor:.2f}"
        )


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names)


def _uniqueness(reading: Reading, names: Iterable[str]) -> str:
    return "uniqueness " + ", ".join(f"{name} {reading.unique[name]:.2f}" for name in names) + " bits"


def _check_positive(**options: float) -> None:
    for name, value in options.items():
        if not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f"{name} must be a positive number, got {value!r}.")


class Published(Rule):
    """The rule of arXiv 2509.20840, to the letter, for comparison; two modalities.

    rho = U1 / U2 of the uncorrected atoms. If rho > tau, only modality 2 trains from now on; if 1/rho > tau,
    only modality 1; in between, whoever trained goes on. Stage 1 ends at the second change of who trains
    (the first pause is the first change), when the uncorrected synergy falls under ``synergy_drop`` of its
    best, or after ``max_epochs`` epochs. The peak is not restored. A reading with U2 = 0 has no rho and is
    skipped.

    The uncorrected synergy is mostly estimation bias, so noise may end stage 1 after a few epochs.
    ``max_unimodal_share`` bounds shorter budgets; its default is 200 of the published 300 epochs.
    """

    name = "published"

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        tau: float = 3.0,
        synergy_drop: float = 0.8,
        max_epochs: float = 200.0,
        max_unimodal_share: float = 2 / 3,
    ) -> None:
        super().__init__(modalities, max_unimodal_share=max_unimodal_share)
        if len(self.modalities) != 2:
            raise ValueError(
                f"the rule 'published' is defined for two modalities, got {list(self.modalities)}; "
                "use 'peak-synergy' or 'weak-first'."
            )
        _check_positive(tau=tau, synergy_drop=synergy_drop, max_epochs=max_epochs)
        self.tau, self.synergy_drop, self.max_epochs = tau, synergy_drop, max_epochs
        self.state = {"training": list(self.modalities), "changes": 0, "best_synergy": 0.0}

    def decide_unimodal(self, reading: Reading) -> Decision:
        u1, u2, synergy = self._raw_atoms(reading)
        state, (first, second) = self.state, self.modalities
        uniqueness = f"raw uniqueness {first} {u1:.2f}, {second} {u2:.2f} bits"
        over = ""
        if u2 > 0:
            side = [second] if u1 > self.tau * u2 else [first] if u2 > self.tau * u1 else state["training"]
            state["changes"] += side != state["training"]
            state["training"] = side
            best = state["best_synergy"] = max(state["best_synergy"], synergy)
            if synergy < self.synergy_drop * best:
                over = f"raw synergy {synergy:.2f} bits is under {self.synergy_drop:g} of its best {best:.2f}"
        if state["changes"] == 2:
            over = f"this is the second change of who trains, {uniqueness}"
        if reading.epoch >= self.max_epochs:
            over = f"{reading.epoch:g} epochs are done and the limit is {self.max_epochs:g}"
        if over:
            return self.hand_over(reading, over)
        verb = "train" if len(state["training"]) == 2 else "trains alone"
        return self.train(reading, state["training"], f"{_listed(state['training'])} {verb}: {uniqueness}")

    def _raw_atoms(self, reading: Reading) -> tuple[float, float, float]:
        unique = reading.raw.get("unique") or {}
        values: dict[str, Any] = {f"raw['unique'][{name!r}]": unique.get(name) for name in self.modalities}
        values["raw['synergy']"] = reading.raw.get("synergy")
        check_finite(values)
        u1, u2, synergy = (float(value) for value in values.values())
        return u1, u2, synergy


class PeakSynergy(Rule):
    """Pause a clear leader, and start stage 2 at the peak of synergy that costs no training. The default.

    *Pausing.* Among the training modalities, the one with the largest uniqueness is paused when, in
    ``patience`` readings in a row, it is above its noise floor and ahead of the next by more than ``ratio``
    and ``margin`` bits. It resumes when that lead, at ``hysteresis`` times both thresholds, has been gone
    for ``patience`` readings. It resumes for good when the mean accuracy of those that train has not risen
    by ``accuracy_tolerance`` in ``wait`` readings: they are weak, not slow, and waiting is useless. One
    modality always trains.

    *The peak.* Synergy corrected for bias mostly falls while encoders learn, and training time itself helps.
    So the untrained start is never a peak, and a reading is the new peak when the mean unimodal accuracy is
    above its best by more than ``accuracy_tolerance``, or when neither it nor synergy is below its best
    since then by more than noise (``accuracy_tolerance``; the larger of synergy's floor and
    ``synergy_margin`` bits): ties go to the later reading. After ``stop_patience`` readings without a new
    peak, or at ``max_unimodal_share`` of the budget, stage 1 ends and the peak is restored.

    *Nothing to learn alone.* While redundancy and every uniqueness are within their noise floors and no
    accuracy is above the mean of the readings before, unimodal losses teach nothing. Stage 1 ends after
    ``patience`` such readings in a row if synergy is above its floor (the label needs all modalities
    together), else after ``stop_patience``.
    """

    name = "peak-synergy"

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        ratio: float = 3.0,
        margin: float = 0.15,
        hysteresis: float = 2 / 3,
        patience: int = 2,
        wait: int = 4,
        accuracy_tolerance: float = 0.02,
        synergy_margin: float = 0.05,
        stop_patience: int = 5,
        max_unimodal_share: float = 0.5,
    ) -> None:
        super().__init__(modalities, max_unimodal_share=max_unimodal_share)
        _check_positive(ratio=ratio, margin=margin, patience=patience, wait=wait, stop_patience=stop_patience)
        if not 0 < hysteresis <= 1:
            raise ValueError(f"hysteresis must be in (0, 1], got {hysteresis}.")
        self.ratio, self.margin, self.hysteresis = ratio, margin, hysteresis
        self.patience, self.wait, self.stop_patience = patience, wait, stop_patience
        self.accuracy_tolerance, self.synergy_margin = accuracy_tolerance, synergy_margin
        self.state: dict[str, Any] = {
            "best": None,  # the accuracy and synergy that the next peak must not fall behind
            "since_peak": 0,
            "readings": 0,
            "accuracy_sum": dict.fromkeys(self.modalities, 0.0),
            "nothing_learnt": 0,
            "leader": None,
            "leader_readings": 0,
            "paused": {},  # name: readings in a row without its lead
            "waited": 0,
            "waiting_accuracy": 0.0,
            "not_again": [],
            "joint": False,
        }

    def decide_unimodal(self, reading: Reading) -> Decision:
        if reading.step == 0:
            return self.train(reading, self._training(), "all train: step 0, nothing is learnt yet")
        self._look_for_peak(reading)
        over = self._nothing_to_learn(reading) or self._past_the_peak(reading)
        if over:
            return self.hand_over(reading, over)
        reason = self._resume(reading) or self._pause(reading) or self._unchanged(reading)
        return self.train(reading, self._training(), reason)

    def decide_joint(self, reading: Reading) -> Decision:
        """Pause and resume as in stage 1, without a memory of who was paused there."""
        if not self.state["joint"]:
            self.state |= {"joint": True, "paused": {}, "leader": None, "leader_readings": 0, "waited": 0}
        reason = self._resume(reading) or self._pause(reading) or self._unchanged(reading)
        return Decision(self.ordered(self._training()), reason)

    def _training(self) -> list[str]:
        return [name for name in self.modalities if name not in self.state["paused"]]

    def _look_for_peak(self, reading: Reading) -> None:
        state, best = self.state, self.state["best"]
        accuracy, synergy = reading.mean_accuracy(self.modalities), float(reading.synergy)
        noise = max(reading.floor["synergy"], self.synergy_margin)
        if best is None or accuracy > best["accuracy"] + self.accuracy_tolerance:
            state["best"] = {"accuracy": accuracy, "synergy": synergy}
        elif accuracy < best["accuracy"] - self.accuracy_tolerance or synergy < best["synergy"] - noise:
            state["since_peak"] += 1
            return
        else:  # a tie; the best values stay, or slow decay would pass as a row of ties
            best["accuracy"], best["synergy"] = max(best["accuracy"], accuracy), max(best["synergy"], synergy)
        state["since_peak"] = 0
        self.mark_peak(reading)

    def _past_the_peak(self, reading: Reading) -> str:
        if self.state["since_peak"] < self.stop_patience:
            return ""
        best, accuracy = self.state["best"], reading.mean_accuracy(self.modalities)
        return (
            f"no new peak in {self.stop_patience} readings (synergy {reading.synergy:.2f} bits, best "
            f"{best['synergy']:.2f}; mean unimodal accuracy {accuracy:.3f}, best {best['accuracy']:.3f})"
        )

    def _nothing_to_learn(self, reading: Reading) -> str:
        state, floor = self.state, reading.floor
        informed = reading.redundancy > floor["redundancy"] or any(
            reading.unique[name] > floor[name] for name in self.modalities
        )
        risen = state["readings"] > 0 and any(
            reading.accuracy[name] > state["accuracy_sum"][name] / state["readings"] + self.accuracy_tolerance
            for name in self.modalities
        )
        state["readings"] += 1
        for name in self.modalities:
            state["accuracy_sum"][name] += float(reading.accuracy[name])
        state["nothing_learnt"] = 0 if informed or risen else state["nothing_learnt"] + 1
        needed = self.patience if reading.synergy > floor["synergy"] else self.stop_patience
        if state["nothing_learnt"] < needed:
            return ""
        best = max(reading.accuracy[name] for name in self.modalities)
        return (
            f"unimodal losses teach nothing, in {state['nothing_learnt']} readings no modality alone is "
            f"above its noise floor (best accuracy {best:.3f}; synergy {reading.synergy:.2f} bits, floor "
            f"{floor['synergy']:.2f})"
        )

    def _resume(self, reading: Reading) -> str:
        state, training = self.state, self._training()
        if not state["paused"]:
            return ""
        accuracy = reading.mean_accuracy(training)
        state["waited"] += 1
        if accuracy > state["waiting_accuracy"] + self.accuracy_tolerance:
            state["waiting_accuracy"], state["waited"] = accuracy, 0
        if state["waited"] >= self.wait:
            resumed = list(state["paused"])
            state["paused"], state["not_again"] = {}, [*state["not_again"], *resumed]
            return (
                f"{_listed(resumed)} resumed for good: waiting is useless, in {self.wait} readings the "
                f"accuracy of {_listed(training)} has not risen by {self.accuracy_tolerance:g} and is "
                f"{accuracy:.3f}"
            )
        resumed = []
        for name in list(state["paused"]):
            lead = Lead.over(reading, name, training)
            clear = lead.is_clear(self.hysteresis * self.ratio, self.hysteresis * self.margin)
            state["paused"][name] = 0 if clear else state["paused"][name] + 1
            if state["paused"][name] >= self.patience:
                del state["paused"][name]
                self._start_waiting(reading)
                resumed.append(f"{name} resumed: {lead}")
        return "; ".join(resumed)

    def _pause(self, reading: Reading) -> str:
        state, training = self.state, self._training()
        leader = max(training, key=lambda name: reading.unique[name])
        rivals = [name for name in training if name != leader]
        lead = Lead.over(reading, leader, rivals) if rivals else None
        if lead is None or leader in state["not_again"] or not lead.is_clear(self.ratio, self.margin):
            state["leader"], state["leader_readings"] = None, 0
            return ""
        state["leader_readings"] = state["leader_readings"] + 1 if leader == state["leader"] else 1
        state["leader"] = leader
        if state["leader_readings"] < self.patience:
            seen = f"reading {state['leader_readings']} of the {self.patience} needed to pause it"
            return f"{leader} leads, {seen}: {lead}"
        state["paused"][leader], state["leader"], state["leader_readings"] = 0, None, 0
        self._start_waiting(reading)
        return f"{leader} paused: {lead}"

    def _start_waiting(self, reading: Reading) -> None:
        self.state["waiting_accuracy"], self.state["waited"] = reading.mean_accuracy(self._training()), 0

    def _unchanged(self, reading: Reading) -> str:
        training = self._training()
        if len(training) == len(self.modalities):
            return f"all train, nobody leads clearly: {_uniqueness(reading, training)}"
        return "; ".join(
            f"{name} stays paused: {Lead.over(reading, name, training)}" for name in self.state["paused"]
        )


class WeakFirst(Rule):
    """Let the slower modalities learn alone first, with the leader put back to its initial weights.

    All modalities train for ``min_epochs`` to ``max_epochs``. As soon as one is above its noise floor and
    leads every other by more than ``ratio`` and ``margin`` bits of uniqueness, it goes back to its initial
    weights (an epoch of head start is felt to the end) and is paused. The others train until
    ``max_unimodal_share`` of the budget is used, or until their mean accuracy has not risen by
    ``accuracy_tolerance`` in ``plateau_patience`` readings; their latest weights that are not behind their
    best by more than that start stage 2. With no leader after ``max_epochs``, joint training starts at once.

    Judged so early, the weaker modality is the slower one, not always one that can catch up: where it is
    merely noisy, this rule can cost accuracy.
    """

    name = "weak-first"
    resets = True

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        ratio: float = 3.0,
        margin: float = 0.15,
        min_epochs: float = 1.0,
        max_epochs: float = 3.0,
        accuracy_tolerance: float = 0.01,
        plateau_patience: int = 5,
        max_unimodal_share: float = 0.5,
    ) -> None:
        super().__init__(modalities, max_unimodal_share=max_unimodal_share)
        _check_positive(ratio=ratio, margin=margin, max_epochs=max_epochs, plateau_patience=plateau_patience)
        if min_epochs > max_epochs:
            raise ValueError(f"min_epochs is {min_epochs} and must not be above max_epochs {max_epochs}.")
        self.ratio, self.margin = ratio, margin
        self.min_epochs, self.max_epochs = min_epochs, max_epochs
        self.accuracy_tolerance, self.plateau_patience = accuracy_tolerance, plateau_patience
        self.state = {"leader": None, "best_accuracy": None, "waited": 0}

    def decide_unimodal(self, reading: Reading) -> Decision:
        if self.state["leader"] is not None:
            return self._others_alone(reading)
        if reading.epoch < self.min_epochs - 1e-9:
            reason = f"all train: the first comparison is at epoch {self.min_epochs:g}"
            return self.train(reading, self.modalities, reason)
        leader = max(self.modalities, key=lambda name: reading.unique[name])
        others = [name for name in self.modalities if name != leader]
        lead = Lead.over(reading, leader, others)
        if lead.is_clear(self.ratio, self.margin):
            self.state["leader"] = leader
            reason = f"{leader} paused and put back to its initial weights: {lead}"
            return self.train(reading, others, reason, reset=[leader])
        seen = f"nobody leads clearly at epoch {reading.epoch:g}, {_uniqueness(reading, self.modalities)}"
        if reading.epoch >= self.max_epochs - 1e-9:
            return self.hand_over(reading, seen)
        return self.train(reading, self.modalities, f"all train: {seen}")

    def _others_alone(self, reading: Reading) -> Decision:
        state = self.state
        others = [name for name in self.modalities if name != state["leader"]]
        accuracy, best = reading.mean_accuracy(others), state["best_accuracy"]
        if best is None or accuracy >= best - self.accuracy_tolerance:
            self.mark_peak(reading)
        state["waited"] += 1
        if best is None or accuracy > best + self.accuracy_tolerance:
            state["best_accuracy"], state["waited"] = accuracy, 0
        if state["waited"] >= self.plateau_patience:
            why = (
                f"in {self.plateau_patience} readings the accuracy of {_listed(others)} has not risen by "
                f"{self.accuracy_tolerance:g} above {best:.3f} and is {accuracy:.3f}"
            )
            return self.hand_over(reading, why)
        verb = "train" if len(others) > 1 else "trains"
        reason = f"{_listed(others)} {verb} and {state['leader']} waits: accuracy {accuracy:.3f}"
        return self.train(reading, others, reason)


class FixedSchedule(Rule):
    """Phases that are known beforehand, then joint training.

    Args:
        schedule: pairs (length, modalities) in order: ``[(0.2, ["audio"]), (0.3, ["image", "audio"])]``. A
            phase ends at the first reading at which its length is over.
        unit: of the lengths: "share" of the whole budget, or "epochs".
    """

    name = "fixed"

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        schedule: Sequence[tuple[float, Sequence[str]]],
        unit: str = "share",
        max_unimodal_share: float = 0.5,
    ) -> None:
        super().__init__(modalities, max_unimodal_share=max_unimodal_share)
        if unit not in ("share", "epochs"):
            raise ValueError(f"unit must be 'share' or 'epochs', got {unit!r}.")
        self.unit = unit
        self.phases: list[tuple[float, tuple[str, ...]]] = []  # (end, modalities)
        end = 0.0
        if not isinstance(schedule, Sequence) or isinstance(schedule, str):
            raise ValueError(f"schedule must be a list of pairs (length > 0, modalities), got {schedule!r}.")
        for phase in schedule:
            if (
                not isinstance(phase, Sequence)
                or isinstance(phase, str)
                or len(phase) != 2
                or not isinstance(phase[0], (int, float))
                or not phase[0] > 0
            ):
                raise ValueError(f"schedule must hold pairs (length > 0, modalities), got {phase!r}.")
            length, names = phase
            end += length
            self.phases.append((end, self.ordered([names] if isinstance(names, str) else names)))
        if not self.phases:
            raise ValueError(
                "schedule is empty; give pairs (length, modalities), or train jointly from the start."
            )
        if unit == "share" and end > max_unimodal_share + 1e-9:
            raise ValueError(
                f"schedule uses {end:g} of the budget and max_unimodal_share allows {max_unimodal_share:g}; "
                "shorten the phases or raise max_unimodal_share."
            )

    @property
    def initial_training(self) -> tuple[str, ...]:
        return self.phases[0][1]

    def decide_unimodal(self, reading: Reading) -> Decision:
        now = reading.progress if self.unit == "share" else reading.epoch
        done = f"{now:.0%} of the budget" if self.unit == "share" else f"epoch {now:g}"
        for number, (end, names) in enumerate(self.phases, start=1):
            if now < end - 1e-9:
                reason = (
                    f"phase {number} of {len(self.phases)} of the fixed schedule at {done}: {_listed(names)}"
                )
                return self.train(reading, names, reason)
        return self.hand_over(reading, f"the fixed schedule is over at {done}")
