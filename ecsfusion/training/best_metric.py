"""Checks the name of the metric that chooses the best model, before the first step where that is possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from ecsfusion.evaluation.logged_values import logged_names


def check_best_metric(
    metric: str, modalities: Sequence[str], score: str, sets: Sequence[str], has_user_metrics: bool
) -> None:
    """Check that an evaluation in training reports this metric.

    Args:
        metric: `metric_for_best_model`, with or without "eval_".
        modalities: names of the modalities of the model.
        score: "accuracy" or "r2".
        sets: the names of the evaluation sets, the probe set first; empty for a single set without a name.
        has_user_metrics: whether the user gave `compute_metrics`, whose names are known only after an evaluation.

    Raises:
        ValueError: no evaluation reports it, or there are several sets and it does not say of which it is.
    """
    name = metric.removeprefix("eval_")
    optional = set(logged_names(modalities, score, with_optional=True)) - set(logged_names(modalities, score))
    of_sets = {f"{each}_{key}" for each in sets for key in optional}
    if not has_user_metrics and name in optional | of_sets:
        raise ValueError(
            f"metric_for_best_model is {name!r}, which is measured only where a rule asks for it, and says nothing of "
            f"how good a model is; give another one, such as '{score}_calibrated'."
        )
    if not sets:
        known = ["loss", *logged_names(modalities, score)]
        if name not in known and not has_user_metrics:
            raise ValueError(
                f"metric_for_best_model is {name!r}, which no evaluation reports; give one of {', '.join(known)}."
            )
        return
    by_set = {
        each: [
            f"{each}_loss",
            *(
                f"{each}_{key}"
                for key in logged_names(modalities, score, makes_decomposition=each == sets[0])
            ),
        ]
        for each in sets
    }
    if any(name in names for names in by_set.values()):
        return
    of_a_set = [each for each in sets if name.startswith(f"{each}_")]
    if has_user_metrics and of_a_set:
        return
    several = f"eval_dataset has the sets {', '.join(sets)}"
    if f"{sets[0]}_{name}" in by_set[sets[0]] or (has_user_metrics and not of_a_set):
        raise ValueError(
            f"metric_for_best_model is {name!r}, but {several}; say of which set it is: {f'{sets[0]}_{name}'!r}. "
            "(Where the best model is needed and none is given, it is 'loss'.)"
        )
    known = by_set[of_a_set[0] if of_a_set else sets[0]]
    raise ValueError(
        f"metric_for_best_model is {name!r}, which no evaluation reports ({several}; only the first of them is "
        f"decomposed); give one of {', '.join(known)}."
    )


def check_reported(metric: str | None, metrics: Mapping[str, Any]) -> None:
    """Check after an evaluation that it reported the metric that chooses the best model.

    Raises:
        ValueError: it did not, and the message lists what it reported, or the value is no number.
    """
    if metric is None:
        return
    key = f"eval_{metric.removeprefix('eval_')}"
    if key in metrics:
        if not isinstance(metrics[key], Real):
            raise ValueError(
                f"metric_for_best_model is {metric!r}, whose value is a {type(metrics[key]).__name__}, which cannot be "
                "compared; let compute_metrics return a number under this name."
            )
        return
    reported = ", ".join(key.removeprefix("eval_") for key in metrics)
    raise ValueError(
        f"metric_for_best_model is {metric!r}, which the evaluation does not report; let compute_metrics return it, or "
        f"give one of {reported}."
    )
