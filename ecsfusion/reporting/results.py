"""What a person reads when training is over: a summary of the run, and the table of its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ecsfusion.controller.probe import Probe
from ecsfusion.evaluation.measurement import Measurement
from ecsfusion.model.names import CALIBRATED, FUSED
from ecsfusion.reporting.contributions import contributions_sentence
from ecsfusion.reporting.heads import compare_heads, head_label, score_shares
from ecsfusion.reporting.run import ReportedRun, rows_by_split


def run_summary(run: ReportedRun, metrics: Mapping[str, float]) -> str:
    """A few lines on a run that is over.

    They say how long the stages were, which modalities were paused, which weights the model has, how well each head
    predicts, and what the run warns of.

    Args:
        run: the trainer, which has trained.
        metrics: what `Trainer.train` returns; with `train_runtime`, `probe_seconds`, `probe_share` and
            `measuring_share`.
    """
    record, state = run.record, run.state
    modalities = run.model.modalities
    lines = ["", f"Training is over: {state.global_step} steps in {metrics['train_runtime']:.0f} s."]
    unimodal = [probe for probe in record.history if probe.stage == "unimodal"]
    if unimodal:
        end = record.stage_start if record.stage == "joint" else state.global_step
        scouted = max((probe.step for probe in unimodal if probe.phase == "scouting"), default=0)
        scouting = f", up to {scouted} with the fused head to scout" if scouted else ""
        paused = _paused(unimodal, modalities)
        lines.append(f"  stage 1, steps 1 to {end}{scouting}{paused}: {unimodal[-1].decision.reason}")
    joint = [probe for probe in record.history if probe.stage == "joint"]
    if joint:
        lines.append(
            f"  stage 2, steps {record.stage_start + 1} to {state.global_step}{_paused(joint, modalities)}"
        )
    if run.loaded_best_step is not None:
        lines.append(f"  the model has its best weights, of step {run.loaded_best_step}")
    if len(run.model.best_heads):
        steps = [f"{name} of step {int(record.best_heads[name][0])}" for name in run.model.best_heads]
        lines.append(f"  alone and in the calibrated answer, its own best weights: {', '.join(steps)}")
    measurement = run.measurements.get("validation")
    if measurement is not None:
        scores = _scores(measurement, modalities)
        groups = "" if measurement.num_groups is None else f" of {measurement.num_groups} groups"
        lines.append(f"  on {measurement.num_rows} validation rows{groups}: {measurement.score} {scores}")
        if contributed := contributions_sentence(measurement):
            lines.append(f"  of the calibrated answer contribute {contributed}")
    if record.warnings:
        lines.append("  what this run warns of:")
        lines += [
            f"    step {warning['step']}, {warning['diagnostic']}: {warning['sentence']}"
            for warning in record.warnings
        ]
    share, measuring = metrics["probe_share"], metrics["measuring_share"]
    lines.append(
        f"  probes took {metrics['probe_seconds']:.1f} s, {share:.1%} of training: the passes of the evaluations "
        f"{share - measuring:.1%}, what is measured on them {measuring:.1%}"
    )
    return "\n".join(lines)


def results_table(run: ReportedRun, comparison: Mapping[str, float] | None = None) -> str:
    """Accuracy of every head on every split evaluated after training, and a sentence on what fusion is worth.

    Args:
        run: the trainer, which has trained and evaluated.
        comparison: accuracy of the fused head of other schedules on the last split, by name.
    """
    modalities = run.model.modalities
    by_split = {split: score_shares(each) for split, each in run.measurements.items()}
    rows = {
        head_label(head): [f"{100 * heads[head]:.1f}" if head in heads else "" for heads in by_split.values()]
        for head in (*modalities, FUSED, CALIBRATED)
    }
    for schedule, accuracy in (comparison or {}).items():
        rows[f"{schedule}, fused head"] = [""] * (len(by_split) - 1) + [f"{100 * accuracy:.1f}"]
    is_regression = {each.score for each in run.measurements.values()} == {"r2"}
    title = "explained variance in %" if is_regression else "accuracy in %"
    width = max(len(label) for label in (*rows, title))
    lines = [f"{title:<{width}}  " + "  ".join(f"{split:>10}" for split in by_split)]
    lines += [
        f"{label:<{width}}  " + "  ".join(f"{cell:>10}" for cell in cells) for label, cells in rows.items()
    ]
    counted = {} if is_regression else rows_by_split(run)
    sentence = compare_heads(by_split, list(modalities), counted, last_only=True).replace("**", "")
    return "\n".join([*lines, "", sentence])


def _paused(history: Sequence[Probe], modalities: Sequence[str]) -> str:
    counts = {name: sum(name not in probe.training for probe in history) for name in modalities}
    texts = [f"{name} paused in {count} of {len(history)} probes" for name, count in counts.items() if count]
    return f" ({'; '.join(texts)})" if texts else ""


def _scores(measurement: Measurement, modalities: Sequence[str]) -> str:
    """The score of every head, in percent where it is an accuracy."""
    scores = {head: measurement.scores[head] for head in (*modalities, FUSED, CALIBRATED)}
    if measurement.score == "r2":
        return ", ".join(f"{head} {value:.3f}" for head, value in scores.items())
    return ", ".join(f"{head} {100 * value:.1f} %" for head, value in scores.items())
