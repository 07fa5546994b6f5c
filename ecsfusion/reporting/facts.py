"""The facts of the model card, read from a trainer that has trained and evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ecsfusion.controller.probe import Probe
from ecsfusion.evaluation.measurement import Information
from ecsfusion.model.encoders import main_input
from ecsfusion.model.own_modules import OWN_MODULE
from ecsfusion.reporting.card import CardFacts, EncoderFacts
from ecsfusion.reporting.contributions import evaluated_contributions
from ecsfusion.reporting.heads import score_shares
from ecsfusion.reporting.privacy import hub_name
from ecsfusion.reporting.run import ReportedRun, groups_by_split, rows_by_split

KINDS = {"pixel_values": "image", "input_values": "audio", "input_features": "audio", "input_ids": "text"}
"""The kind of an encoder's input, by the name of its first argument."""
HYPERPARAMETERS = (
    "strategy",
    "strategy_options",
    "max_unimodal_share",
    "unimodal_epochs",
    "unimodal_lr_scheduler_type",
    "joint_pausing",
    "auxiliary_weight",
    "keep_best_heads",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "head_learning_rate",
    "modality_learning_rates",
    "weight_decay",
    "modality_weight_decays",
    "optim",
    "lr_scheduler_type",
    "warmup_steps",
    "label_smoothing_factor",
    "group_column_name",
    "bf16",
    "fp16",
    "seed",
)
"""The training arguments that the card lists."""


def run_facts(
    run: ReportedRun,
    *,
    title: str,
    dataset: str,
    dataset_hub_name: str | Sequence[str] | None = None,
    dataset_names: Sequence[str] = (),
    dataset_args: Sequence[str] = (),
    tasks: Sequence[str] = (),
    languages: Sequence[str] = (),
    finetuned_from: Sequence[str] = (),
    repo_id: str | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    peak_folder: str | None = None,
    trajectory: str | None = None,
    reliability: str | None = None,
    contributions_picture: str | None = None,
    comparison: Mapping[str, float] | None = None,
) -> CardFacts:
    """Collect the facts of the model card.

    Args:
        run: the trainer, which has trained and evaluated.
        title: as in `CardFacts`, like all further arguments.
        dataset: plain name of the data.
        dataset_hub_name: name or names of the data on the Hub.
        dataset_names: plain names of several data sets.
        dataset_args: their configurations.
        tasks: the tasks of the Hub.
        languages: codes of languages.
        finetuned_from: names on the Hub of models that this one started from, beside those of the encoders.
        repo_id: name of the model on the Hub.
        license: identifier of the license of the weights.
        tags: more tags for the header.
        peak_folder: folder that holds the peak of stage 1.
        trajectory: file name of the picture of the run.
        reliability: file name of the picture of confidence and accuracy.
        contributions_picture: file name of the picture of the contributions.
        comparison: accuracy of other schedules on the last split.

    Raises:
        ValueError: nothing has been evaluated yet.
    """
    if not run.measurements:
        raise ValueError("the trainer has evaluated nothing yet; call train() or evaluate() before the card.")
    model, record = run.model, run.record
    last = list(run.measurements.values())[-1]
    return CardFacts(
        title=title,
        encoders={name: _encoder_facts(run, name) for name in model.modalities},
        accuracy={split: score_shares(each) for split, each in run.measurements.items()},
        dataset=dataset,
        rows=rows_by_split(run),
        groups=groups_by_split(run),
        num_classes=model.config.num_labels,
        dataset_hub_name=dataset_hub_name,
        dataset_names=dataset_names,
        dataset_args=dataset_args,
        tasks=tasks,
        languages=languages,
        finetuned_from=finetuned_from,
        repo_id=repo_id,
        peak_folder=peak_folder,
        stages=run.plan.stages,
        phases=tuple(dict.fromkeys(probe.phase for probe in record.history)),
        num_parameters=model.num_parameters(),
        best_heads={name: int(record.best_heads[name][0]) for name in model.best_heads},
        excluded_from_readout=() if run.rule is None else run.rule.excluded_from_readout,
        score=last.score,
        calibration_error=last.calibration_error,
        comparison=comparison or {},
        information=_information(run),
        contributions=evaluated_contributions(last),
        contributions_picture=contributions_picture,
        rule="" if run.rule is None else run.rule.label,
        decisions=decisions_of(record.history),
        warnings=[(warning["step"], warning["sentence"]) for warning in record.warnings],
        trajectory=trajectory,
        reliability=reliability,
        hyperparameters=_hyperparameters(run),
        license=license,
        tags=tags,
    )


def _encoder_facts(run: ReportedRun, name: str) -> EncoderFacts:
    encoder = run.model.encoders[name]
    source = run.model.sources.get(name)
    return EncoderFacts(
        # FSDP gives the modules that it shards a class of its own.
        type=type(encoder).__name__.removeprefix("FSDP"),
        parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        hub_name=hub_name(source),
        pretrained=source is not None,
        kind=KINDS.get(main_input(encoder) or ""),
        # After training no modality is paused.
        frozen=not any(parameter.requires_grad for parameter in encoder.parameters())
        and any(True for _ in encoder.parameters()),
        own=run.model.config.encoders[name].get("model_type") == OWN_MODULE,
    )


def _information(run: ReportedRun) -> dict[str, tuple[int, Information]]:
    """The step and the decomposition at the start of stage 2 and at the end of training."""
    moments: dict[str, tuple[int, Information]] = {}
    history = run.record.history
    start = next((probe.restored for probe in history if probe.restored is not None), None)
    for probe in history:
        if probe.step == start and probe.stage == "unimodal":
            moments["start of stage 2"] = (probe.step, probe.reading.information)
    measurement = run.measurements.get("validation")
    if measurement is not None and measurement.information is not None:
        step = run.state.global_step if run.loaded_best_step is None else run.loaded_best_step
        moments["end of training"] = (step, measurement.information)
    return moments


def decisions_of(history: Sequence[Probe]) -> list[tuple[int, str]]:
    """The step and reason of each decision that changed who trains, ended the scouting, or ended stage 1."""
    decisions = []
    for probe, following in zip_longest(history, history[1:]):
        if probe.stage != "unimodal":
            continue
        is_change = following is not None and (
            following.training != probe.training or following.phase != probe.phase
        )
        if probe.restored is not None or is_change:
            decisions.append((probe.step, probe.decision.reason))
    return decisions


def _hyperparameters(run: ReportedRun) -> dict[str, Any]:
    """The values of `HYPERPARAMETERS`; what the strategy decides is as the plan of the run has it."""
    strategy = run.plan.strategy
    resolved = {
        "strategy": strategy.label,
        "strategy_options": run.args.to_dict()["strategy_options"],
        "auxiliary_weight": run.plan.auxiliary_weight,
    }
    if run.rule is not None and strategy.label == run.rule.label:
        # The name of the rule stands for itself.
        options = resolved["strategy_options"] or {}
        resolved["strategy_options"] = {
            name: value for name, value in options.items() if name != "rule"
        } or None
    return {
        name: _plain(resolved[name] if name in resolved else getattr(run.args, name))
        for name in HYPERPARAMETERS
    }


def _plain(value: Any) -> Any:
    """The value of an enumeration; None, which the card leaves out, for options that are off (False, -1, empty)."""
    value = getattr(value, "value", value)
    return None if value is False or value in ({}, -1) else value
