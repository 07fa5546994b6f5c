"""How the thresholds of the diagnostics were set: what they find, and what they leave alone.

    OMP_NUM_THREADS=1 python benchmarks/diagnostics.py --seeds 20

"Too short" replays the recorded runs of the comparison (benchmarks/results/compare) and asks, for each modality at the
end of stage 1, what it learnt afterwards: the best accuracy of stage 2 against that at the end of stage 1, as a share
of what it had learnt above chance. Strategies that go back to the initial weights are left out.
"Copies" measures what two random encoders of one and the same view share beyond the label, and what those of two
independent views share.
"Few rows" is the largest error of an atom against that of 40 000 rows, by the share of the rows that `enough_samples`
asks for.

One JSON line per case goes to benchmarks/results/diagnostics.jsonl; the tables are printed.
"""

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from environment import environment
from tqdm import tqdm

from ecsfusion import PID, fast_pid
from ecsfusion.controller.decision import Decision
from ecsfusion.controller.probe import Probe
from ecsfusion.controller.reading import Reading
from ecsfusion.diagnostics.duplicate import duplicate
from ecsfusion.diagnostics.short_stage import NUM_READINGS, short_stage
from ecsfusion.evaluation.measurement import Information, Measurement, Scale
from ecsfusion.model.names import CALIBRATED, FUSED
from ecsfusion.pid.linear_share import linear_share

FOLDER = Path(__file__).parent / "results"
RESULTS = FOLDER / "diagnostics.jsonl"
SCALE = Scale(rows=500, chance=0.1)
"""Of the smallest of the suites, which all have ten classes."""
NOISES = (0.3, 1.0, 2.0, 3.0)
SIZES = (
    (60, 3),
    (150, 3),
    (300, 3),
    (40, 10),
    (100, 10),
    (200, 10),
    (500, 10),
    (120, 30),
    (300, 30),
    (600, 30),
)
LEARNT = 0.3
"""Share of what a modality knew at the end of stage 1; where it learnt more afterwards, stage 1 counts as too short."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    # That rows are few is the point.
    warnings.simplefilter("ignore")
    cases = [
        too_short(),
        *(
            copies(noise, alike, args.seeds)
            for alike in (True, False)
            for noise in tqdm(NOISES, unit="noise")
        ),
        *(few_rows(*size, args.seeds) for size in tqdm(SIZES, unit="size")),
    ]
    lines = [{"benchmark": "diagnostics", **case, **environment()} for case in cases]
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for case in cases:
        print(", ".join(f"{key} {value}" for key, value in case.items()))


def too_short() -> dict[str, Any]:
    """Of all modalities at the end of a recorded stage 1: how much those named learnt afterwards, and the others."""
    later: dict[bool, list[float]] = {True: [], False: []}
    for history, afterwards in recorded_ends_of_unimodal_stage():
        named = {finding.about for finding in short_stage(history)}
        for name, accuracies in afterwards.items():
            at_the_end = history[-1].reading.accuracy[name]
            learnt = max(at_the_end - SCALE.chance, 0.02)
            later[name in named].append((max(accuracies) - at_the_end) / learnt)
    return {
        "case": "too short",
        **{
            f"{key}_{word}": value
            for word, values in (("named", later[True]), ("not_named", later[False]))
            for key, value in (
                ("modalities", len(values)),
                ("median_learnt_later", round(statistics.median(values), 3)),
                ("learnt_much_later", sum(value > LEARNT for value in values)),
            )
        },
    }


def recorded_ends_of_unimodal_stage() -> Iterator[tuple[list[Probe], dict[str, Sequence[float]]]]:
    """The probes of each recorded stage 1, and by modality the accuracies of its stage 2."""
    for file in sorted((FOLDER / "compare").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            run = json.loads(line).get("trajectory") or {"stage": []}
            length = sum(stage == 1 for stage in run["stage"])
            if NUM_READINGS <= length < len(run["stage"]) and run["restored"] != [0]:
                names = [key.removeprefix("unique_") for key in run if key.startswith("unique_")]
                yield (
                    [probe(run, names, i, ends_stage=i == length - 1) for i in range(length)],
                    {name: run[f"accuracy_{name}"][length:] for name in names},
                )


def probe(run: Mapping[str, Any], names: Sequence[str], i: int, ends_stage: bool) -> Probe:
    """A recorded probe of stage 1. The noise floor of synergy stands for the floors that are not recorded."""
    unique = {name: run[f"unique_{name}"][i] for name in names}
    # The name that older records have.
    dependence = run.get("dependence") or run["conditional_dependence"]
    information = Information(
        redundancy=run["redundancy"][i],
        unique=unique,
        synergy=run["synergy"][i],
        mutual_information={name: run["redundancy"][i] + bits for name, bits in unique.items()},
        joint_mutual_information=run["redundancy"][i] + sum(unique.values()) + run["synergy"][i],
        conditional_mutual_information=dependence[i],
        floor=dict.fromkeys([*names, "redundancy", "synergy"], run["synergy_floor"][i]),
        num_samples=SCALE.rows,
        num_classes=10,
    )
    measurement = Measurement(
        score="accuracy",
        scores={head: run[f"accuracy_{head}"][i] for head in (*names, FUSED, CALIBRATED)},
        calibration_error={},
        num_rows=SCALE.rows,
        complete_rows=SCALE.rows,
        scale=SCALE,
        information=information,
    )
    training = tuple(name for name in names if name not in run["paused"][i])
    step = run["step"][i]
    restore = run["restored"][0] if ends_stage else None
    return Probe(
        Reading(
            step, epoch=i + 1.0, progress=0.0, stage="unimodal", training=training, measurement=measurement
        ),
        Decision(tuple(names), reason="", ends_stage=ends_stage, restore=restore),
        trained_fused_head=False,
    )


def copies(noise: float, alike: bool, seeds: int) -> dict[str, Any]:
    """Two random encoders of one noisy view of the class, or of two views whose noise is independent."""
    pids, told = [], []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        means = torch.randn(3, 16, generator=generator)
        labels = torch.arange(500) % 3
        draws = [means[labels] + noise * torch.randn(500, 16, generator=generator) for _ in range(2)]
        views = [draws[0], draws[0] if alike else draws[1]]
        embeddings = {
            name: torch.relu(view @ torch.randn(16, 32, generator=generator))
            for name, view in zip(("first", "second"), views, strict=True)
        }
        pids.append(fast_pid(embeddings, labels, method="clusters", bootstrap=0, seed=seed))
        told.append(partial(share_told, embeddings, labels))
    shared = [float(pid.conditional_mutual_information) for pid in pids]
    return {
        "case": "copies" if alike else "independent views",
        "noise": noise,
        "seeds": seeds,
        "information": round(mean_of(pids, "mutual_information"), 3),
        "shared_least": round(min(shared), 3),
        "shared_most": round(max(shared), 3),
        "told_least": round(min(each("first", "second") for each in told), 3),
        "told_most": round(max(each("first", "second") for each in told), 3),
        "named": sum(
            any(duplicate(Information.from_pid(pid), told=each)) for pid, each in zip(pids, told, strict=True)
        ),
    }


def share_told(embeddings: Mapping[str, torch.Tensor], labels: torch.Tensor, name: str, by: str) -> float:
    return linear_share(embeddings[name], embeddings[by], labels)


def mean_of(pids: Sequence[PID], attribute: str) -> float:
    return statistics.mean(float(getattr(pid, attribute).mean()) for pid in pids)


def few_rows(rows: int, classes: int, seeds: int) -> dict[str, Any]:
    """The error of both uniquenesses, redundancy and synergy against those of many rows, and their noise floor."""
    truth = atoms(fast_pid(*drawn(40_000, classes, 10_000), method="clusters", bootstrap=0))
    errors, floors = [], []
    for seed in range(seeds):
        pid = fast_pid(*drawn(rows, classes, seed), method="clusters", bootstrap=0, seed=seed)
        errors.append(atoms(pid) - truth)
        floors.append(float(pid.unique_floor.mean()))
    cells = pid.num_clusters[0] * pid.num_clusters[1]
    return {
        "case": "few rows",
        "rows": rows,
        "classes": classes,
        "share_of_enough": round(rows * math.log(classes) / (cells * (classes - 1)), 3),
        "seeds": seeds,
        "largest_rms_error": round(float(torch.stack(errors).square().mean(0).sqrt().max()), 3),
        "mean_floor": round(statistics.mean(floors), 3),
    }


def drawn(rows: int, classes: int, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A clear and a noisier view (N, 8) of the class, and the labels (N,)."""
    means = torch.randn(classes, 8, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    scales = {"clear": 1.2, "noisy": 0.6}
    return {
        name: scale * means[labels] + torch.randn(rows, 8, generator=generator)
        for name, scale in scales.items()
    }, labels


def atoms(pid: PID) -> torch.Tensor:
    return torch.stack([pid.redundancy, *pid.unique, pid.synergy])


if __name__ == "__main__":
    main()
