"""The base class of all rules, and the context of a run that a rule decides for."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from ecsfusion.controller.decision import Decision, PauseThreshold
from ecsfusion.controller.reading import Reading, check_reading
from ecsfusion.model.names import RESERVED_NAMES

BUDGET_IS_USED = "of the budget is used"
"""What the reason of a decision says that ends stage 1 because its share of the budget is used up."""


@dataclass(frozen=True)
class RunContext:
    """What a rule must know of the run that it decides for.

    Attributes:
        unimodal_share: the share of the training budget that stage 1 may use, if the arguments of the run set one;
            None to leave it to the rule.
        ends_early: whether the rule may end stage 1 before that share is used. If not, the share is the exact length.
        joint_follows: whether there is a stage 2. If not, training ends with stage 1.
        joint_pausing: whether the rule may pause modalities in stage 2 as well.
    """

    unimodal_share: float | None = None
    ends_early: bool = True
    joint_follows: bool = True
    joint_pausing: bool = False


class Rule:
    """Decides which modalities train, and when stage 1 ends.

    To write a rule, derive a class that defines `decide_unimodal`::

        class AudioFirst(Rule):
            initial_training = ("audio",)

            def decide_unimodal(self, reading):
                if reading.accuracy["audio"] < 0.5:
                    return self.train(reading, ["audio"], "audio trains alone until its accuracy is 0.5")
                return self.end_stage(reading, "audio's accuracy has reached 0.5")

    and give the class, or an instance, to `FusionTrainer(strategy=...)`. What the rule must remember belongs in
    `self.state`, a dictionary of JSON values (lists, not tuples; string keys) that is saved with every checkpoint.

    This class checks every reading, and ends stage 1 at the first reading where the share `latest_end` of the budget is
    used. In stage 2 all modalities train, unless the rule also defines `decide_joint` and `joint_pausing` is True.

    Args:
        modalities: at least two different names.
        max_unimodal_share: the largest share of the training budget that stage 1 may use, in (0, 1].

    Raises:
        TypeError: names that are not strings.
        ValueError: fewer than two names, equal or reserved names, or a share that is out of range.
    """

    name: ClassVar[str] = ""
    resets: ClassVar[bool] = False
    """Whether the rule may put modalities back to their initial weights; then the run keeps these weights."""
    reads_heads: ClassVar[bool] = True
    """Whether the rule takes what the heads of the modalities show; if not, embeddings are clustered at every probe, as
    published, and `Reading.plugin` has the values before the correction of bias."""
    only_two: ClassVar[str] = ""
    """Why the rule is for two modalities only, in a few words; empty if it is not."""
    context: RunContext = RunContext()
    """The run that the rule decides for; see `in_context`."""

    def __init__(self, modalities: Sequence[str], *, max_unimodal_share: float = 0.5) -> None:
        if not isinstance(modalities, Iterable):
            raise TypeError(f"modalities must be at least two different names, got {modalities!r}.")
        names = (modalities,) if isinstance(modalities, str) else tuple(modalities)
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"modalities must be names, that is strings, got {list(names)}.")
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"modalities must be at least two different names, got {list(names)}.")
        reserved = [name for name in names if name in RESERVED_NAMES]
        if reserved:
            raise ValueError(f"modalities holds {reserved[0]!r}, a reserved name; rename the modality.")
        if not isinstance(max_unimodal_share, (int, float, numbers.Real)) or not 0 < max_unimodal_share <= 1:
            raise ValueError(f"max_unimodal_share must be in (0, 1], got {max_unimodal_share!r}.")
        self.modalities = names
        self.max_unimodal_share = max_unimodal_share
        self.state: dict[str, Any] = {}
        self.peak_step: int | None = None

    def in_context(self, context: RunContext) -> Self:
        """Copy this rule, with its present state, to decide for this run.

        Raises:
            ValueError: see `check_context`.
        """
        rule = copy.deepcopy(self)
        rule.context = context
        if context.unimodal_share is not None:
            rule.max_unimodal_share = context.unimodal_share
        rule.check_context()
        return rule

    def check_context(self) -> None:
        """Check that the rule can decide for its run.

        Raises:
            ValueError: `joint_pausing` is True, and the rule does not define `decide_joint`. A rule may check more.
        """
        if self.context.joint_pausing and type(self).decide_joint is Rule.decide_joint:
            raise ValueError(
                f"joint_pausing is True, but the rule {self.label!r} has no decide_joint; use the rule 'peak-synergy' "
                "or another rule that defines it."
            )

    @property
    def label(self) -> str:
        """The name of the rule, or the name of its class if it has none."""
        return self.name or type(self).__name__

    @property
    def initial_training(self) -> tuple[str, ...]:
        """The modalities that train before the first reading."""
        return self.modalities

    @property
    def latest_end(self) -> float:
        """The share of the training budget at which stage 1 ends at the latest; it may change in a run."""
        return self.max_unimodal_share

    @property
    def trains_fused_head(self) -> bool:
        """Whether the fused head trains now, in stage 1. If it does, the loss is that of stage 2.

        Pictures and texts call such a part of stage 1 "scouting".
        """
        return False

    @property
    def asks_for_dependence(self) -> bool:
        """Whether the rule needs `Reading.dependence` at the next reading.

        Readouts of the embeddings are fitted for it, which takes many times as long as reading the heads. A rule that
        reads it without having asked gets an error; at step 0 it is 0. In stage 2 a rule is asked where it may pause
        modalities there (`joint_pausing`).
        """
        return False

    @property
    def pauses_at(self) -> PauseThreshold | None:
        """The lead at which the rule pauses a modality, so that a run can warn of a late pause.

        It is None if the rule pauses no modality because of its lead.
        """
        return None

    @property
    def excluded_from_readout(self) -> tuple[str, ...]:
        """Modalities whose own heads get no weight in the readout in rows that have other modalities.

        They are those that a rule paused so that the fused head does not rely on them alone.
        """
        return ()

    def decide(self, reading: Reading) -> Decision:
        """Decide from one reading.

        Raises:
            ValueError: the reading lacks a value, or a value is not a finite number. Then the embeddings or the weights
                are broken, and further training would hide that.
        """
        check_reading(reading, self.modalities)
        if reading.stage == "joint":
            if not self.context.joint_pausing:
                return Decision(self.modalities, "all modalities train jointly")
            return self._only_training(self.decide_joint(reading))
        decision = self.decide_unimodal(reading)
        is_used = reading.progress >= self.latest_end - 1e-9
        if is_used and not decision.ends_stage:
            used = f"{reading.progress:.0%} {BUDGET_IS_USED} and stage 1 may use {self.latest_end:.0%}"
            return self.end_stage(reading, used)
        if decision.ends_stage and not is_used and not self.context.ends_early:
            why = decision.reason.removeprefix("stage 1 ends: ").rsplit("; ", 1)[0]
            return replace(
                decision,
                training=reading.training,
                reason=f"stage 1 goes on, for its length is given: otherwise it would end, {why}",
                ends_stage=False,
                restore=None,
                peak=self.peak_step == reading.step,
                overdue=True,
            )
        return decision

    def decide_unimodal(self, reading: Reading) -> Decision:
        """Decide in stage 1, from a reading that was checked. Every rule defines this method."""
        raise TypeError(f"{type(self).__name__} must define decide_unimodal(reading).")

    def decide_joint(self, reading: Reading) -> Decision:
        """Decide in stage 2, where only `training` and `reason` have an effect. By default no modality is paused."""
        return Decision(self.modalities, "all modalities train jointly")

    def _only_training(self, decision: Decision) -> Decision:
        if decision.ends_stage or decision.reset:
            raise ValueError(
                f"{type(self).__name__}.decide_joint ends a stage or resets a modality, which stage 2 cannot do; "
                "let it decide only which modalities train."
            )
        return decision

    def mark_peak(self, reading: Reading) -> None:
        """Mark the weights of this reading as those from which `end_stage` starts stage 2."""
        self.peak_step = reading.step

    def train(
        self, reading: Reading, modalities: Iterable[str], reason: str, reset: Sequence[str] = ()
    ) -> Decision:
        """Let stage 1 go on with these modalities.

        Args:
            reading: the present reading.
            modalities: those that train from now on.
            reason: one sentence with the numbers.
            reset: modalities that go back to their initial weights. Then the marked peak is forgotten, because it
                holds the weights from before the reset.

        Raises:
            ValueError: `reset` is given although the class does not set `resets`, or `modalities` is empty or names
                another modality.
        """
        if reset and not self.resets:
            raise ValueError(f"{type(self).__name__} resets {list(reset)}: set resets = True on the class.")
        if reset:
            self.peak_step = None
        peak = self.peak_step == reading.step
        return Decision(
            self.ordered(modalities), reason, peak=peak, reset=self.ordered(reset) if reset else ()
        )

    def end_stage(self, reading: Reading, why: str) -> Decision:
        """End stage 1. Stage 2 starts from the marked peak, or from the present weights if no peak is marked."""
        restore = None if self.peak_step == reading.step else self.peak_step
        start = "the present weights" if restore is None else f"the weights of step {restore}"
        then = f"stage 2 starts from {start}" if self.context.joint_follows else f"the model keeps {start}"
        reason = f"stage 1 ends: {why}; {then}"
        return Decision(self.modalities, reason, ends_stage=True, restore=restore, peak=restore is None)

    def ordered(self, names: Iterable[str]) -> tuple[str, ...]:
        """Sort modalities in the order of `self.modalities`.

        Raises:
            ValueError: no name, or a name that is not one of the modalities.
        """
        chosen = set(names)
        if not chosen or not chosen <= set(self.modalities):
            raise ValueError(f"modalities must be some of {list(self.modalities)}, got {sorted(chosen)}.")
        return tuple(name for name in self.modalities if name in chosen)

    def state_dict(self) -> dict[str, Any]:
        """Everything the rule remembers, as JSON values."""
        return {
            "rule": self.label,
            "modalities": list(self.modalities),
            "peak_step": self.peak_step,
            "state": copy.deepcopy(self.state),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state is that of another rule, or of other modalities.
        """
        present = self.state_dict()
        for key in ("rule", "modalities"):
            if state.get(key) != present[key]:
                raise ValueError(
                    f"the saved controller has {key} {state.get(key)!r}, this run has {present[key]!r}; resume with "
                    "the strategy, its options and the modalities of that run, or start again in another output_dir."
                )
        self.peak_step = state["peak_step"]
        self.state = copy.deepcopy(state["state"])
