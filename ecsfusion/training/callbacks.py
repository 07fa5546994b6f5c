"""The controller inside a training loop: readings in, decisions out, and what a person sees of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState, ProgressCallback
from transformers.trainer_utils import IntervalStrategy

from ecsfusion.controller import Decision, Reading, Rule
from ecsfusion.reporting.trajectory import phase
from ecsfusion.strategies import Strategy
from ecsfusion.training.record import StageRecord, plain, record_of


class ControllerCallback(TrainerCallback, ExportableState):
    """Turns every evaluation of the probe set into a reading for the rule, and remembers what it decided.

    The trainer binds the rule (`bind`) and carries out `record.pending`. The Trainer saves and restores
    `record` with its checkpoints.
    """

    def __init__(self) -> None:
        self.record = StageRecord()
        self.rule: Rule | None = None
        self.strategy: Strategy | None = None
        self.modalities: tuple[str, ...] = ()
        self.metric_prefix = "eval"
        self.in_training = False

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps (`ExportableState`)."""
        return {"args": {}, "attributes": {"saved_record": self.saved_record}}

    @property
    def saved_record(self) -> dict[str, Any]:
        """The record as plain JSON, with the number of its format; setting it restores the record."""
        return plain(self.record)

    @saved_record.setter
    def saved_record(self, values: dict[str, Any]) -> None:
        self.record = record_of(values)

    def bind(self, rule: Rule, strategy: Strategy, modalities: Sequence[str], metric_prefix: str) -> None:
        """Give the callback its rule, which takes up the state of a restored record, and the strategy."""
        self.strategy = strategy
        self.rule, self.modalities, self.metric_prefix = rule, tuple(modalities), metric_prefix
        if self.record.rule:
            rule.load_state_dict(self.record.rule)
        elif self.record.stage == "unimodal":
            self.record.training = list(rule.initial_training)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.in_training = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.in_training = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe where stage 1 must end, however rarely the arguments ask for an evaluation."""
        if self.strategy is not None:
            self.strategy.after_step(kwargs["model"])
        if self.rule is None or self.record.stage != "unimodal":
            return
        last = math.ceil(self.rule.latest_end * state.max_steps - 1e-9)
        end_of_epoch = args.eval_strategy == IntervalStrategy.EPOCH and float(state.epoch or 0.0).is_integer()
        if state.global_step == last and not end_of_epoch:  # the end of an epoch is probed anyway
            control.should_evaluate = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        prefix = self.metric_prefix
        if not self.in_training or self.rule is None or f"{prefix}_synergy" not in metrics:
            return
        record = self.record
        reading = reading_from_metrics(metrics, prefix, self.modalities, state, record)
        fused = record.stage == "joint" or self.rule.fuses
        decision = self.rule.decide(reading)
        record.rule = self.rule.state_dict()
        changed = bool(
            decision.ends_stage or decision.reset or set(decision.training) != set(record.training)
        )
        scouted = record.stage == "unimodal" and fused and not self.rule.fuses
        if record.stage == "unimodal":
            record.pending = asdict(decision)
            if decision.peak or (decision.ends_stage and decision.restore is None):
                record.peak_step = state.global_step
        elif changed:
            record.pending = asdict(decision)
        calibrated = metrics.get(f"{prefix}_{_score_name(metrics, prefix)}_calibrated")
        record.history.append(probe_entry(reading, decision, calibrated, fused))
        if state.is_world_process_zero:
            tqdm.write(probe_line(record.history[-1], self.modalities))
            if changed or scouted:
                tqdm.write(f"    -> {decision.reason}")


class FusionProgressCallback(ProgressCallback):
    """The Trainer's progress bars, which say the stage, who is paused, and when a probe is taken.

    Losses go to the bar; probes are printed by the controller as one line.
    """

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.is_world_process_zero:
            self.training_bar.set_description_str(stage_name(model), refresh=False)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)
        bar = self.prediction_bar
        if bar is not None:  # the last batch is followed by the decomposition, which has no steps to count
            is_last = bar.n >= (bar.total or 0)
            bar.set_description_str("probe: decomposing" if is_last else "probe: embedding")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.3f}")


def stage_name(model: Any) -> str:
    """What trains now, for a progress bar: "stage 1, audio paused"."""
    paused = [name for name in model.modalities if name not in model.active]
    stage = "stage 1" if model.stage == "unimodal" else "stage 2"
    if model.stage == "unimodal" and model.trains_fused_head:
        stage = f"{stage}, scouting"
    return f"{stage}, {' and '.join(paused)} paused" if paused else stage


def reading_from_metrics(
    metrics: dict[str, float],
    prefix: str,
    modalities: Sequence[str],
    state: TrainerState,
    record: StageRecord,
) -> Reading:
    """The rule's view of one evaluation."""

    def by_modality(name: str) -> dict[str, float]:
        return {m: metrics[f"{prefix}_{name}_{m}"] for m in modalities}

    score = _score_name(metrics, prefix)

    return Reading(
        step=state.global_step,
        epoch=float(state.epoch or 0.0),
        progress=state.global_step / max(state.max_steps, 1),
        stage=record.stage,
        training=tuple(record.training),
        redundancy=metrics[f"{prefix}_redundancy"],
        unique=by_modality("unique"),
        synergy=metrics[f"{prefix}_synergy"],
        mutual_information=by_modality("information"),
        conditional_mutual_information=metrics[f"{prefix}_conditional_mutual_information"],
        floor={
            **by_modality("unique_floor"),
            "redundancy": metrics[f"{prefix}_redundancy_floor"],
            "synergy": metrics[f"{prefix}_synergy_floor"],
        },
        accuracy={**by_modality(score), "fused": metrics[f"{prefix}_{score}"]},
        raw={
            "redundancy": metrics[f"{prefix}_plugin_redundancy"],
            "unique": by_modality("plugin_unique"),
            "synergy": metrics[f"{prefix}_plugin_synergy"],
        },
    )


def _score_name(metrics: dict[str, float], prefix: str) -> str:
    """What the heads are judged by: the accuracy, or in regression the share of explained variance."""
    return "r2" if f"{prefix}_r2" in metrics else "accuracy"


def probe_entry(
    reading: Reading, decision: Decision, calibrated: float | None, fused_trains: bool
) -> dict[str, Any]:
    """One probe as a plain dictionary, for the trajectory picture, the card and the state."""
    over = decision.ends_stage and reading.stage == "unimodal"
    start = reading.step if decision.restore is None else decision.restore
    if set(decision.reset) == set(decision.training):
        start = 0
    return {
        **reading_values(reading),
        "fused_trains": fused_trains,
        "calibrated": calibrated,
        "reason": decision.reason,
        "peak": decision.peak,
        "overdue": decision.overdue,
        "reset": list(decision.reset),
        "restored": start if over else None,
    }


def reading_values(reading: Reading) -> dict[str, Any]:
    """What was read, as plain values."""
    return {
        "step": reading.step,
        "epoch": reading.epoch,
        "stage": reading.stage,
        "training": list(reading.training),
        "redundancy": reading.redundancy,
        "unique": dict(reading.unique),
        "synergy": reading.synergy,
        "information": dict(reading.mutual_information),
        "conditional_mutual_information": reading.conditional_mutual_information,
        "floor": dict(reading.floor),
        "accuracy": dict(reading.accuracy),
    }


def probe_line(entry: dict[str, Any], modalities: Sequence[str]) -> str:
    """One probe as one readable line."""
    paused = [m for m in modalities if m not in entry["training"]]
    unique = "  ".join(f"{m} {entry['unique'][m]:.2f}" for m in modalities)
    accuracy = "  ".join(f"{m} {100 * entry['accuracy'][m]:.1f}" for m in modalities)
    calibrated = entry["calibrated"]
    return (
        f"step {entry['step']:>5} | {phase(entry):<8} | training {', '.join(entry['training'])}"
        f"{' | paused ' + ', '.join(paused) if paused else ''}"
        f" | R {entry['redundancy']:.2f}  U {unique}  S {entry['synergy']:.2f} bits"
        f" | accuracy {accuracy}  fused {100 * entry['accuracy']['fused']:.1f}"
        f"{'' if calibrated is None else f'  calibrated {100 * calibrated:.1f}'} %"
    )
