"""Simulated readings with the noise of real probes, fed straight into a rule: thousands of probes in seconds.

Two modalities, "first" and "second". A scene says what each knows uniquely, without noise, at every probe; the rule
sees that with Gaussian noise. Accuracy does not matter here: waiting and the end of stage 1 are turned off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean
from typing import Any

import numpy as np

from ecsfusion.controller import RULES, Reading, Rule
from ecsfusion.controller.lead import Lead
from ecsfusion.evaluation.measurement import Information, Measurement, Scale
from ecsfusion.model.names import CALIBRATED, FUSED

NAMES = ("first", "second")
PROBES = 40
START, END = 11, 24
"""First and last probe of a lead that comes and goes."""
RATIO, MARGIN = 3.0, 0.15
"""Of `peak-synergy`: a lead that is clear without noise."""
NEVER = 10**6

Unique = tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """What the modalities know uniquely, in bits.

    Args:
        unique: the truth at probe t, given how many probes each trained before it.
        leader: who is ahead from probe `START` to `END`; None: nobody is ever.
    """

    unique: Callable[[int, Mapping[str, int]], Unique]
    leader: str | None = None


def _comes_and_goes(t: int, trained: Mapping[str, int]) -> Unique:
    return (1.2, 0.2) if START <= t <= END else (0.4, 0.4)


def _catches_up(t: int, trained: Mapping[str, int]) -> Unique:
    """A fast and a slow learner: a pause stops the one, and the other closes the gap."""
    first = 2.0 * (1 - math.exp(-trained["first"] / 3))
    second = 1.9 * (1 - math.exp(-trained["second"] / 12))
    shared = 0.8 * min(first, second)
    return first - shared, second - shared


SCENES: Mapping[str, Scene] = {
    "balanced": Scene(lambda t, trained: (0.4, 0.4)),
    "balanced, little known": Scene(lambda t, trained: (0.06, 0.06)),
    "at the threshold": Scene(lambda t, trained: (0.75, 0.25)),
    "a lead comes and goes": Scene(_comes_and_goes, "first"),
    "the slower one catches up": Scene(_catches_up),
}
NOISES = (0.025, 0.05, 0.1, 0.2)
"""Bits. Recorded runs fluctuate by 0.003 to 0.053, most of them by 0.01 to 0.03 (`fluctuation`)."""
ROWS = 1000
FLOOR = 0.03
"""Bits, of uniqueness with `ROWS` rows. It does not grow with the noise here, so it protects from little of it."""
PATIENCES = (1, 2, 3)
HYSTERESES = (1.0, 2 / 3, 1 / 3)


@dataclass
class Episode:
    """One stage 1 of `PROBES` probes.

    Attributes:
        paused: who is paused after each probe.
        truth: what was known without noise.
    """

    paused: list[frozenset[str]] = field(default_factory=list)
    truth: list[Unique] = field(default_factory=list)

    @property
    def switches(self) -> int:
        """Pauses and resumptions."""
        return sum(len(a ^ b) for a, b in pairwise([frozenset(), *self.paused]))


def play(
    make: Callable[[], Rule], scene: Scene, noise: float, generator: np.random.Generator, probes: int = PROBES
) -> Episode:
    """Let a rule decide through a scene. A rule that ends stage 1 starts anew, with everybody training."""
    episode, rule, trained = Episode(), make(), dict.fromkeys(NAMES, 1)
    training: tuple[str, ...] = NAMES
    for t in range(1, probes + 1):
        truth = scene.unique(t, trained)
        decision = rule.decide(_reading(t, truth, noise, generator, training))
        training = decision.training
        if decision.ends_stage:
            rule = make()
        for name in training:
            trained[name] += 1
        episode.paused.append(frozenset(NAMES) - frozenset(training))
        episode.truth.append(truth)
    return episode


def _reading(
    t: int, truth: Unique, noise: float, generator: np.random.Generator, training: tuple[str, ...]
) -> Reading:
    """Corrected atoms are never negative. The atoms without correction are the same."""
    first, second = (max(0.0, value + noise * generator.standard_normal()) for value in truth)
    unique = {"first": first, "second": second}
    information = Information(
        redundancy=1.0,
        unique=unique,
        synergy=0.2,
        mutual_information={name: 1.0 + bits for name, bits in unique.items()},
        joint_mutual_information=1.2 + first + second,
        conditional_mutual_information=0.0,
        floor=dict.fromkeys((*NAMES, "redundancy", "synergy"), FLOOR),
        plugin={"redundancy": 1.0, "unique": unique, "synergy": 0.2},
    )
    measurement = Measurement(
        score="accuracy",
        scores=dict.fromkeys((*NAMES, FUSED, CALIBRATED), 0.5),
        calibration_error={},
        num_rows=ROWS,
        complete_rows=ROWS,
        scale=Scale(rows=ROWS, chance=0.1),
        information=information,
    )
    return Reading(t, float(t), t / NEVER, "unimodal", training, measurement)


def pausing(patience: int, hysteresis: float) -> Callable[[], Rule]:
    """`peak-synergy` that does nothing but pause and resume."""
    options: dict[str, Any] = {"wait": NEVER, "stop_patience": NEVER, "ratio": RATIO, "margin": MARGIN}
    return lambda: RULES["peak-synergy"](NAMES, patience=patience, hysteresis=hysteresis, **options)


def published() -> Rule:
    """The paper's rule, on values freed of bias, which favours it. Its second switch ends stage 1; it starts anew."""
    return RULES["published"](NAMES, max_epochs=NEVER)


def figures(
    make: Callable[[], Rule], scene_name: str, noise: float, episodes: int, seed: int
) -> dict[str, float]:
    """What a rule does in a scene, over many episodes.

    Returns:
        "switches per 100 probes". Where a lead comes and goes: "paused after" and "resumed after" so many probes,
        counted from the first one that shows the change, "missed" and "not resumed" (shares of episodes), and "wrong":
        switches per 100 probes that were not these. Where the slower one catches up: "overshoot", for how many probes
        a pause lasts on though without noise the lead would pause nobody.
    """
    scene, generator = SCENES[scene_name], np.random.default_rng(seed)
    played = [play(make, scene, noise, generator) for _ in range(episodes)]
    probes = episodes * PROBES
    found = {"switches per 100 probes": 100 * sum(episode.switches for episode in played) / probes}
    if scene.leader is not None:
        paused = [_first(episode, START, END, lambda who: scene.leader in who) for episode in played]
        resumed = [_first(episode, END + 1, PROBES, lambda who: not who) for episode in played]
        right = sum(after is not None for after in (*paused, *resumed))
        found |= {
            "paused after": _mean(paused),
            "missed": mean(after is None for after in paused),
            "resumed after": _mean(resumed),
            "not resumed": mean(after is None for after in resumed),
            "wrong": 100 * (sum(episode.switches for episode in played) - right) / probes,
        }
    if scene_name == "the slower one catches up":
        late = [
            "first" in who and not _leads(truth)
            for episode in played
            for who, truth in zip(episode.paused, episode.truth, strict=True)
        ]
        pauses = sum("first" in b - a for e in played for a, b in pairwise([frozenset(), *e.paused]))
        found["overshoot"] = sum(late) / pauses if pauses else math.nan
    return {name: round(float(value), 4) for name, value in found.items()}


def _first(episode: Episode, start: int, end: int, holds: Callable[[frozenset[str]], bool]) -> int | None:
    """The number of the first probe from `start` to `end` after whose decision this holds, `start` being 1."""
    return next((t - start + 1 for t in range(start, end + 1) if holds(episode.paused[t - 1])), None)


def _mean(values: Iterable[int | None]) -> float:
    there = [value for value in values if value is not None]
    return mean(there) if there else math.nan


def _leads(truth: Unique) -> bool:
    """Whether the first modality's lead is clear without noise."""
    return Lead(truth[0], 0.0, "second", truth[1], 0.0).is_clear(RATIO, MARGIN)


def sweep(episodes: int, seed: int) -> list[dict[str, Any]]:
    """Every patience and hysteresis, and the published rule, in every scene under every noise; a line each."""
    makers: list[tuple[dict[str, Any], Callable[[], Rule]]] = [
        ({"rule": "peak-synergy", "patience": p, "hysteresis": round(h, 3)}, pausing(p, h))
        for p in PATIENCES
        for h in HYSTERESES
    ]
    makers.append(({"rule": "published"}, published))
    return [
        {
            **described,
            "scene": scene,
            "noise": noise,
            "probes": episodes * PROBES,
            "seed": seed,
            **figures(make, scene, noise, episodes, seed),
        }
        for described, make in makers
        for scene in SCENES
        for noise in NOISES
    ]


def fluctuation(lines: Iterable[Mapping[str, Any]]) -> float:
    """Bits by which uniqueness jumps from probe to probe in recorded runs: the standard deviation about a line.

    From the second differences of the second half of each run, in which little is learnt any more: white noise of
    standard deviation s has second differences of sqrt(6) s. What training itself adds is in it.
    """
    jumps = []
    for line in lines:
        trajectory = line["trajectory"]
        for key, column in trajectory.items():
            if key.startswith("unique_"):
                jumps.append(np.diff(np.asarray(column[len(column) // 2 :], float), 2))
    return float(np.sqrt(np.mean(np.concatenate(jumps) ** 2) / 6))
