"""The probe is asked what to do: train jointly at once, let one modality wait, or let all learn alone first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ecsfusion.controller.decision import Decision
from ecsfusion.controller.lead import Lead, check_positive, listed, uniqueness_of
from ecsfusion.controller.plateau import is_behind, plateau, readings_without_rise
from ecsfusion.controller.reading import Reading, check_finite
from ecsfusion.controller.rule import Rule

DEPENDENCE = 0.15
"""Bits of I(X1; X2 | Y) above which modalities count as dependent on each other given the label."""

MAX_SHARE_WHILE_WAITING = 0.75
"""The fused head has to be learned as well, however fast the modality was that waits."""


class Adaptive(Rule):
    """What the probe says about the modalities decides what stage 1 is for. The default.

    *Scouting.* The first `scouting_readings` readings are of joint training with unimodal losses, which shows what
    unimodal training cannot.

    *Modalities that depend on each other train jointly.* Where their conditional dependence I(X1; X2 | Y) is zero, the
    modalities' own posteriors say all that there is to say. Where it is above its noise floor and `dependence` bits,
    in whatever reading of stage 1, the fused head has to learn from them together: stage 2 starts from the present
    weights. So it does after scouting where no modality alone is above its noise floor.

    *A modality that knows all at once waits.* Fused training learns from errors only, and a modality that is right in
    nearly every row leaves none to learn the others from. So the first modality that has an accuracy of `saturation`
    in a reading of stage 1, is above its noise floor and leads every other by more than `ratio` and `margin` bits
    of uniqueness goes back to its initial weights and is paused until stage 2. (One that is merely ahead is not paused:
    in stage 1 the encoders share nothing, so it would only lose training.)

    *Otherwise* all train alone, until the mean accuracy of those who train has not risen by `accuracy_tolerance` in
    `plateau_patience` readings, or until `max_unimodal_share` of the budget is used. If that is None it is half;
    while a modality waits it is all but `catch_up` times what that modality took to know nearly all, if that is more,
    up to three quarters. Stage 2 starts from the latest weights that are not behind the best by more than the
    tolerance.

    Why not the peak of synergy: corrected for bias it has none (benchmarks/README.md).
    """

    name = "adaptive"
    resets = True

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        scouting_readings: int = 2,
        dependence: float = DEPENDENCE,
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
            dependence=dependence,
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
            # The modality that knew all.
            "waiting": None,
            # The share of the budget in which it did.
            "learnt_in": None,
            "best_accuracy": None,
            "not_risen": 0,
        }

    @property
    def trains_fused_head(self) -> bool:
        """While it scouts, where there will be a stage 2."""
        return bool(self.state["scouting"]) and self.context.joint_follows

    @property
    def latest_end(self) -> float:
        """Later while a modality waits that learns so fast that it needs less of stage 2."""
        # The states of older checkpoints do not have it.
        learnt_in = self.state.get("learnt_in")
        return self.max_unimodal_share if learnt_in is None else self._end_while_waiting(learnt_in)

    def _end_while_waiting(self, learnt_in: float) -> float:
        """`latest_end` while a modality waits that came to know nearly all in this share of the budget."""
        context = self.context
        if self.has_own_share or context.unimodal_share is not None or not context.ends_early:
            return self.max_unimodal_share
        return max(self.max_unimodal_share, min(1 - self.catch_up * learnt_in, MAX_SHARE_WHILE_WAITING))

    @property
    def excluded_from_readout(self) -> tuple[str, ...]:
        """The modality that waited: it would overrule the others in the readout."""
        return (self.state["waiting"],) if self.state["waiting"] else ()

    def decide_unimodal(self, reading: Reading) -> Decision:
        check_finite({"conditional_mutual_information": reading.conditional_mutual_information})
        if reading.step == 0:
            return self.train(reading, self.modalities, "all train: step 0, nothing is learnt yet")
        if not self.context.joint_follows:
            return self._until_the_plateau(reading)
        depend = f"given the label, the modalities share {reading.conditional_mutual_information:.2f} bits"
        floor = max(reading.floor["synergy"], self.dependence)
        if reading.conditional_mutual_information > floor and self.state["waiting"] is None:
            why = f"{depend}, more than {floor:.2f}: the fused head has to learn from them together"
            # Not the weights of an earlier reading, which depended less.
            self.mark_peak(reading)
            return self.end_stage(reading, why)
        saturated = self._saturated(reading) if self.state["waiting"] is None else None
        if saturated is not None:
            return saturated
        if not self.state["scouting"]:
            return self._until_the_plateau(reading)
        self.state["readings"] += 1
        if self.state["readings"] < self.scouting_readings:
            return self.train(
                reading, self.modalities, f"all train, the fused head too, to see more: {depend}"
            )
        self.state["scouting"] = False
        if not reading.information.is_above_noise:
            best = max(reading.accuracy[name] for name in self.modalities)
            why = f"no modality alone is above its noise floor (best accuracy {best:.3f}): alone they learn nothing"
            return self.end_stage(reading, why)
        return self.train(
            reading, self.modalities, f"all train, each alone: {depend}, not more than {floor:.2f}"
        )

    def _saturated(self, reading: Reading) -> Decision | None:
        """One modality is put back and waits, if it knows nearly all and leads clearly."""
        leader = max(self.modalities, key=lambda name: reading.unique[name])
        others = [name for name in self.modalities if name != leader]
        lead = Lead.over(reading, leader, others)
        accuracy = reading.accuracy[leader]
        if accuracy < self.saturation or not lead.is_clear(self.ratio, self.margin):
            return None
        if reading.progress >= self._end_while_waiting(reading.progress) - 1e-9:
            # Stage 1 ends here: there is nothing left to wait for.
            return None
        self.state |= {"waiting": leader, "learnt_in": reading.progress, "scouting": False}
        # Of others than before.
        self.state |= {"best_accuracy": None, "not_risen": 0}
        reason = (
            f"{leader} waits for stage 2, from its initial weights: alone its accuracy is {accuracy:.3f}, which leaves "
            f"nothing to learn the others from; {lead}"
        )
        return self.train(reading, others, reason, reset=[leader])

    def _until_the_plateau(self, reading: Reading) -> Decision:
        state = self.state
        training = [name for name in self.modalities if name != state["waiting"]]
        accuracy = reading.mean_accuracy(training)
        if not is_behind(state, accuracy, self.accuracy_tolerance):
            self.mark_peak(reading)
        if readings_without_rise(state, accuracy, self.accuracy_tolerance) >= self.plateau_patience:
            return self.end_stage(reading, plateau(state, accuracy, self.accuracy_tolerance, training))
        waits = f" and {state['waiting']} waits" if state["waiting"] else ""
        verb = "trains" if len(training) == 1 else "train"
        seen = f"mean accuracy {accuracy:.3f}, {uniqueness_of(reading, self.modalities)}"
        return self.train(reading, training, f"{listed(training)} {verb}{waits}: {seen}")
