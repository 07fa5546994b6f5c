"""Is the peak of synergy the right moment for joint training? The starting point swept, and what is measured there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib import pyplot as plt
from scipy.stats import spearmanr

PREFIX = "start-at-"
MIN_SHARES = 3


def starts(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each run that was switched at a given share of the budget: its accuracy, and the probe at the switch.

    None, where fewer than `MIN_SHARES` shares were tried: one alone is an ablation, and sweeps nothing.
    """
    runs = []
    for line in lines:
        if not line["method"].startswith(PREFIX):
            continue
        trajectory = line["trajectory"]
        last = max(place for place, stage in enumerate(trajectory["stage"]) if stage == 1)
        modalities = [key.removeprefix("unique_") for key in trajectory if key.startswith("unique_")]
        runs.append(
            {
                "share": int(line["method"].removeprefix(PREFIX)),
                "seed": line["seed"],
                "accuracy": 100 * line["test_accuracy"],
                "fused": 100 * line["test"]["fused"],
                "synergy": trajectory["synergy"][last],
                "redundancy": trajectory["redundancy"][last],
                "unimodal": mean(100 * trajectory[f"accuracy_{name}"][last] for name in modalities),
            }
        )
    return runs if len({run["share"] for run in runs}) >= MIN_SHARES else []


def starts_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Rank correlation over all these runs of what is measured at the switch with the test accuracy in the end."""
    runs = starts(lines)
    rows = [
        "| at the switch | rank correlation with the fused head's test accuracy | p |",
        "| --- | --- | --- |",
    ]
    for what in ("synergy", "redundancy", "unimodal", "share"):
        result = spearmanr([run[what] for run in runs], [run["fused"] for run in runs])
        label = (
            "mean unimodal accuracy"
            if what == "unimodal"
            else "share of the budget"
            if what == "share"
            else what
        )
        rows.append(f"| {label} | {result.statistic:+.2f} | {result.pvalue:.2g} |")
    return "\n".join(rows)


def plot_starts(lines: Sequence[Mapping[str, Any]], name: str, path: Path) -> None:
    """Accuracy in the end, and synergy at the switch, against the share of the budget that stage 1 took."""
    runs = starts(lines)
    shares = sorted({run["share"] for run in runs})
    figure, (above, below) = plt.subplots(2, 1, figsize=(6.5, 5), sharex=True, layout="constrained")
    for axes, what, label in (
        (above, "fused", "fused head"),
        (above, "accuracy", "all heads, calibrated"),
        (below, "synergy", "synergy at the switch"),
    ):
        values = [[run[what] for run in runs if run["share"] == share] for share in shares]
        spread = [stdev(v) if len(v) > 1 else 0.0 for v in values]
        axes.errorbar(
            shares, [mean(v) for v in values], yerr=spread, marker="o", markersize=4, capsize=2, label=label
        )
    above.set_ylabel("test accuracy, %")
    above.set_title(
        f"{name}: joint training started after a share of the budget; mean and sd of seeds", fontsize=9
    )
    below.set_ylabel("bits")
    below.set_xlabel("share of the budget that unimodal training took, %")
    for axes in (above, below):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
