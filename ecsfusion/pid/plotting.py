"""The picture of a partial information decomposition. Only this module imports matplotlib."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NEEDS_LATEX = "pgf"


def check_picture_path(path: str) -> None:
    """Check that a picture can be written to `path`, before the work that it shows.

    Raises:
        ValueError: for a suffix that is no format of pictures, or a folder that does not exist.
    """
    formats = sorted(set(FigureCanvasAgg.get_supported_filetypes()) - {NEEDS_LATEX})
    suffix = Path(path).suffix.lower().removeprefix(".")
    # Without a suffix, matplotlib writes PNG.
    if suffix and suffix not in formats:
        raise ValueError(
            f"{path!r} ends in {suffix!r}, which is no format of pictures; give one of {', '.join(formats)}"
        )
    folder = Path(path).parent
    if not folder.is_dir():
        raise ValueError(
            f"there is no folder {str(folder)!r} for the picture {path!r}; make it, or give another one"
        )


def plot_pid(pid: Any, path: str | None = None) -> Figure:
    """Bars of the atoms in bits, with the confidence interval and the noise floor where known.

    From left to right: redundancy, the uniqueness of each modality, synergy. An interval is a vertical line, a noise
    floor a dashed line across the bar. A bar below its noise floor may be noise alone.

    Args:
        pid: an `ecsfusion.PID` of a single table.
        path: the file to save the picture to, in the format of its suffix; None to save nothing.

    Raises:
        ValueError: for a batch of tables, and a path that is no picture's.
    """
    if path is not None:
        check_picture_path(path)
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
