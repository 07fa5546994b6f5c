"""The rule "adaptive": train jointly at once, let one modality wait, or let all modalities train alone first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ecsfusion.controller.decision import Decision
from ecsfusion.controller.lead import Lead, check_positive, listed, uniqueness_of
from ecsfusion.controller.plateau import is_behind, plateau, readings_without_rise
from ecsfusion.controller.reading import Reading, check_finite
from ecsfusion.controller.rule import Rule
from ecsfusion.evaluation.rounding import told_apart

DEPENDENCE = 0.07
"""Bits of `Reading.dependence` above which modalities count as dependent on each other given the label: at the end of
scouting 0.08 to 0.14 in the suite "mixture", 0.02 to 0.06 in "halves" and at most 0.005 in five others
(benchmarks/README.md)."""
DEPENDENCE_BY_CLUSTERS = 0.15
"""The same where the probe clusters embeddings, whose I(X1; X2 | Y) is another number."""

MAX_SHARE_WHILE_WAITING = 0.75
"""The largest share of the budget that stage 1 may use while a modality waits. The fused head needs the rest."""


def least_dependence(reading: Reading, chosen: float | None = None) -> float:
    """The bits of dependence above which modalities count as dependent: those chosen, or those of the measurement."""
    if chosen is not None:
        return chosen
    return DEPENDENCE if reading.information.is_by_heads else DEPENDENCE_BY_CLUSTERS


class Adaptive(Rule):
    """Decide from the probe whether to train jointly at once, to let one modality wait, or to train each alone first.

    It is the default rule.

    *Scouting.* The model trains jointly, with unimodal losses, up to the reading number `scouting_readings`. These
    readings show whether the modalities depend on each other, which unimodal training cannot show.

    *Modalities that depend on each other train jointly.* If modalities are independent given the label, the posteriors
    of the single modalities determine the posterior of all together. At the end of scouting readouts of the embeddings
    tell how many bits of the label all modalities know beyond the product of these posteriors. If that is above its
    noise floor and above `dependence` bits, the fused head has to learn from the modalities together: stage 1 ends, and
    stage 2 starts from the present weights. The same happens after scouting if no modality alone is above its noise
    floor.

    *A modality that soon knows nearly everything waits.* Fused training learns from errors, and a modality that is
    right in nearly every row leaves no errors from which the others could learn. Therefore one modality may be put
    back to its initial weights and paused until stage 2. It is the first that has an accuracy of `saturation`, above
    chance, in a reading of stage 1, is above its noise floor, and leads every other by more than `ratio` and by more
    than `margin` bits of uniqueness. (A modality that is only ahead is not paused: the encoders share nothing in stage
    1, so a pause would not help the others.)

    *Otherwise* all modalities train alone. Stage 1 ends when the mean accuracy of those that train has not risen by
    `accuracy_tolerance` in `plateau_patience` readings, or when `max_unimodal_share` of the budget is used. If
    `max_unimodal_share` is None, that is half of the budget. While a modality waits, it is longer if that modality was
    fast: the whole budget without `catch_up` times the share in which the modality learned nearly everything, but at
    most three quarters. Stage 2 starts from the latest weights that are not behind the best by more than the tolerance.

    The rule does not look for a peak of synergy, because synergy without the bias of the estimate has none
    (benchmarks/README.md).

    Args:
        modalities: at least two different names.
        scouting_readings: readings of joint training before the first decision; 0 for none.
        dependence: bits of `Reading.dependence` above which the modalities train jointly; None for 0.07, and 0.15
            where the probe clusters embeddings, as in regression.
        saturation: accuracy at which a modality that leads clearly is paused.
        ratio: how many times the uniqueness of the next modality a clear lead is.
        margin: bits by which a clear lead is ahead of the next modality.
        accuracy_tolerance: differences of accuracy up to this count as none.
        plateau_patience: readings without a rise after which stage 1 ends.
        catch_up: how many times as long as the waiting modality trained stage 2 should last.
        max_unimodal_share: the largest share of the budget that stage 1 may use; None as described above.

    Raises:
        ValueError: an option is out of its range.
    """

    name = "adaptive"
    resets = True

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        scouting_readings: int = 2,
        dependence: float | None = None,
        saturation: float = 0.95,
        ratio: float = 3.0,
        margin: float = 0.15,
        accuracy_tolerance: float = 0.01,
        plateau_patience: int = 5,
        catch_up: float = 2.0,
        max_unimodal_share: float | None = None,
    ) -> None:
        super().__init__(
            modalities, max_unimodal_share=0.5 if max_unimodal_share is None else max_unimodal_share
        )
        self.has_own_share = max_unimodal_share is not None
        check_positive(
            dependence=DEPENDENCE if dependence is None else dependence,
            ratio=ratio,
            margin=margin,
            plateau_patience=plateau_patience,
            catch_up=catch_up,
        )
        if not 0 < saturation <= 1:
            raise ValueError(f"saturation must be in (0, 1], got {saturation}.")
        if not isinstance(scouting_readings, int) or scouting_readings < 0:
            raise ValueError(
                f"scouting_readings must be a whole number that is not negative, got {scouting_readings!r}."
            )
        if not 0 <= accuracy_tolerance < 1:
            raise ValueError(f"accuracy_tolerance must be in [0, 1), got {accuracy_tolerance}.")
        self.scouting_readings, self.dependence = scouting_readings, dependence
        self.saturation, self.ratio, self.margin = saturation, ratio, margin
        self.accuracy_tolerance, self.plateau_patience = accuracy_tolerance, plateau_patience
        self.catch_up = catch_up
        self.state: dict[str, Any] = {
            "readings": 0,
            "scouting": scouting_readings > 0,
            # The modality that waits, and the share of the budget in which it learned nearly everything.
            "waiting": None,
            "learnt_in": None,
            "best_accuracy": None,
            "not_risen": 0,
        }

    @property
    def trains_fused_head(self) -> bool:
        """True while the rule scouts, if a stage 2 follows."""
        return bool(self.state["scouting"]) and self.context.joint_follows

    @property
    def asks_for_dependence(self) -> bool:
        """True for the last reading of scouting, or without scouting for the first reading, if a stage 2 follows."""
        state = self.state
        if state["waiting"] is not None or not self.context.joint_follows:
            return False
        if state["scouting"]:
            return bool(state["readings"] >= self.scouting_readings - 1)
        return self.scouting_readings == 0 and state["best_accuracy"] is None

    @property
    def latest_end(self) -> float:
        """As in `Rule`, but later while a modality waits that learns fast and so needs less of stage 2."""
        # The state in an older checkpoint has no "learnt_in".
        learnt_in = self.state.get("learnt_in")
        return self.max_unimodal_share if learnt_in is None else self._end_while_waiting(learnt_in)

    def _end_while_waiting(self, learnt_in: float) -> float:
        """`latest_end` while a modality waits that learned nearly everything in this share of the budget."""
        context = self.context
        if self.has_own_share or context.unimodal_share is not None or not context.ends_early:
            return self.max_unimodal_share
        return max(self.max_unimodal_share, min(1 - self.catch_up * learnt_in, MAX_SHARE_WHILE_WAITING))

    @property
    def excluded_from_readout(self) -> tuple[str, ...]:
        """The modality that waited, because it would overrule the others in the readout."""
        return (self.state["waiting"],) if self.state["waiting"] else ()

    def decide_unimodal(self, reading: Reading) -> Decision:
        """Decide as described at the class."""
        dependence = reading.information.dependence
        check_finite({"dependence": dependence})
        if reading.step == 0:
            return self.train(reading, self.modalities, "all train: step 0, nothing is learnt yet")
        if not self.context.joint_follows:
            return self._until_the_plateau(reading)
        floor = max(reading.floor["synergy"], least_dependence(reading, self.dependence))
        bits, bound = told_apart(dependence, floor)
        depend = f"given the label, the modalities depend on each other by {bits} bits"
        if dependence > floor and self.state["waiting"] is None:
            why = f"{depend}, more than {bound}: the fused head has to learn from them together"
            # Stage 2 starts from these weights, not from those of an earlier reading.
            self.mark_peak(reading)
            return self.end_stage(reading, why)
        saturated = self._saturated(reading) if self.state["waiting"] is None else None
        if saturated is not None:
            return saturated
        if not self.state["scouting"]:
            return self._until_the_plateau(reading)
        self.state["readings"] += 1
        if self.state["readings"] < self.scouting_readings:
            return self.train(reading, self.modalities, "all train, the fused head too, to see more")
        self.state["scouting"] = False
        if not reading.information.is_above_noise:
            best = max(reading.accuracy[name] for name in self.modalities)
            why = (
                f"no modality alone is above its noise floor (best {reading.score_in_words} {best:.3f}): "
                "nothing shows that they learn alone"
            )
            return self.end_stage(reading, why)
        why = f"{depend}, not more than {bound}"
        if not reading.information.shows_dependence:
            why = "too few rows to see whether the modalities depend on each other given the label"
        return self.train(reading, self.modalities, f"all train, each alone: {why}")

    def _saturated(self, reading: Reading) -> Decision | None:
        """The decision to reset and pause the leader, if it knows nearly everything and leads clearly; else None."""
        leader = max(self.modalities, key=lambda name: reading.unique[name])
        others = [name for name in self.modalities if name != leader]
        lead = Lead.over(reading, leader, others)
        accuracy = reading.accuracy[leader]
        if accuracy < self.saturation or not lead.is_clear(self.ratio, self.margin):
            return None
        if reading.measurement.scale.is_chance(accuracy):
            # Where most rows are of one class, this is the accuracy of saying so of every row.
            return None
        if reading.progress >= self._end_while_waiting(reading.progress) - 1e-9:
            # Stage 1 ends at this reading, so a pause would have no effect.
            return None
        self.state |= {"waiting": leader, "learnt_in": reading.progress, "scouting": False}
        # From now on the mean accuracy is that of fewer modalities, so it is compared anew.
        self.state |= {"best_accuracy": None, "not_risen": 0}
        reason = (
            f"{leader} waits for stage 2, from its initial weights: alone its {reading.score_in_words} is "
            f"{accuracy:.3f}, which leaves nothing to learn the others from; {lead}"
        )
        return self.train(reading, others, reason, reset=[leader])

    def _until_the_plateau(self, reading: Reading) -> Decision:
        state = self.state
        training = [name for name in self.modalities if name != state["waiting"]]
        accuracy = reading.mean_accuracy(training)
        if not is_behind(state, accuracy, self.accuracy_tolerance):
            self.mark_peak(reading)
        if readings_without_rise(state, accuracy, self.accuracy_tolerance) >= self.plateau_patience:
            why = plateau(state, accuracy, self.accuracy_tolerance, training, reading.score_in_words)
            return self.end_stage(reading, why)
        waits = f" and {state['waiting']} waits" if state["waiting"] else ""
        verb = "trains" if len(training) == 1 else "train"
        values = f"mean {reading.score_in_words} {accuracy:.3f}, {uniqueness_of(reading, self.modalities)}"
        return self.train(reading, training, f"{listed(training)} {verb}{waits}: {values}")
