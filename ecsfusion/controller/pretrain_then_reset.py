"""Unimodal training only to see what it leads to: then everything starts anew."""

from __future__ import annotations

from ecsfusion.controller.decision import Decision
from ecsfusion.controller.reading import Reading
from ecsfusion.controller.rule import Rule


class PretrainThenReset(Rule):
    """Unimodal training for `max_unimodal_share` of the budget, then everything starts anew.

    The weights at the end of stage 1 are kept as its peak, in the folder "unimodal": they are what the rehearsal was
    for (a ranking of the modalities, teachers). Stage 2 starts from the initial weights, the fused head's too.
    """

    name = "pretrain-then-reset"
    resets = True

    def decide_unimodal(self, reading: Reading) -> Decision:
        used = f"{reading.progress:.0%} of the budget"
        if reading.progress < self.max_unimodal_share - 1e-9:
            end = f"{self.max_unimodal_share:.0%}"
            return self.train(reading, self.modalities, f"{used} is used; the rehearsal lasts until {end}")
        self.mark_peak(reading)
        return Decision(
            self.modalities,
            f"stage 1 ends: the rehearsal is over at {used}; stage 2 starts anew, from the initial weights",
            ends_stage=True,
            peak=True,
            reset=self.modalities,
        )
