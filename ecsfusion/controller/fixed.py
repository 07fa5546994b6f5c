"""The rule "fixed": a schedule that is given beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ecsfusion.controller.decision import Decision
from ecsfusion.controller.lead import listed
from ecsfusion.controller.reading import Reading
from ecsfusion.controller.rule import Rule


class FixedSchedule(Rule):
    """Train given modalities in phases of given lengths, then train jointly.

    Args:
        modalities: at least two different names.
        schedule: pairs (length, modalities) in order, such as `[(0.2, ["audio"]), (0.3, ["image", "audio"])]`. A
            phase ends at the first reading at which its length is used up.
        unit: the unit of the lengths: "share" of the whole budget, or "epochs".
        max_unimodal_share: the largest share of the budget that stage 1 may use.

    Raises:
        ValueError: the schedule is empty, is not a list of such pairs, or is longer than stage 1 may be.
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
        self.phases: list[tuple[float, tuple[str, ...]]] = []
        """The end of each phase, in `unit`, and the modalities that train in it."""
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
                or not isinstance(phase[1], Iterable)
            ):
                raise ValueError(f"schedule must hold pairs (length > 0, modalities), got {phase!r}.")
            length, names = phase
            end += length
            self.phases.append((end, self.ordered([names] if isinstance(names, str) else names)))
        if not self.phases:
            raise ValueError(
                "schedule is empty; give pairs (length, modalities), or train jointly from the start."
            )

    def check_context(self) -> None:
        """Check that the phases end within the share of the budget that stage 1 may use.

        Raises:
            ValueError: they do not, or see `Rule.check_context`.
        """
        super().check_context()
        end = self.phases[-1][0]
        if self.unit == "share" and end > self.max_unimodal_share + 1e-9:
            raise ValueError(
                f"schedule uses {end:g} of the budget and max_unimodal_share allows {self.max_unimodal_share:g}; "
                "shorten the phases or raise max_unimodal_share."
            )

    @property
    def initial_training(self) -> tuple[str, ...]:
        """The modalities of the first phase."""
        return self.phases[0][1]

    def decide_unimodal(self, reading: Reading) -> Decision:
        """Train the modalities of the phase that this reading is in; end stage 1 after the last phase."""
        position = reading.progress if self.unit == "share" else reading.epoch
        done = f"{position:.0%} of the budget" if self.unit == "share" else f"epoch {position:g}"
        for number, (end, names) in enumerate(self.phases, start=1):
            if position < end - 1e-9:
                reason = (
                    f"phase {number} of {len(self.phases)} of the fixed schedule at {done}: {listed(names)}"
                )
                return self.train(reading, names, reason)
        return self.end_stage(reading, f"the fixed schedule is over at {done}")
