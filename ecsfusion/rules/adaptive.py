"""Everyone learns alone first, unless that teaches nothing, and unless one knows all before the others have begun."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ecsfusion.rules.decision import Decision, Reading, Rule
from ecsfusion.rules.lead import Lead, check_positive, listed, uniqueness_of


class Adaptive(Rule):
    """What the probe says about the modalities decides what stage 1 is for. The default.

    *A modality that knows all at once waits.* Fused training learns from errors only, and a modality that is right in
    nearly every row leaves none to learn the others from. So a modality that within ``early_share`` of the budget has
    an accuracy of ``saturation``, is above its noise floor and leads every other by more than ``ratio`` and ``margin``
    bits of uniqueness goes back to its initial weights and is paused until stage 2. (One that is merely ahead is not
    paused: in stage 1 the encoders share nothing, so it would only lose training.)

    *Nothing to learn alone.* Stage 1 ends, and joint training begins, after ``patience`` readings in which redundancy
    and every uniqueness are within their noise floors and no accuracy rises.

    *Otherwise* those that train go on until ``max_unimodal_share`` of the budget is used, or until their mean accuracy
    has not risen by ``accuracy_tolerance`` in ``plateau_patience`` readings. Stage 2 starts from the latest weights
    that are not behind the best by more than that.

    Why not the peak of synergy: corrected for bias it has none (benchmarks/README.md).
    """

    name = "adaptive"
    resets = True

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        saturation: float = 0.95,
        early_share: float = 0.2,
        ratio: float = 3.0,
        margin: float = 0.15,
        patience: int = 2,
        accuracy_tolerance: float = 0.01,
        plateau_patience: int = 5,
        max_unimodal_share: float = 0.5,
    ) -> None:
        super().__init__(modalities, max_unimodal_share=max_unimodal_share)
        _check = {
            "ratio": ratio,
            "margin": margin,
            "patience": patience,
            "plateau_patience": plateau_patience,
        }
        check_positive(**_check)
        for name, value in (("saturation", saturation), ("early_share", early_share)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}.")
        self.saturation, self.early_share = saturation, early_share
        self.ratio, self.margin, self.patience = ratio, margin, patience
        self.accuracy_tolerance, self.plateau_patience = accuracy_tolerance, plateau_patience
        self.state: dict[str, Any] = {
            "waiting": None,  # the modality that knew all
            "best_accuracy": None,
            "not_risen": 0,
            "nothing_learnt": 0,
            "best_by_modality": {},
        }

    @property
    def withheld(self) -> tuple[str, ...]:
        """The modality that waited: it would veto the others in the readout."""
        return (self.state["waiting"],) if self.state["waiting"] else ()

    def decide_unimodal(self, reading: Reading) -> Decision:
        if reading.step == 0:
            return self.train(reading, self.modalities, "all train: step 0, nothing is learnt yet")
        if self.state["waiting"] is None:
            over = self._nothing_to_learn(reading)
            if over:
                return self.hand_over(reading, over)
            saturated = self._saturated(reading)
            if saturated is not None:
                return saturated
        return self._until_the_plateau(reading)

    def _saturated(self, reading: Reading) -> Decision | None:
        """One modality is put back and waits, if it knows nearly all and leads clearly."""
        if reading.progress > self.early_share + 1e-9:
            return None
        leader = max(self.modalities, key=lambda name: reading.unique[name])
        others = [name for name in self.modalities if name != leader]
        lead = Lead.over(reading, leader, others)
        accuracy = reading.accuracy[leader]
        if accuracy < self.saturation or not lead.is_clear(self.ratio, self.margin):
            return None
        self.state |= {"waiting": leader, "best_accuracy": None, "not_risen": 0}
        reason = (
            f"{leader} waits for stage 2, from its initial weights: alone it is right in {accuracy:.1%} of the rows "
            f"after {reading.progress:.0%} of the budget, which leaves nothing to learn the others from; {lead}"
        )
        return self.train(reading, others, reason, reset=[leader])

    def _nothing_to_learn(self, reading: Reading) -> str:
        state, floor = self.state, reading.floor
        informed = reading.redundancy > floor["redundancy"] or any(
            reading.unique[name] > floor[name] for name in self.modalities
        )
        best = state["best_by_modality"]
        risen = any(
            name in best and reading.accuracy[name] > best[name] + self.accuracy_tolerance
            for name in self.modalities
        )
        for name in self.modalities:
            best[name] = max(best.get(name, 0.0), float(reading.accuracy[name]))
        state["nothing_learnt"] = 0 if informed or risen else state["nothing_learnt"] + 1
        if state["nothing_learnt"] < self.patience:
            return ""
        return (
            f"unimodal losses teach nothing, in {state['nothing_learnt']} readings no modality alone is above its "
            f"noise floor or has got better (best accuracy {max(best.values()):.3f}; synergy {reading.synergy:.2f} "
            f"bits, floor {floor['synergy']:.2f})"
        )

    def _until_the_plateau(self, reading: Reading) -> Decision:
        state = self.state
        training = [name for name in self.modalities if name != state["waiting"]]
        accuracy, best = reading.mean_accuracy(training), state["best_accuracy"]
        if best is None or accuracy >= best - self.accuracy_tolerance:
            self.mark_peak(reading)
        state["not_risen"] += 1
        if best is None or accuracy > best + self.accuracy_tolerance:
            state["best_accuracy"], state["not_risen"] = accuracy, 0
        if state["not_risen"] >= self.plateau_patience:
            why = (
                f"in {self.plateau_patience} readings the mean accuracy of {listed(training)} has not risen by "
                f"{self.accuracy_tolerance:g} above {state['best_accuracy']:.3f} and is {accuracy:.3f}"
            )
            return self.hand_over(reading, why)
        waits = f" and {state['waiting']} waits" if state["waiting"] else ""
        verb = "trains" if len(training) == 1 else "train"
        seen = f"mean accuracy {accuracy:.3f}, {uniqueness_of(reading, self.modalities)}"
        return self.train(reading, training, f"{listed(training)} {verb}{waits}: {seen}")
