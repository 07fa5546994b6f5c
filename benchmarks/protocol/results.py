"""Runs on disk: what identifies one, which settings a method tries and which one validation chose."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from suites import Suite

from ecsfusion.controller.registry import RULES
from ecsfusion.strategies import STRATEGIES
from ecsfusion.strategies.two_stage import TwoStage
from protocol.methods import Method


@dataclass(frozen=True)
class Setting:
    """All that a run depends on except suite and seed; mappings are JSON text, so that settings can be compared."""

    strategy: str
    fusion: str
    arguments: str
    options: str
    length: float
    optimizer: str
    learning_rate: float

    @classmethod
    def of(
        cls, method: Method, options: Mapping[str, Any], suite: Suite, optimizer: str, rate: float
    ) -> Setting:
        """How a method trains a suite, with these options of its strategy and this learning rate."""
        return cls(
            method.strategy,
            method.fusion or suite.fusion,
            json.dumps(dict(method.arguments), sort_keys=True),
            json.dumps(dict(options), sort_keys=True),
            round(method.length(len(suite.modalities)), 6),
            optimizer,
            rate,
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Setting:
        """The setting in a recorded line.

        In older lines a rule is an argument beside the strategy "two-stage" ("rule", or "own_rule" for a rule of
        `protocol.ablations`). Now the rule's name is the strategy.
        """
        arguments = json.loads(values["arguments"])
        rules = [arguments.pop(key) for key in ("rule", "own_rule") if key in arguments]
        strategy = rules[0] if rules else values["strategy"]
        return cls(**{**values, "strategy": strategy, "arguments": json.dumps(arguments, sort_keys=True)})


@dataclass(frozen=True)
class Run:
    """One training: a setting and a seed."""

    setting: Setting
    seed: int

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> Run:
        """The run that a line is the result of."""
        return cls(Setting.from_json(line["setting"]), line["seed"])

    def to_json(self) -> dict[str, Any]:
        """The part of a line by which `of_line` finds the run again."""
        return {"seed": self.seed, "setting": asdict(self.setting)}


def runs_path(results: Path, suite: str, optimizer: str) -> Path:
    """Every run of a suite, as it came."""
    return results / "runs" / f"{suite}{'' if optimizer == 'adamw' else f'-{optimizer}'}.jsonl"


def methods_path(results: Path, suite: str, optimizer: str) -> Path:
    """A line per method and seed, made from the runs."""
    return results / runs_path(results, suite, optimizer).name


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; none if it is not there. A last line that a crash cut short does not count."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line to a file; it does not become part of one that a crash cut short."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(line) + "\n").encode("utf-8"))


def settings_of(method: Method, suite: Suite, optimizer: str) -> list[Setting]:
    """What a method tries with the first seed: both learning rates, with each of its own options.

    Nothing, where it is for two modalities and the suite has more.
    """
    # A rule's name stands for two stages.
    strategy = STRATEGIES.get(method.strategy) or RULES.get(method.strategy, TwoStage)
    if strategy.only_two and len(suite.modalities) != 2:
        return []
    rates = suite.learning_rates if optimizer == "adamw" else suite.sgd_learning_rates
    return [
        Setting.of(method, options, suite, optimizer, rate)
        for options in method.options(suite.modalities)
        for rate in rates
    ]


def chosen_setting(
    lines: Iterable[Mapping[str, Any]], method: Method, settings: Sequence[Setting], seed: int
) -> Setting | None:
    """The setting with the best validation accuracy of the method's answer with the first seed; None if one is missing.

    Ties go to the earlier one.
    """
    accuracy = {
        Run.of_line(line): line["validation"][method.answer]
        for line in lines
        # An older line may lack a newer answer.
        if method.answer in line["validation"]
    }
    runs = [Run(setting, seed) for setting in settings]
    if not runs or any(run not in accuracy for run in runs):
        return None
    return max(runs, key=lambda run: accuracy[run]).setting


def method_lines(
    lines: Sequence[Mapping[str, Any]],
    methods: Iterable[Method],
    suite: Suite,
    optimizer: str,
    first_seed: int,
) -> list[dict[str, Any]]:
    """A line per method and seed, of the setting that was chosen for it."""
    by_run = {Run.of_line(line): line for line in lines}
    chosen = []
    for method in methods:
        setting = chosen_setting(lines, method, settings_of(method, suite, optimizer), first_seed)
        for run, line in by_run.items():
            if run.setting == setting and method.answer in line["test"]:
                chosen.append(line_of(method, line))
    return chosen


def line_of(method: Method, run: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a method that reads this run: `test_accuracy` and `validation_accuracy` are those of its answer."""
    rest = {key: value for key, value in run.items() if key not in ("suite", "seed")}
    return {
        "suite": run["suite"],
        "method": method.name,
        "seed": run["seed"],
        "test_accuracy": run["test"][method.answer],
        "validation_accuracy": run["validation"][method.answer],
        "answer": method.answer,
        **rest,
    }
