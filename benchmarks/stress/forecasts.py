"""Slow or weak? How often the controller's forecast is right after 1, 2, 3 and 5 epochs of unimodal training.

The truth is known afterwards: the modality that was behind was slow if the most that it ever knew about the label was
more than `SLOW` of the most that the other ever knew, and weak otherwise. `SLOW` and the reach of the forecast were
chosen on the recorded runs of the comparison; the fresh runs, of other cases and seeds, were trained afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from protocol.methods import METHODS
from protocol.results import Run, Setting
from protocol.training import train
from suites import Suite, load_suite
from suites.imbalance import add_noise, rescale

from ecsfusion.controller.forecast import SLOW, forecast
from stress.events import SEED, twins

AFTER = (1, 2, 3, 5)
EPOCHS = 12
SPLITS = ("train", "validation", "test")


def _changed(suite: Suite, name: str, modality: str, scale: float = 1.0, noise: float = 0.0) -> Suite:
    """The suite with one modality noisy, then multiplied."""
    generator = torch.Generator().manual_seed(SEED)
    splits = {}
    for split in SPLITS:
        noisy = (
            add_noise(getattr(suite, split), modality, noise, generator) if noise else getattr(suite, split)
        )
        splits[split] = rescale(noisy, modality, scale)
    return replace(suite, name=name, epochs=EPOCHS, **splits)


CASES: Mapping[str, Callable[[], Suite]] = {
    "half x 0.1": lambda: _changed(twins(), "half x 0.1", "right", scale=0.1),
    "half x 0.03": lambda: _changed(twins(), "half x 0.03", "right", scale=0.03),
    "noise 2 on a half": lambda: _changed(twins(), "noise 2 on a half", "right", noise=2.0),
    "noise 4 on a half": lambda: _changed(twins(), "noise 4 on a half", "right", noise=4.0),
    "noise 3 on a half, x 0.1": lambda: _changed(
        twins(), "noise 3 on a half, x 0.1", "right", scale=0.1, noise=3.0
    ),
    "image x 0.1": lambda: _changed(load_suite("avmnist-small"), "image x 0.1", "image", scale=0.1),
    "noise 2 on audio": lambda: _changed(load_suite("avmnist-small"), "noise 2 on audio", "audio", noise=2.0),
}


def fresh_run(case: str, rate: float, seed: int) -> dict[str, Any]:
    """Every modality alone, with a probe after every epoch; as a line of results."""
    suite = CASES[case]()
    line = train(suite, Run(Setting.of(METHODS["best-single"], {}, suite, "adamw", rate), seed))
    return {"case": case, "rate": rate, "seed": seed, "versions": line["versions"], **information(line)}


def information(line: Mapping[str, Any]) -> dict[str, Any]:
    """Bits that each of two modalities alone knew about the label, reading by reading."""
    trajectory = line["trajectory"]
    names = [key.removeprefix("unique_") for key in trajectory if key.startswith("unique_")]
    bits = {
        name: [
            round(r + u, 3)
            for r, u in zip(trajectory["redundancy"], trajectory[f"unique_{name}"], strict=True)
        ]
        for name in names
    }
    return {"bits": bits}


def judgement(bits: Mapping[str, Sequence[float]], after: int) -> dict[str, Any] | None:
    """What the forecast says after so many epochs (readings), and what came of it; None where nobody knows anything."""
    behind, ahead = sorted(bits, key=lambda name: bits[name][after - 1])
    if bits[ahead][after - 1] <= 0:
        return None
    epochs = [float(epoch) for epoch in range(1, after + 1)]
    _, soon = forecast(epochs, bits[behind][:after], bits[ahead][:after])
    return {
        "behind": behind,
        "says slow": soon > SLOW,
        "is slow": max(bits[behind]) > SLOW * max(bits[ahead]),
    }


def rates(runs: Iterable[Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """How often the forecast is right, of slow and of weak modalities, after each number of epochs."""
    runs, found = list(runs), []
    for after in AFTER:
        judged = [judgement(bits, after) for bits in runs if all(len(b) > after for b in bits.values())]
        row: dict[str, Any] = {"after": after}
        for kind, truth in (("slow", True), ("weak", False)):
            right = [j["says slow"] == truth for j in judged if j is not None and j["is slow"] == truth]
            row |= {f"{kind} runs": len(right), kind: round(sum(right) / len(right), 3) if right else None}
        found.append(row)
    return found


def recorded(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, list[float]]]:
    """The unimodal runs of two modalities among lines of `compare.py`."""
    found = [information(line)["bits"] for line in lines if line["setting"]["strategy"] == "unimodal"]
    return [bits for bits in found if len(bits) == 2]


def plan(seeds: int) -> list[tuple[str, float, int]]:
    """The fresh runs; no other benchmark has these seeds."""
    return [(case, rate, 10 + seed) for seed in range(seeds) for case in CASES for rate in (1e-3, 3e-3)]
