"""What a finished run says of itself: its table of results and the facts of its model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ecsfusion.controller import Rule
from ecsfusion.model.encoders import main_input
from ecsfusion.model.names import FUSED
from ecsfusion.reporting.card import CALIBRATED, CardFacts, EncoderFacts, PIDFacts, compare_heads, hub_name
from ecsfusion.reporting.run import Run
from ecsfusion.reporting.trajectory import phase

# Input kinds of encoders by what their forward takes first.
KINDS = {"pixel_values": "image", "input_values": "audio", "input_features": "audio", "input_ids": "text"}
HYPERPARAMETERS = (
    "stages",
    "rule",
    "rule_options",
    "max_unimodal_share",
    "auxiliary_weight",
    "keep_best_heads",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "modality_learning_rates",
    "weight_decay",
    "modality_weight_decays",
    "optim",
    "lr_scheduler_type",
    "warmup_steps",
    "label_smoothing_factor",
    "bf16",
    "fp16",
    "seed",
)


def score_in(metrics: Mapping[str, float], prefix: str) -> str:
    """What the heads are judged by in the metrics of one evaluation: "accuracy", or "r2" in regression."""
    return "r2" if f"{prefix}_r2" in metrics else "accuracy"


def accuracies(metrics: Mapping[str, float], prefix: str, modalities: Sequence[str]) -> dict[str, float]:
    """Accuracy of every head and of their calibrated combination, from the metrics of one evaluation.

    In regression it is the share of the variance that they explain, 0 where they are worse than the mean.
    """
    score = score_in(metrics, prefix)
    scores = {
        **{name: metrics[f"{prefix}_{score}_{name}"] for name in modalities},
        FUSED: metrics[f"{prefix}_{score}"],
        CALIBRATED: metrics[f"{prefix}_{score}_calibrated"],
    }
    return {head: max(value, 0.0) for head, value in scores.items()}


def results_table(trainer: Run, comparison: Mapping[str, float] | None = None) -> str:
    """Accuracy of every head on every split evaluated after training, and a sentence on what fusion is worth.

    Args:
        trainer: has trained and evaluated.
        comparison: accuracy of the fused head of other schedules on the last split, by name.
    """
    modalities = trainer.model.modalities
    by_split = {
        split: accuracies(report["metrics"], report["prefix"], modalities)
        for split, report in trainer.reports.items()
    }
    labels = {name: f"{name} alone" for name in modalities}
    labels |= {FUSED: "fused head", CALIBRATED: "calibrated combination"}
    rows = {
        label: [f"{100 * heads[head]:.1f}" for heads in by_split.values()] for head, label in labels.items()
    }
    for schedule, accuracy in (comparison or {}).items():
        rows[f"{schedule}, fused head"] = [""] * (len(by_split) - 1) + [f"{100 * accuracy:.1f}"]
    score = {score_in(report["metrics"], report["prefix"]) for report in trainer.reports.values()}
    title = "explained variance in %" if score == {"r2"} else "accuracy in %"
    width = max(len(label) for label in (*rows, title))
    lines = [f"{title:<{width}}  " + "  ".join(f"{split:>10}" for split in by_split)]
    lines += [
        f"{label:<{width}}  " + "  ".join(f"{cell:>10}" for cell in cells) for label, cells in rows.items()
    ]
    counted = {} if score == {"r2"} else _rows(trainer)
    sentence = compare_heads(by_split, list(modalities), counted, last_only=True).replace("**", "")
    return "\n".join([*lines, "", sentence])


def run_facts(
    trainer: Run,
    *,
    title: str,
    dataset: str,
    dataset_hub_name: str | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    peak_folder: str | None = None,
    trajectory: str | None = None,
    reliability: str | None = None,
    comparison: Mapping[str, float] | None = None,
) -> CardFacts:
    """The facts of the model card, from a trainer that has trained and evaluated.

    Raises:
        ValueError: nothing has been evaluated yet.
    """
    if not trainer.reports:
        raise ValueError("the trainer has evaluated nothing yet; call train() or evaluate() before the card.")
    model, history = trainer.model, trainer.record.history
    last = list(trainer.reports)[-1]
    metrics = trainer.reports[last]["metrics"]
    prefix = trainer.reports[last]["prefix"]
    return CardFacts(
        title=title,
        encoders={name: _encoder_facts(trainer, name) for name in model.modalities},
        accuracy={
            split: accuracies(report["metrics"], report["prefix"], model.modalities)
            for split, report in trainer.reports.items()
        },
        dataset=dataset,
        rows=_rows(trainer),
        num_classes=model.config.num_labels,
        dataset_hub_name=dataset_hub_name,
        repo_id=repo_id,
        peak_folder=peak_folder,
        stages=trainer.args.stages,
        phases=tuple(dict.fromkeys(map(phase, history))),
        num_parameters=model.num_parameters(),
        best_heads={name: int(trainer.record.best_heads[name][0]) for name in model.best_heads},
        excluded_from_readout=()
        if trainer.controller.rule is None
        else trainer.controller.rule.excluded_from_readout,
        score=score_in(metrics, prefix),
        calibration_error={
            when: metrics[f"{prefix}_{name}"]
            for when, name in (("before", "calibration_error"), ("after", "calibration_error_calibrated"))
            if f"{prefix}_{name}" in metrics  # not in regression
        },
        comparison=comparison or {},
        pid=_pid_facts(trainer),
        rule=_rule_name(trainer.controller.rule),
        decisions=_decisions(history),
        warnings=[(found["step"], found["sentence"]) for found in trainer.record.warnings],
        trajectory=trajectory,
        reliability=reliability,
        hyperparameters={key: _plain(getattr(trainer.args, key)) for key in HYPERPARAMETERS},
        license=license,
        tags=tags,
    )


def _rule_name(rule: Rule | None) -> str:
    return "" if rule is None else rule.name or type(rule).__name__


def _encoder_facts(trainer: Run, name: str) -> EncoderFacts:
    encoder = trainer.model.encoders[name]
    source = trainer.model.sources.get(name)
    return EncoderFacts(
        type=type(encoder).__name__,
        parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        hub_name=hub_name(source),
        pretrained=source is not None,
        kind=KINDS.get(main_input(encoder) or ""),
    )


def _rows(trainer: Run) -> dict[str, int]:
    rows = {"train": len(trainer.train_dataset)} if hasattr(trainer.train_dataset, "__len__") else {}
    return rows | {split: report["rows"] for split, report in trainer.reports.items() if report["rows"]}


def _pid_facts(trainer: Run) -> dict[str, PIDFacts]:
    moments: dict[str, PIDFacts] = {}
    history = trainer.record.history
    start = next((entry["restored"] for entry in history if entry["restored"] is not None), None)
    for entry in history:
        if entry["step"] == start and entry["stage"] == "unimodal":
            moments["start of stage 2"] = PIDFacts(
                entry["redundancy"],
                entry["unique"],
                entry["synergy"],
                floor=entry["floor"],
                step=entry["step"],
            )
    report = trainer.reports.get("validation")
    if report is not None:
        values = report["pid"].to_dict()
        state = trainer.state
        best = state.best_global_step if trainer.args.load_best_model_at_end else None
        moments["end of training"] = PIDFacts(
            values["redundancy"],
            values["unique"],
            values["synergy"],
            floor=_by_atom(values["floor"]),
            interval=_by_atom(values["interval"]),
            step=best or state.global_step,
        )
    return moments


def _by_atom(values: Mapping[str, Any]) -> dict[str, Any]:
    flat = {"redundancy": values["redundancy"], "synergy": values["synergy"], **(values["unique"] or {})}
    return {name: value for name, value in flat.items() if value is not None}


def _decisions(history: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """The decisions that changed who trains, or ended the scouting, and the end of stage 1."""
    changes = []
    for entry, following in zip_longest(history, history[1:]):
        if entry["stage"] != "unimodal":
            continue
        over = entry["restored"] is not None
        changed = following is not None and (
            following["training"] != entry["training"] or phase(following) != phase(entry)
        )
        if over or changed:
            changes.append((entry["step"], entry["reason"]))
    return changes


def _plain(value: Any) -> Any:
    """Enumerations by their value; options that are off (False, -1, empty) are not worth a row."""
    value = getattr(value, "value", value)
    return None if value is False or value in ({}, -1) else value
