"""The methods that are compared: a strategy of the Trainer with its options, and how its budget is counted.

Every method gets the same number of modality-steps: one step of one encoder. A schedule in which an encoder often waits
has more steps (`length`); one that pauses by what it measures uses at most the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FUSED = "fused"
AVERAGE = "average"
"""Mean of the softmax of the unimodal heads."""
BEST_SINGLE = "best single"
"""The unimodal head that is best on validation."""
CALIBRATED_ENSEMBLE = "calibrated ensemble"
"""The unimodal heads, each from its best epoch, with weights fitted on validation."""
CALIBRATED = "calibrated"
"""The same with the fused head among them: what the library answers with (`keep_best_heads`)."""
ONE_EPOCH = "calibrated, one epoch"
"""The same with all heads from one epoch."""
STACKING = "stacking"
"""A logistic regression on the log-probabilities of the unimodal heads, each from its best epoch."""
SOUP = "greedy soup"
"""The fused head of averaged weights: of the epochs that make the average better on validation."""


@dataclass(frozen=True)
class Method:
    """One way to train and to answer.

    Args:
        name: in results and tables.
        label: what a person reads.
        strategy: a name in `ecsfusion.strategies.STRATEGIES`, or the name of a rule that steers two stages: in
            `ecsfusion.controller.registry.RULES`, or in `protocol.ablations.RULES`.
        arguments: further fields of `FusionTrainingArguments`.
        options: of the strategy, given the modalities; more than one is a grid, on which (as on the learning rates)
            the first seed's validation accuracy decides.
        fusion: name of the fused head; None for the suite's.
        length: steps, as a multiple of those of joint training; a function of the number of modalities.
        answer: the readout that the method answers with.
        has_heads: whether its unimodal heads are trained, so that it can be calibrated.
    """

    name: str
    label: str
    strategy: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    options: Callable[[Sequence[str]], list[dict[str, Any]]] = lambda modalities: [{}]
    fusion: str | None = None
    length: Callable[[int], float] = lambda number: 1.0
    answer: str = FUSED
    has_heads: bool = True


def _slow(modalities: Sequence[str]) -> list[dict[str, Any]]:
    return [{"slow": name} for name in modalities]


def _orders(modalities: Sequence[str]) -> list[dict[str, Any]]:
    """Which is weakest is not known beforehand: each modality first, then the others."""
    share = 0.5 / len(modalities)
    return [
        {"order": [name, *(other for other in modalities if other != name)], "share": share}
        for name in modalities
    ]


def _length_half_alone(number: int) -> float:
    # Half of the steps train one modality, half train all of them.
    return number / (0.5 + 0.5 * number)


_ALL = (
    Method("two-stage", "two-stage (default)", "two-stage", answer=CALIBRATED),
    Method("published", "two-stage, as published", "published"),
    Method("joint", "joint", "joint", has_heads=False),
    Method("joint-auxiliary", "joint + unimodal losses", "joint-auxiliary"),
    Method("best-single", "best single modality", "unimodal", answer=BEST_SINGLE),
    Method("ensemble", "unimodal ensemble", "unimodal", answer=AVERAGE),
    Method("calibrated-ensemble", "calibrated ensemble", "unimodal", answer=CALIBRATED_ENSEMBLE),
    Method("stacking", "stacking", "unimodal", answer=STACKING),
    Method("uni-pre-frozen", "Uni-Pre Frozen", "uni-pre-frozen", length=lambda number: 1.25),
    Method("uni-pre-finetuned", "Uni-Pre Finetuned", "uni-pre-finetuned"),
    Method("warm-up", "fixed warm-up", "warm-up"),
    Method("greedy-soup", "greedy soup of joint", "joint", answer=SOUP, has_heads=False),
    Method("modality-dropout", "modality dropout", "modality-dropout", has_heads=False),
    Method("rate-per-modality", "rate per modality", "rate-per-modality", options=_slow, has_heads=False),
    Method(
        "sequential", "sequential prioritization", "sequential", options=_orders, length=_length_half_alone
    ),
    Method("transformer-joint", "SimBaMM, joint", "joint", fusion="transformer", has_heads=False),
    Method(
        "transformer-two-stage", "SimBaMM, two-stage", "two-stage", fusion="transformer", answer=CALIBRATED
    ),
    Method("ogm", "OGM", "ogm", has_heads=False),
    Method("ogm-ge", "OGM-GE", "ogm-ge", has_heads=False),
    Method("g-blending", "G-Blending", "g-blending"),
    Method("pmr", "PMR", "pmr", has_heads=False),
    Method("agm", "AGM", "agm", has_heads=False),
    Method("mmpareto", "MMPareto", "mmpareto"),
    Method("mla", "MLA", "mla", fusion="entropy-average", length=float),
    Method("diagnosing-relearning", "Diagnosing & Re-learning", "diagnosing-relearning"),
    Method("pdmp", "PDMP", "pdmp", has_heads=False),
    Method(
        "unimodal-distillation", "unimodal-teacher distillation", "unimodal-distillation", has_heads=False
    ),
    Method("mcr", "MCR", "mcr"),
    Method("lfm", "LFM", "lfm", fusion="late-average"),
    Method("reconboost", "ReconBoost", "reconboost", fusion="late-average", length=_length_half_alone),
    Method("aug", "AUG", "aug", fusion="boosted", has_heads=False),
)

_ABLATIONS = (
    Method("stage-2-only", "stage 2 alone", "joint-auxiliary", answer=CALIBRATED),
    Method("stage-1-only", "stage 1 alone", "unimodal", answer=CALIBRATED),
    Method("peak-synergy", "rule: peak synergy", "peak-synergy", answer=CALIBRATED),
    Method("weak-first", "rule: weak first", "weak-first", answer=CALIBRATED),
    *(
        Method(name, f"rule: {name.replace('-', ' ')}", name, answer=CALIBRATED)
        for name in (
            "not-paused",
            "not-restored",
            "ends-by-accuracy",
            "ends-by-information",
            "ends-by-synergy",
        )
    ),
    *(
        Method(
            f"start-at-{share}",
            f"stage 2 after {share} %",
            "warm-up",
            options=lambda modalities, share=share: [{"share": share / 100}],
            answer=CALIBRATED,
        )
        for share in (10, 20, 30, 40, 50, 60, 70, 80, 90)
    ),
)
"""Two-stage training with one part left out or replaced; all answer as the default does."""

METHODS: dict[str, Method] = {method.name: method for method in (*_ALL, *_ABLATIONS)}


def answers_of(strategy: str) -> set[str]:
    """The readouts that methods with this strategy answer with."""
    return {method.answer for method in METHODS.values() if method.strategy == strategy}


ABLATIONS = tuple(method.name for method in _ABLATIONS)
RIVALS = tuple(method.name for method in _ALL)

SIMPLE_READOUTS = ("stacking", "greedy-soup")
"""Simple answers of a run that another method reads, too."""

CONTROLS = ("best-single", "calibrated-ensemble", "joint-auxiliary", "uni-pre-finetuned")
"""The simple rivals that the default must not be behind."""

PUBLISHED = (
    "published",
    "ogm",
    "ogm-ge",
    "g-blending",
    "pmr",
    "agm",
    "mmpareto",
    "mla",
    "diagnosing-relearning",
    "pdmp",
    "sequential",
    "unimodal-distillation",
    "mcr",
    "lfm",
    "reconboost",
    "aug",
)
"""Published methods that balance modalities."""

STRONGEST = (
    "two-stage",
    "published",
    "joint",
    "joint-auxiliary",
    "best-single",
    "ensemble",
    "calibrated-ensemble",
    "uni-pre-frozen",
    "uni-pre-finetuned",
    "warm-up",
)
"""Run on every suite: ours, the paper's, plain joint training and the strongest simple rivals."""
