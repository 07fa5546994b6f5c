"""The rule "published": the rule of the paper, unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ecsfusion.controller.decision import Decision
from ecsfusion.controller.lead import check_positive, listed
from ecsfusion.controller.reading import Reading, check_finite
from ecsfusion.controller.rule import Rule
from ecsfusion.evaluation.rounding import told_apart


class Published(Rule):
    """Pause and end stage 1 exactly by the rule of arXiv 2509.20840, for comparison; for two modalities.

    rho = U1 / U2 of the uncorrected atoms. If rho > tau, only modality 2 trains from now on; if 1 / rho > tau, only
    modality 1; in between, the same modalities go on. Stage 1 ends at the second change of the modalities that train
    (the first pause is the first change), when the uncorrected synergy falls below `synergy_drop` times its best, or
    after `max_epochs` epochs. The peak is not restored. A reading with U2 = 0 has no rho and is skipped.

    The uncorrected synergy is mostly bias of the estimate, so noise may end stage 1 after a few epochs.

    Args:
        modalities: two names.
        tau: ratio of the uniquenesses at which a modality is paused.
        synergy_drop: share of its best below which synergy ends stage 1.
        max_epochs: the largest length of stage 1 in epochs.
        max_unimodal_share: the largest share of the budget that stage 1 may use, which matters in shorter runs than
            the paper's. The default is 200 of its 300 epochs.

    Raises:
        ValueError: more than two modalities, or an option that is not positive.
    """

    name = "published"
    # The paper's ratio and drop are those of clusters.
    reads_heads = False
    only_two = "it compares two uniquenesses"

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
        check_positive(tau=tau, synergy_drop=synergy_drop, max_epochs=max_epochs)
        self.tau, self.synergy_drop, self.max_epochs = tau, synergy_drop, max_epochs
        self.state = {"training": list(self.modalities), "changes": 0, "best_synergy": 0.0}

    def decide_unimodal(self, reading: Reading) -> Decision:
        """Decide as described at the class."""
        u1, u2, synergy = self._plugin_atoms(reading)
        state, (first, second) = self.state, self.modalities
        uniqueness = f"plug-in uniqueness {first} {u1:.2f}, {second} {u2:.2f} bits"
        ending = ""
        if u2 > 0:
            training = (
                [second] if u1 > self.tau * u2 else [first] if u2 > self.tau * u1 else state["training"]
            )
            state["changes"] += training != state["training"]
            state["training"] = training
            best = state["best_synergy"] = max(state["best_synergy"], synergy)
            if synergy < self.synergy_drop * best:
                value, bound = told_apart(synergy, self.synergy_drop * best)
                ending = f"plug-in synergy {value} bits is under {bound}, {self.synergy_drop:g} of its best {best:.2f}"
        if state["changes"] == 2:
            ending = f"this is the second change of who trains, {uniqueness}"
        if reading.epoch >= self.max_epochs:
            ending = f"{reading.epoch:g} epochs are done and the limit is {self.max_epochs:g}"
        if ending:
            return self.end_stage(reading, ending)
        verb = "train" if len(state["training"]) == 2 else "trains alone"
        return self.train(reading, state["training"], f"{listed(state['training'])} {verb}: {uniqueness}")

    def _plugin_atoms(self, reading: Reading) -> tuple[float, float, float]:
        unique = reading.plugin.get("unique") or {}
        values: dict[str, Any] = {f"plugin['unique'][{name!r}]": unique.get(name) for name in self.modalities}
        values["plugin['synergy']"] = reading.plugin.get("synergy")
        check_finite(values)
        u1, u2, synergy = (float(value) for value in values.values())
        return u1, u2, synergy
