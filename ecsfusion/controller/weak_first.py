"""The rule "weak-first": the leader goes back to its initial weights while the other modalities train alone."""

from __future__ import annotations

from collections.abc import Sequence

from ecsfusion.controller.decision import Decision
from ecsfusion.controller.forecast import forecasts, remember
from ecsfusion.controller.lead import Lead, check_positive, listed, uniqueness_of
from ecsfusion.controller.plateau import is_behind, plateau, readings_without_rise
from ecsfusion.controller.reading import Reading
from ecsfusion.controller.rule import Rule


class WeakFirst(Rule):
    """Put the leader back to its initial weights and let the slower modalities train alone first.

    All modalities train for `min_epochs` to `max_epochs`. As soon as one of them is above its noise floor and leads
    every other by more than `ratio` and by more than `margin` bits of uniqueness, it goes back to its initial weights
    and is paused. (Without the reset, even one epoch of head start has an effect up to the end.) The others train until
    `max_unimodal_share` of the budget is used, or until their mean accuracy has not risen by `accuracy_tolerance` in
    `plateau_patience` readings. Stage 2 starts from their latest weights that are not behind their best by more than
    that tolerance. If there is no leader after `max_epochs`, joint training starts at once.

    So early in training, the rule cannot tell a modality that learns slowly from one that carries little information.
    If the modality behind is only noisy, this rule can cost accuracy. The reason of the decision says which of the two
    it looks like (`ecsfusion.controller.forecast`, with how often that is right), but the decision does not depend on
    it.

    Args:
        modalities: at least two different names.
        ratio: how many times the uniqueness of the next modality a clear lead is.
        margin: bits by which a clear lead is ahead of the next modality.
        min_epochs: epochs before the first comparison.
        max_epochs: epochs after which joint training starts if no modality leads.
        accuracy_tolerance: differences of accuracy up to this count as none.
        plateau_patience: readings without a rise after which stage 1 ends.
        max_unimodal_share: the largest share of the budget that stage 1 may use.

    Raises:
        ValueError: an option is out of its range.
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
        check_positive(ratio=ratio, margin=margin, max_epochs=max_epochs, plateau_patience=plateau_patience)
        if min_epochs > max_epochs:
            raise ValueError(f"min_epochs is {min_epochs} and must not be above max_epochs {max_epochs}.")
        self.ratio, self.margin = ratio, margin
        self.min_epochs, self.max_epochs = min_epochs, max_epochs
        self.accuracy_tolerance, self.plateau_patience = accuracy_tolerance, plateau_patience
        self.state = {"leader": None, "best_accuracy": None, "not_risen": 0, "information": []}

    def decide_unimodal(self, reading: Reading) -> Decision:
        """Decide as described at the class."""
        if self.state["leader"] is not None:
            return self._others_alone(reading)
        # The state in an older checkpoint has no "information".
        remember(self.state.setdefault("information", []), reading, self.modalities)
        if reading.epoch < self.min_epochs - 1e-9:
            reason = f"all train: the first comparison is at epoch {self.min_epochs:g}"
            return self.train(reading, self.modalities, reason)
        leader = max(self.modalities, key=lambda name: reading.unique[name])
        others = [name for name in self.modalities if name != leader]
        lead = Lead.over(reading, leader, others)
        if lead.is_clear(self.ratio, self.margin):
            self.state["leader"] = leader
            reason = f"{leader} paused and put back to its initial weights: {lead}"
            reason += forecasts(self.state["information"], others, leader)
            return self.train(reading, others, reason, reset=[leader])
        no_leader = (
            f"no modality leads clearly at epoch {reading.epoch:g}, {uniqueness_of(reading, self.modalities)}"
        )
        if reading.epoch >= self.max_epochs - 1e-9:
            return self.end_stage(reading, no_leader)
        return self.train(reading, self.modalities, f"all train: {no_leader}")

    def _others_alone(self, reading: Reading) -> Decision:
        state = self.state
        others = [name for name in self.modalities if name != state["leader"]]
        accuracy = reading.mean_accuracy(others)
        if not is_behind(state, accuracy, self.accuracy_tolerance):
            self.mark_peak(reading)
        if readings_without_rise(state, accuracy, self.accuracy_tolerance) >= self.plateau_patience:
            why = plateau(state, accuracy, self.accuracy_tolerance, others, reading.score_in_words)
            return self.end_stage(reading, why)
        verb = "train" if len(others) > 1 else "trains"
        reason = (
            f"{listed(others)} {verb} and {state['leader']} waits: {reading.score_in_words} {accuracy:.3f}"
        )
        return self.train(reading, others, reason)
