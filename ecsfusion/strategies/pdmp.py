"""PDMP: in joint training, the modality that is best alone learns faster than the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ecsfusion.controller.pretrain_then_reset import PretrainThenReset
from ecsfusion.evaluation.scores import quality
from ecsfusion.strategies.strategy import Strategy, TrainerOfStrategy, check_share

if TYPE_CHECKING:
    from ecsfusion.controller.rule import Rule, RunContext
    from ecsfusion.evaluation.outputs import Evaluation
    from ecsfusion.modeling import FusionForClassification


class PDMP(Strategy):
    """Find the modality that is best alone, then train jointly with smaller gradients for the others (PDMP, 2026).

    Performance-dominant modality prioritization, Wei et al. 2026, arXiv 2604.05773:

        p = the modality with the best unimodal model
        g_p <- gamma_p g_p,   g_m <- gamma_r g_m for every other m,   gamma_r < gamma_p

    g_m is the gradient of CE(z) in encoder m. The unimodal models are trained first, for a share of the budget, and
    ranked by their last score on validation. Then the model goes back to its initial weights. In the paper the unimodal
    models are fully trained, outside of the budget, and gamma is tuned for each data set; the default here is a guess.
    Use SGD: Adam and similar optimizers divide a gradient by its running size, which cancels most of the scaling.

    Args:
        modalities: names of the modalities of the model.
        share: the share of the budget in which the unimodal models are trained.
        gamma_p: factor of the gradient of the best modality.
        gamma_r: factor of the gradients of the others.

    Raises:
        ValueError: a share outside of (0, 1), a negative factor, or a `gamma_r` above `gamma_p`.
    """

    name = "pdmp"
    stages = "two-stage"
    auxiliary_weight = 0.0

    def __init__(
        self, modalities: Sequence[str], *, share: float = 0.25, gamma_p: float = 1.0, gamma_r: float = 0.5
    ) -> None:
        super().__init__(modalities)
        check_share(share)
        if not 0.0 <= gamma_r <= gamma_p:
            raise ValueError(f"gamma_r is {gamma_r}; it must be in [0, gamma_p], and gamma_p is {gamma_p}.")
        self.share, self.gamma_p, self.gamma_r = share, gamma_p, gamma_r
        # The names of the modalities, the best one first.
        self.state = {"ranking": []}

    def make_rule(self, context: RunContext) -> Rule:
        """A rule by which all modalities train alone for the share, then go back to their initial weights."""
        return PretrainThenReset(self.modalities, max_unimodal_share=self.share)

    def after_evaluation(self, trainer: TrainerOfStrategy, evaluation: Evaluation) -> None:
        """Rank the modalities in stage 1. The last ranking is used in stage 2."""
        if trainer.model.stage == "unimodal":
            qualities = {
                name: quality(evaluation, name, trainer.model.problem_type) for name in self.modalities
            }
            self.state["ranking"] = sorted(self.modalities, key=lambda name: qualities[name], reverse=True)

    def adjust_gradients(self, model: FusionForClassification) -> None:
        """Scale the encoders' gradients in stage 2."""
        if model.stage == "unimodal":
            return
        for name in self.modalities:
            gamma = self.gamma_p if name == self.state["ranking"][0] else self.gamma_r
            for parameter in model.encoders[name].parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(gamma)
