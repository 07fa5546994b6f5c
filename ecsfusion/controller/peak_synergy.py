"""The rule "peak-synergy": a more careful version of the paper's rule.

In stage 1 every modality is trained by its own loss and the encoders share nothing. To pause a modality therefore only
takes training from it and does not speed up the others. So this rule pauses late, resumes early, and does not go back
to weights that have lost much training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ecsfusion.controller.decision import Decision, PauseThreshold
from ecsfusion.controller.forecast import forecasts, remember
from ecsfusion.controller.lead import Lead, check_positive, listed, uniqueness_of
from ecsfusion.controller.plateau import readings_without_rise
from ecsfusion.controller.reading import Reading
from ecsfusion.controller.rule import Rule
from ecsfusion.evaluation.rounding import told_apart


class PeakSynergy(Rule):
    """Pause a clear leader, and start stage 2 at the peak of synergy that costs no training.

    *Pausing.* Among the modalities that train, the one with the largest uniqueness is paused when, in `patience`
    readings in a row, it is above its noise floor and ahead of the next by more than `ratio` and by more than `margin`
    bits. It resumes when it has not had such a lead, with both thresholds multiplied by `hysteresis`, for `patience`
    readings. It resumes and is not paused again when the mean accuracy of the others has not risen by
    `accuracy_tolerance` in `wait` readings, because then the pause does not help. One modality always trains. The
    reasons say whether the modalities behind look slow or weak (`ecsfusion.controller.forecast`), but the decision does
    not depend on that.

    *The peak.* Synergy that is corrected for bias mostly falls while encoders learn, and longer training helps by
    itself. So the untrained start is never a peak. A reading is the new peak in two cases: the mean unimodal accuracy
    is above its best by more than `accuracy_tolerance`, or neither that accuracy nor the synergy is below its best by
    more than noise. The noise of the accuracy is `accuracy_tolerance`; that of synergy is the larger of its floor and
    `synergy_margin` bits. After `stop_patience` readings without a new peak, or at `max_unimodal_share` of the budget,
    stage 1 ends and the weights of the peak are restored.

    *Nothing to learn alone.* While redundancy and every uniqueness are within their noise floors and no accuracy is
    above its mean over the earlier readings, unimodal losses teach nothing. Stage 1 ends after `patience` such readings
    in a row if synergy is above its floor, because then the label needs all modalities together; otherwise it ends
    after `stop_patience`.

    Args:
        modalities: at least two different names.
        ratio: how many times the uniqueness of the next modality a clear lead is.
        margin: bits by which a clear lead is ahead of the next modality.
        hysteresis: factor of both thresholds below which a paused modality resumes.
        patience: readings in a row before a modality is paused or resumes.
        wait: readings without a rise after which a paused modality resumes and is not paused again.
        accuracy_tolerance: differences of accuracy up to this count as none.
        synergy_margin: differences of synergy up to this, in bits, count as none.
        stop_patience: readings without a new peak after which stage 1 ends.
        max_unimodal_share: the largest share of the budget that stage 1 may use.

    Raises:
        ValueError: an option is out of its range.
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
        check_positive(ratio=ratio, margin=margin, patience=patience, wait=wait, stop_patience=stop_patience)
        if not 0 < hysteresis <= 1:
            raise ValueError(f"hysteresis must be in (0, 1], got {hysteresis}.")
        self.ratio, self.margin, self.hysteresis = ratio, margin, hysteresis
        self.patience, self.wait, self.stop_patience = patience, wait, stop_patience
        self.accuracy_tolerance, self.synergy_margin = accuracy_tolerance, synergy_margin
        self.state: dict[str, Any] = {
            # The accuracy and synergy that the next peak must not fall behind.
            "best": None,
            "since_peak": 0,
            "readings": 0,
            "accuracy_sum": dict.fromkeys(self.modalities, 0.0),
            "nothing_learnt": 0,
            "leader": None,
            "leader_readings": 0,
            # Paused modalities: for each, the readings in a row without its lead.
            "paused": {},
            # The accuracy of the modalities that train, since one was paused.
            "waiting": {"best_accuracy": None, "not_risen": 0},
            "not_again": [],
            "joint": False,
            "information": [],
        }

    def decide_unimodal(self, reading: Reading) -> Decision:
        """Decide as described at the class."""
        if reading.step == 0:
            return self.train(reading, self._training(), "all train: step 0, nothing is learnt yet")
        # The state in an older checkpoint has no "information".
        remember(self.state.setdefault("information", []), reading, self.modalities)
        self._look_for_peak(reading)
        why_it_ends = self._nothing_to_learn(reading) or self._past_the_peak(reading)
        if why_it_ends:
            return self.end_stage(reading, why_it_ends)
        reason = self._resume(reading) or self._pause(reading) or self._unchanged(reading)
        return self.train(reading, self._training(), reason)

    def decide_joint(self, reading: Reading) -> Decision:
        """Pause and resume as in stage 1. Modalities that were paused at the end of stage 1 start unpaused."""
        if not self.state["joint"]:
            self.state |= {"joint": True, "paused": {}, "leader": None, "leader_readings": 0}
            self.state["waiting"] = {"best_accuracy": 0.0, "not_risen": 0}
            self.state["information"] = []
        reason = self._resume(reading) or self._pause(reading) or self._unchanged(reading)
        return Decision(self.ordered(self._training()), reason)

    @property
    def pauses_at(self) -> PauseThreshold:
        """The lead at which this rule pauses a modality."""
        return PauseThreshold(self.ratio, self.margin, self.patience)

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
        else:
            # This is a tie. The best values never fall, so that a slow decay does not count as a row of ties.
            best["accuracy"], best["synergy"] = max(best["accuracy"], accuracy), max(best["synergy"], synergy)
        state["since_peak"] = 0
        self.mark_peak(reading)

    def _past_the_peak(self, reading: Reading) -> str:
        if self.state["since_peak"] < self.stop_patience:
            return ""
        best, accuracy = self.state["best"], reading.mean_accuracy(self.modalities)
        bits, best_bits = told_apart(reading.synergy, best["synergy"])
        share, best_share = told_apart(accuracy, best["accuracy"], 3)
        return (
            f"no new peak in {self.stop_patience} readings (synergy {bits} bits, best {best_bits}; mean unimodal "
            f"accuracy {share}, best {best_share})"
        )

    def _nothing_to_learn(self, reading: Reading) -> str:
        state, floor = self.state, reading.floor
        informed = reading.information.is_above_noise
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
        bits, bound = told_apart(reading.synergy, floor["synergy"])
        return (
            f"unimodal losses teach nothing, in {state['nothing_learnt']} readings no modality alone is "
            f"above its noise floor (best accuracy {best:.3f}; synergy {bits} bits, floor {bound})"
        )

    def _resume(self, reading: Reading) -> str:
        state, training = self.state, self._training()
        if not state["paused"]:
            return ""
        accuracy = reading.mean_accuracy(training)
        if readings_without_rise(state["waiting"], accuracy, self.accuracy_tolerance) >= self.wait:
            resumed = list(state["paused"])
            state["paused"], state["not_again"] = {}, [*state["not_again"], *resumed]
            return (
                f"{listed(resumed)} resumed for good: waiting is useless, in {self.wait} readings the "
                f"accuracy of {listed(training)} has not risen by {self.accuracy_tolerance:g} and is "
                f"{accuracy:.3f}{forecasts(state['information'], training, resumed[0])}"
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
            count = f"reading {state['leader_readings']} of the {self.patience} needed to pause it"
            return f"{leader} leads, {count}: {lead}"
        state["paused"][leader], state["leader"], state["leader_readings"] = 0, None, 0
        self._start_waiting(reading)
        return f"{leader} paused: {lead}{forecasts(state['information'], rivals, leader)}"

    def _start_waiting(self, reading: Reading) -> None:
        self.state["waiting"] = {"best_accuracy": reading.mean_accuracy(self._training()), "not_risen": 0}

    def _unchanged(self, reading: Reading) -> str:
        training = self._training()
        if len(training) == len(self.modalities):
            return f"all train, no modality leads clearly: {uniqueness_of(reading, training)}"
        return "; ".join(
            f"{name} stays paused: {Lead.over(reading, name, training)}" for name in self.state["paused"]
        )
