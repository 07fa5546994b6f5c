"""What a person wants to read when training is over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ecsfusion.reporting.run import Run
from ecsfusion.reporting.trajectory import phase


def ending(trainer: Run, metrics: Mapping[str, float]) -> str:
    """A few lines: how long the stages were, who was paused, which weights the model has, what it knows,
    and what the run warned of.

    Args:
        trainer: has trained.
        metrics: what `Trainer.train` returns; with `train_runtime`, `probe_seconds` and `probe_share`.
    """
    record, state = trainer.record, trainer.state
    modalities = trainer.model.modalities
    lines = ["", f"Training is over: {state.global_step} steps in {metrics['train_runtime']:.0f} s."]
    unimodal = [entry for entry in record.history if entry["stage"] == "unimodal"]
    if unimodal:
        end = record.stage_start if record.stage == "joint" else state.global_step
        scouted = max((entry["step"] for entry in unimodal if phase(entry) == "scouting"), default=0)
        scouting = f", up to {scouted} with the fused head to scout" if scouted else ""
        paused = _paused(unimodal, modalities)
        lines.append(f"  stage 1, steps 1 to {end}{scouting}{paused}: {unimodal[-1]['reason']}")
    joint = [entry for entry in record.history if entry["stage"] == "joint"]
    if joint:
        lines.append(
            f"  stage 2, steps {record.stage_start + 1} to {state.global_step}{_paused(joint, modalities)}"
        )
    if trainer.args.load_best_model_at_end and state.best_global_step is not None:
        lines.append(f"  the model has its best weights, of step {state.best_global_step}")
    if len(trainer.model.best_heads):
        steps = [f"{name} of step {int(record.best_heads[name][0])}" for name in trainer.model.best_heads]
        lines.append(f"  alone and in the calibrated answer, its own best weights: {', '.join(steps)}")
    report = trainer.reports.get("validation")
    if report is not None:
        lines.append(f"  on {report['rows']} validation rows: {_scores(report, modalities)}")
    if record.warnings:
        lines.append("  what this run warns of:")
        lines += [
            f"    step {found['step']}, {found['signature']}: {found['sentence']}"
            for found in record.warnings
        ]
    lines.append(f"  probes took {metrics['probe_seconds']:.1f} s, {metrics['probe_share']:.1%} of training")
    return "\n".join(lines)


def _paused(history: list[dict[str, Any]], modalities: tuple[str, ...]) -> str:
    counts = {name: sum(name not in entry["training"] for entry in history) for name in modalities}
    texts = [f"{name} paused in {count} of {len(history)} probes" for name, count in counts.items() if count]
    return f" ({'; '.join(texts)})" if texts else ""


def _scores(report: Mapping[str, Any], modalities: tuple[str, ...]) -> str:
    metrics, prefix = report["metrics"], report["prefix"]
    score, unit = ("r2", 1) if f"{prefix}_r2" in metrics else ("accuracy", 100)
    names = {name: f"{score}_{name}" for name in modalities}
    names |= {"fused": score, "calibrated": f"{score}_calibrated"}
    return f"{score} " + ", ".join(
        f"{name} {unit * metrics[f'{prefix}_{key}']:.{3 if unit == 1 else 1}f}{' %' if unit == 100 else ''}"
        for name, key in names.items()
    )
