"""The stages of a run: gives readings to the rule, and carries out its decisions on model and optimizer."""

from __future__ import annotations

import copy
import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers.trainer_utils import IntervalStrategy

from ecsfusion.controller.decision import Decision
from ecsfusion.controller.probe import Probe
from ecsfusion.controller.reading import Reading
from ecsfusion.evaluation.measurement import Measurement
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.model.configuration import FusionConfig
from ecsfusion.reporting.probe_line import probe_line
from ecsfusion.training.run import Run
from ecsfusion.training.sharding import read_weights, reshard

if TYPE_CHECKING:
    from ecsfusion.modeling import FusionForClassification

UNIMODAL_FOLDER = "unimodal"
"""The folder in the output folder that holds the peak of stage 1, and the name of its branch on the Hub."""
INITIAL_FOLDER = "initial"
"""The folder that holds the weights from before training, if a modality may go back to them."""


class Stages:
    """Gives readings to the rule, carries out its decisions, and changes from stage 1 to stage 2.

    Args:
        run: the trainer.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._kept_step: int | None = None
        """The step of the weights in the folder of the peak of stage 1."""
        self._fresh_state: dict[torch.Tensor, Any] = {}
        self._fresh_rates: list[float] = []
        self._trainable: frozenset[str] = frozenset()
        """The modalities of which at least one weight can train."""

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Set model, rule and strategy as the record says, which is new or from a checkpoint.

        Args:
            optimizer: the optimizer, which has just been made.
        """
        run, record = self._run, self._run.record
        # Most optimizers start without a state, but Adagrad starts with sums.
        self._fresh_state = {p: copy.deepcopy(state) for p, state in optimizer.state.items()}
        self._fresh_rates = [group["lr"] for group in optimizer.param_groups]
        self._kept_step = None
        self._trainable = trainable_modalities(run.model, optimizer)
        _check_processes(run)
        _check_stage(run)
        rule, strategy = run.plan.rule, run.plan.strategy
        if record.strategy:
            strategy.load_state_dict(record.strategy)
        if rule is not None and record.rule:
            rule.load_state_dict(record.rule)
        elif rule is not None and record.stage == "unimodal":
            record.training = [*self._able(rule.initial_training)]
        record.training = record.training or list(run.model.modalities)
        self._set_stage()

    def keep_initial_weights(self) -> None:
        """Save the weights from before training, if a modality may go back to them."""
        run = self._run
        if run.plan.keeps_initial_weights(run.record.stage) and run.state.global_step == 0:
            run.save_folder(INITIAL_FOLDER)

    def folders_in_use(self) -> list[str]:
        """The folders of weights that a checkpoint saved now refers to."""
        record = self._run.record
        is_in_use = {
            UNIMODAL_FOLDER: record.peak_step is not None,
            INITIAL_FOLDER: self._run.plan.keeps_initial_weights(record.stage),
        }
        return [name for name, in_use in is_in_use.items() if in_use]

    # ---- before a step ----

    def prepare_step(self) -> None:
        """Carry out the decision that followed the last evaluation."""
        record, model = self._run.record, self._run.model
        reshard(model)
        if record.pending is not None:
            self._carry_out(record.pending)
        if set(model.active) != set(record.training):
            model.set_active(record.training)

    def _carry_out(self, decision: Decision) -> None:
        record = self._run.record
        if set(decision.reset) == set(self._run.model.modalities):
            # The empty prefix means all weights, also those of the fused head.
            self._reset("")
        else:
            for name in decision.reset:
                self._reset(f"encoders.{name}.", f"heads.{name}.")
        if decision.ends_stage:
            if decision.restore is not None:
                self._restore_peak(decision.restore)
            self._begin_joint_stage()
        else:
            record.training = list(decision.training)
            self._set_stage()
        record.pending = None

    def _reset(self, *prefixes: str) -> None:
        """Put the weights and batch statistics with these prefixes, and their optimizer state, back to the start."""
        optimizer = self._run.optimizer
        weights = self._run.model.state_dict(keep_vars=True)
        weights = {key: value for key, value in weights.items() if key.startswith(prefixes)}
        read_weights(os.path.join(self._run.args.output_dir, INITIAL_FOLDER), weights)
        for value in weights.values():
            optimizer.state.pop(value, None)
            if value in self._fresh_state:
                optimizer.state[value] = copy.deepcopy(self._fresh_state[value])

    def _restore_peak(self, step: int) -> None:
        folder = os.path.join(self._run.args.output_dir, UNIMODAL_FOLDER)
        saved_step = FusionConfig.from_pretrained(folder).step
        if saved_step != step:
            raise ValueError(
                f"stage 1's peak is at step {step}, but {folder} holds step {saved_step}: another run wrote there. "
                "Train again in an empty output_dir."
            )
        read_weights(folder, self._run.model.state_dict(keep_vars=True))

    def _begin_joint_stage(self) -> None:
        run, record = self._run, self._run.record
        record.stage, record.stage_start = "joint", run.state.global_step
        record.training = list(run.model.modalities)
        self._set_stage()
        run.begin_stage()
        run.optimizer.state.clear()
        run.optimizer.state.update({p: copy.deepcopy(state) for p, state in self._fresh_state.items()})
        # The best model of the run is one of stage 2. The peak of stage 1 has its own folder.
        run.state.best_metric = run.state.best_global_step = run.state.best_model_checkpoint = None
        run.restart_schedule(self._fresh_rates)

    def _set_stage(self) -> None:
        """Set the stage of the model, and whether its fused head trains."""
        rule, stage = self._run.plan.rule, self._run.record.stage
        self._run.model.set_stage(stage, stage == "joint" or (rule is not None and rule.trains_fused_head))

    # ---- after a step ----

    def must_probe(self) -> bool:
        """Whether stage 1 must end at this step, so that an evaluation is needed in any case."""
        args, state, rule = self._run.args, self._run.state, self._run.plan.rule
        if rule is None or self._run.record.stage != "unimodal":
            return False
        last = math.ceil(rule.latest_end * state.max_steps - 1e-9)
        # At the end of an epoch there is an evaluation anyway, unless `eval_delay` puts it off.
        epoch = float(state.epoch or 0.0)
        is_due = args.eval_strategy == IntervalStrategy.EPOCH and args.eval_delay <= epoch
        end_of_epoch = is_due and epoch.is_integer()
        return state.global_step == last and not end_of_epoch

    # ---- around a probe ----

    def prepare_probe(self) -> None:
        """In stage 1, set the fused head to the sum of the unimodal heads, unless it trains."""
        reshard(self._run.model)
        if self._run.record.stage == "unimodal" and not self._run.model.trains_fused_head:
            self._run.model.start_fusion_from_heads()

    def read(self, measurement: Measurement) -> Probe:
        """Let the rule decide on a measurement of the probe set, and remember it in the history."""
        run, record = self._run, self._run.record
        state, rule = run.state, run.plan.rule
        reading = Reading(
            step=state.global_step,
            epoch=float(state.epoch or 0.0),
            progress=state.global_step / max(state.max_steps, 1),
            stage=record.stage,
            training=tuple(record.training),
            measurement=measurement,
        )
        trained_fused_head = record.stage == "joint" or (rule is not None and rule.trains_fused_head)
        if rule is None:
            decision = Decision(run.model.modalities, "all modalities train jointly")
        else:
            decision = rule.decide(reading)
            record.rule = rule.state_dict()
        able = self._able(decision.training)
        if able != decision.training:
            frozen = " and ".join(decision.training)
            reason = f"{decision.reason} (but {frozen} alone cannot train, as all of its weights are frozen: all go on)"
            decision = replace(decision, training=able, reason=reason)
        changes_who_trains = bool(
            decision.ends_stage or decision.reset or set(decision.training) != set(record.training)
        )
        ends_scouting = (
            record.stage == "unimodal"
            and trained_fused_head
            and rule is not None
            and not rule.trains_fused_head
        )
        if record.stage == "unimodal":
            record.pending = decision
            if decision.peak or (decision.ends_stage and decision.restore is None):
                record.peak_step = state.global_step
        elif changes_who_trains:
            record.pending = decision
        probe = Probe(reading, decision, trained_fused_head)
        record.history.append(probe)
        if run.is_world_process_zero():
            tqdm.write(probe_line(probe, run.model.modalities))
            if changes_who_trains or ends_scouting:
                tqdm.write(f"    -> {decision.reason}")
        return probe

    def _able(self, training: tuple[str, ...]) -> tuple[str, ...]:
        """These modalities if one of them can train, otherwise all: a step in stage 1 needs a gradient."""
        stage_one = self._run.record.stage == "unimodal"
        return self._run.model.modalities if stage_one and not self._trainable & set(training) else training

    def keep_peak(self, evaluation: Evaluation) -> None:
        """In stage 1, save the weights that the rule marked. If there is no stage 2, end training with them."""
        run, record, step = self._run, self._run.record, self._run.state.global_step
        if record.stage != "unimodal":
            return
        if record.peak_step == step != self._kept_step:
            self._kept_step = step
            config = run.model.config
            config.step, config.readout = step, evaluation.fit_readout(run.model.problem_type).to_dict()
            run.save_folder(UNIMODAL_FOLDER)
            config.step = config.readout = None
        pending = record.pending
        if run.plan.stages == "unimodal" and pending is not None and pending.ends_stage:
            if pending.restore is not None:
                self._restore_peak(pending.restore)
            record.pending = None
            run.control.should_training_stop = True


def trainable_modalities(
    model: FusionForClassification, optimizer: torch.optim.Optimizer | None = None
) -> frozenset[str]:
    """The modalities that have a weight that the user has not frozen, and that the optimizer holds, if it is given."""
    held = weights_of(optimizer)
    return frozenset(
        name
        for name in model.modalities
        if any(
            (p.requires_grad or model.is_held(key)) and (held is None or id(p) in held)
            for key, p in model.modality_parameters(name).items()
        )
    )


def check_trainable(
    model: FusionForClassification, first_stage: str, optimizer: torch.optim.Optimizer | None = None
) -> str | None:
    """Check that something trains in the first stage.

    Args:
        model: the model.
        first_stage: "unimodal" or "joint".
        optimizer: that of the user, who may have made it from some of the weights, or from those of another model.

    Returns:
        A sentence on the weights that are frozen as whole modalities, or that the optimizer lacks; None if there are
        none.

    Raises:
        ValueError: no modality can train in stage 1, or nothing at all.
    """
    frozen = [name for name in model.modalities if name not in trainable_modalities(model)]
    if len(frozen) == len(model.modalities) and first_stage == "unimodal":
        raise ValueError(
            f"all weights of {' and '.join(frozen)} are frozen, heads included, so that stage 1 has nothing to train; "
            "set requires_grad of the heads, or train the fused head alone with strategy='joint'."
        )
    fused = {f"fusion.{key}": p for key, p in model.fusion.named_parameters() if p.requires_grad}
    if len(frozen) == len(model.modalities) and not fused:
        raise ValueError("all weights of the model are frozen; set requires_grad of those that shall train.")
    sentences = []
    if frozen:
        sentences.append(
            f"All weights of {' and '.join(frozen)} are frozen, the head included: they do not change in this run"
            + (", and no decision lets them train alone." if first_stage == "unimodal" else ".")
        )
    held = weights_of(optimizer)
    if held is not None:
        every = fused | {
            key: p
            for name in model.modalities
            for key, p in model.modality_parameters(name).items()
            if p.requires_grad or model.is_held(key)
        }
        lacking = [key for key, p in every.items() if id(p) not in held]
        if len(lacking) == len(every) or (
            first_stage == "unimodal" and not trainable_modalities(model, optimizer)
        ):
            what = "no weight of the model" if len(lacking) == len(every) else "no weight of a modality"
            raise ValueError(
                f"the optimizer in `optimizers` holds {what} that could train; make it from the weights of this model, "
                "after all adapters are in it: torch.optim.AdamW(model.parameters(), lr=...)."
            )
        if lacking:
            sentences.append(
                f"The optimizer in `optimizers` lacks {len(lacking)} of {len(every)} weights that could train, first "
                f"{lacking[0]!r}: they do not change in this run."
            )
    return " ".join(sentences) or None


def weights_of(optimizer: torch.optim.Optimizer | None) -> set[int] | None:
    """The ids of the parameters of an optimizer; None where there is none."""
    return None if optimizer is None else {id(p) for group in optimizer.param_groups for p in group["params"]}


def _check_processes(run: Run) -> None:
    record, processes = run.record, run.args.world_size
    if record.processes not in (0, processes):
        raise ValueError(
            f"the checkpoint was written by {record.processes} processes and this run has {processes}: batches and "
            f"random numbers would be different. Resume with {record.processes}, or start anew."
        )
    record.processes = processes


def _check_stage(run: Run) -> None:
    """Check that the stage of the checkpoint, if the run resumes, is one of the present strategy."""
    record, name = run.record, run.plan.strategy.label
    if run.state.global_step == 0:
        return
    if record.stage == "unimodal" and run.plan.first_stage == "joint":
        other = f"was saved in stage 1, and the strategy {name!r} has none, so that the fused head would never train"
    elif record.stage == "joint" and record.stage_start == 0 and run.plan.first_stage == "unimodal":
        other = f"is of a run without a stage 1, which the strategy {name!r} begins with"
    else:
        return
    raise ValueError(
        f"the checkpoint to resume from {other}. Resume with the strategy of that run, or start anew from its weights: "
        "FusionForClassification.from_pretrained(folder)."
    )
