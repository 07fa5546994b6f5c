"""Real runs under stress: every method trains through every event, and its probes say when the controller reacted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from protocol.methods import CALIBRATED, METHODS, Method
from protocol.results import Run, Setting
from protocol.training import train

from stress.events import END, START, STRESSES

EPOCHS = 10
STEPS_PER_PROBE = 8
RATE = 3e-3
COLUMNS = ("step", "stage", "paused", "unique_", "accuracy_")
"""Of the trajectory, which are kept."""


def _pausing(name: str, label: str, **options: float) -> Method:
    """Peak synergy with a stage 1 of given length: the rule only decides who trains, to the end of the event and on."""
    return Method(
        name,
        label,
        "two-stage",
        {"unimodal_epochs": EPOCHS / 2},
        options=lambda modalities: [{"rule": "peak-synergy", **options}],
        answer=CALIBRATED,
    )


_CHOSEN = (
    METHODS["two-stage"],
    _pausing("pausing", "rule: peak synergy, stage 1 of half"),
    METHODS["published"],
    METHODS["joint-auxiliary"],
    METHODS["warm-up"],
    METHODS["calibrated-ensemble"],
    _pausing("nervous", "the same without hysteresis and patience", patience=1, hysteresis=1.0),
)
COMPARED: Mapping[str, Method] = {method.name: method for method in _CHOSEN}
"""Controllers, and schedules of the same budget without one."""
UNBALANCED = "new speakers"
"""The event of the suite in which one modality leads anyway."""
RULES = ("two-stage", "pausing", "published", "nervous")
"""Of them, those that decide by what they measure."""


def stressed_run(stress_name: str, method_name: str, seed: int) -> dict[str, Any]:
    """One run, as a line of results; all methods answer with their calibrated heads."""
    stress = STRESSES[stress_name]()
    suite = replace(stress.suite, epochs=EPOCHS)
    method = COMPARED[method_name]
    method = replace(
        method, arguments={**method.arguments, "eval_strategy": "steps", "eval_steps": STEPS_PER_PROBE}
    )
    setting = Setting.of(method, method.options(suite.modalities)[0], suite, "adamw", RATE)
    line = train(suite, Run(setting, seed), [] if stress.event is None else [stress.event])
    trajectory = {key: column for key, column in line["trajectory"].items() if key.startswith(COLUMNS)}
    return {
        "stress": stress_name,
        "method": method_name,
        "seed": seed,
        "test_accuracy": line["test"][CALIBRATED],
        "leader": stress.leader,
        "event": [round(share * line["steps"]) for share in (START, END)],
        **{
            key: line[key]
            for key in ("modality_steps", "steps", "seconds", "versions", "processor", "threads")
        },
        "trajectory": trajectory,
    }


def decisions(line: Mapping[str, Any]) -> list[tuple[int, frozenset[str]]]:
    """(step of the probe, who is paused from then on) in stage 1; a probe tells who was paused before it."""
    trajectory = line["trajectory"]
    rows = list(zip(trajectory["step"], trajectory["stage"], trajectory["paused"], strict=True))
    return [
        (step, frozenset(after))
        for (step, stage, _), (_, next_stage, after) in pairwise(rows)
        if stage == next_stage == 1
    ]


def response(line: Mapping[str, Any]) -> dict[str, Any]:
    """How the controller reacted to the event.

    Returns:
        "paused": number of the probe, counted from the first one within the event, that paused the leader (None: it
        never did while the event lasted). "wrong": other pauses that began within it. "resumed": as "paused", from the
        first probe after the event (None: not in stage 1). "false": pauses and resumptions of the twins before the
        event, or all of them where nothing happens. "probes": in stage 1, of those.
    """
    start, end = line["event"]
    found: dict[str, Any] = {"paused": None, "wrong": 0, "resumed": None, "false": 0, "probes": 0}
    before: frozenset[str] = frozenset()
    steps = [step for step, _ in decisions(line)]
    for step, paused in decisions(line):
        quiet = line["stress"] == "nothing" or (line["stress"] != UNBALANCED and step <= start)
        found["probes"] += quiet
        if quiet:
            found["false"] += len(paused ^ before)
        elif start < step <= end:
            for name in paused - before:
                if name == line["leader"] and found["paused"] is None:
                    found["paused"] = sum(start < s <= step for s in steps)
                elif name != line["leader"]:
                    found["wrong"] += 1
        elif step > end and line["leader"] in before - paused and found["resumed"] is None:
            found["resumed"] = sum(end < s <= step for s in steps)
        before = paused
    return found


def plan(seeds: Sequence[int]) -> list[tuple[str, str, int]]:
    """All runs, one seed after the other; the nervous rule where its switches can be counted."""
    return [
        (stress, method, seed)
        for seed in seeds
        for stress in STRESSES
        for method in COMPARED
        if method != "nervous" or stress in ("nothing", "noise")
    ]
