"""A picture of a partial information decomposition."""

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_pid(pid: Any, path: str | None = None) -> Figure:
    """Bars of the atoms in bits, with the confidence interval and the noise floor where known.

    Redundancy, the uniqueness of each modality and synergy from left to right; an interval is a vertical line,
    a noise floor a dashed one across the bar: a bar below it says nothing. Saved to `path` when given (the
    format follows its suffix). Raises ValueError for a batch of tables: draw one at a time.

    Args:
        pid: an `ecsfusion.PID`.
        path: where to save the picture.
    """
    if pid.redundancy.ndim:
        raise ValueError(f"pid holds {pid.redundancy.numel()} tables; plot one at a time")
    labels = ["redundancy", *(f"unique\n{name}" for name in pid.names), "synergy"]
    values = [float(pid.redundancy), *pid.unique.tolist(), float(pid.synergy)]
    colors = [
        "#8c8c8c",
        *(["#4477aa", "#66ccee", "#228833", "#ccbb44"][i % 4] for i in range(len(pid.names))),
        "#ee6677",
    ]

    figure = Figure(figsize=(1.6 + 1.1 * len(values), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.bar(range(len(values)), values, width=0.62, color=colors)
    top = max([*values, 1e-3])
    ends, bottom = list(values), min(0.0, *values)
    if (
        pid.redundancy_interval is not None
        and pid.unique_interval is not None
        and pid.synergy_interval is not None
    ):
        intervals = [
            pid.redundancy_interval.tolist(),
            *pid.unique_interval.tolist(),
            pid.synergy_interval.tolist(),
        ]
        for i, (low, high) in enumerate(intervals):
            axes.plot([i, i], [low, high], color="black", linewidth=1.4, solid_capstyle="butt")
            ends[i], bottom = max(ends[i], high), min(bottom, low)
    if pid.redundancy_floor is not None and pid.unique_floor is not None and pid.synergy_floor is not None:
        floors = [float(pid.redundancy_floor), *pid.unique_floor.tolist(), float(pid.synergy_floor)]
        for i, floor in enumerate(floors):
            axes.plot(
                [i - 0.42, i + 0.42], [floor, floor], color="black", linewidth=1.2, linestyle=(0, (3, 2))
            )
            ends[i] = max(ends[i], floor)
        axes.plot([], [], color="black", linewidth=1.2, linestyle=(0, (3, 2)), label="noise floor")
        axes.legend(frameon=False, loc="best", fontsize=9)
    top = max([top, *ends])
    for i, (value, end) in enumerate(zip(values, ends, strict=True)):
        axes.annotate(f"{value:.3f}", (i, end), (0, 4), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xticks(range(len(values)), labels)
    axes.set_ylim(1.05 * bottom, 1.16 * top)
    axes.set_ylabel("bits")
    axes.spines[["top", "right"]].set_visible(False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
