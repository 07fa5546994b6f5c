"""The values that an evaluation logs: one line for each value.

They make a `Measurement` into the flat dictionary that `transformers.Trainer` logs. Only `metric_for_best_model` reads
these names again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ecsfusion.evaluation.measurement import Information, Measurement
from ecsfusion.model.names import CALIBRATED, FUSED


@dataclass(frozen=True)
class LoggedValue:
    """One value of the log.

    Attributes:
        name: its key, in which "{score}" becomes "accuracy" or "r2". A value by modality is logged as NAME_MODALITY.
        value: the function that reads it from a measurement. For a value by modality it returns a dictionary.
        by_modality: whether there is a value for each modality.
        needs_information: whether it is logged only where a decomposition was made.
        needs_probabilities: whether it is left out in regression.
        in_tables: whether a table of a notebook shows it, which has no room for all of them.
        is_optional: whether it is logged only where it was measured; elsewhere the function returns None.
    """

    name: str
    value: Callable[[Measurement], Any]
    by_modality: bool = False
    needs_information: bool = False
    needs_probabilities: bool = False
    in_tables: bool = False
    is_optional: bool = False


def _information(
    name: str, value: Callable[[Information], Any], by_modality: bool = False, **options: bool
) -> LoggedValue:
    def of_measurement(measurement: Measurement) -> Any:
        return value(cast("Information", measurement.information))

    return LoggedValue(name, of_measurement, by_modality, needs_information=True, **options)


LOGGED_VALUES = (
    LoggedValue("{score}", lambda m: m.scores[FUSED], in_tables=True),
    LoggedValue("{score}", lambda m: m.modality_scores, by_modality=True, in_tables=True),
    LoggedValue("{score}_calibrated", lambda m: m.scores[CALIBRATED], in_tables=True),
    LoggedValue("calibration_error", lambda m: m.calibration_error[FUSED], needs_probabilities=True),
    LoggedValue(
        "calibration_error_calibrated", lambda m: m.calibration_error[CALIBRATED], needs_probabilities=True
    ),
    LoggedValue("complete_rows", lambda m: float(m.complete_rows)),
    _information("redundancy", lambda i: i.redundancy, in_tables=True),
    _information("synergy", lambda i: i.synergy, in_tables=True),
    _information("dependence", lambda i: i.dependence if i.has_dependence else None, is_optional=True),
    _information("unique", lambda i: i.unique, by_modality=True, in_tables=True),
    _information("mutual_information", lambda i: i.mutual_information, by_modality=True),
    _information("redundancy_floor", lambda i: i.floor["redundancy"]),
    _information("synergy_floor", lambda i: i.floor["synergy"]),
    _information("unique_floor", lambda i: {name: i.floor[name] for name in i.unique}, by_modality=True),
    _information("plugin_redundancy", lambda i: i.plugin["redundancy"]),
    _information("plugin_synergy", lambda i: i.plugin["synergy"]),
    _information("plugin_unique", lambda i: i.plugin["unique"], by_modality=True),
    LoggedValue("probe_seconds", lambda m: round(m.seconds, 4), needs_information=True),
)


def log_values(measurement: Measurement) -> dict[str, float]:
    """The flat dictionary that an evaluation logs, without a prefix.

    The keys are the same at every evaluation that makes a decomposition, but for those of optional values.

    Args:
        measurement: the measurement of the evaluation.
    """
    values: dict[str, float] = {}
    for logged in LOGGED_VALUES:
        if logged.needs_information and measurement.information is None:
            continue
        if logged.needs_probabilities and not measurement.calibration_error:
            continue
        name, value = logged.name.format(score=measurement.score), logged.value(measurement)
        if logged.is_optional and value is None:
            continue
        if logged.by_modality:
            values |= {f"{name}_{modality}": number for modality, number in value.items()}
        else:
            values[name] = value
    return values


def logged_names(
    modalities: Sequence[str],
    score: str,
    in_tables: bool = False,
    makes_decomposition: bool = True,
    with_optional: bool = False,
) -> tuple[str, ...]:
    """The keys of `log_values` for an evaluation.

    Args:
        modalities: names of the modalities of the model.
        score: "accuracy" or "r2".
        in_tables: only those that a table of a notebook shows.
        makes_decomposition: whether the evaluation decomposes the information of the embeddings.
        with_optional: also those that only some evaluations log.
    """
    names: list[str] = []
    for logged in LOGGED_VALUES:
        if (logged.needs_probabilities and score == "r2") or (in_tables and not logged.in_tables):
            continue
        if (logged.needs_information and not makes_decomposition) or (
            logged.is_optional and not with_optional
        ):
            continue
        name = logged.name.format(score=score)
        names += [f"{name}_{modality}" for modality in modalities] if logged.by_modality else [name]
    return tuple(names)
