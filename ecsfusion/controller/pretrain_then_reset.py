"""A rule for strategies that train all modalities alone only to learn something from the result."""

from __future__ import annotations

from ecsfusion.controller.decision import Decision
from ecsfusion.controller.reading import Reading
from ecsfusion.controller.rule import Rule


class PretrainThenReset(Rule):
    """Train each modality alone for `max_unimodal_share` of the budget, then start again from the initial weights.

    The weights at the end of stage 1 are kept as its peak, in the folder "unimodal". A strategy uses them to rank the
    modalities or as teachers. Stage 2 starts from the initial weights, those of the fused head included.
    """

    name = "pretrain-then-reset"
    resets = True

    def decide_unimodal(self, reading: Reading) -> Decision:
        """Train all modalities until the share is used, then keep the weights and reset all modalities."""
        used = f"{reading.progress:.0%} of the budget"
        if reading.progress < self.max_unimodal_share - 1e-9:
            end = f"{self.max_unimodal_share:.0%}"
            return self.train(
                reading, self.modalities, f"{used} is used; unimodal pretraining lasts until {end}"
            )
        self.mark_peak(reading)
        return Decision(
            self.modalities,
            f"stage 1 ends: unimodal pretraining is over at {used}; stage 2 starts from the initial weights",
            ends_stage=True,
            peak=True,
            reset=self.modalities,
        )
