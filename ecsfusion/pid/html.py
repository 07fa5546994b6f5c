"""A partial information decomposition as the table that a notebook shows."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ecsfusion.pid.decomposition import PID


def html_of_pid(pid: PID) -> str:
    """The atoms and the information of each modality in bits, with intervals, noise floors and proven values.

    Args:
        pid: of a single table; of a batch only its size is shown.
    """
    title, *lines = str(pid).splitlines()
    if pid.redundancy.ndim:
        return f"<p>{escape(title)}</p>"
    rows = []
    for label, value, floor, interval in pid._atoms():
        ends = "" if interval is None else f"{float(interval[0]):.4f} to {float(interval[1]):.4f}"
        rows.append([label, f"{float(value):.4f}", ends, "" if floor is None else f"{float(floor):.4f}", ""])
    proven: list[float | None] = [None] * (len(pid.names) + 1)
    if pid.held_out is not None:
        proven = [*pid.held_out.mutual_information.tolist(), float(pid.held_out.joint_mutual_information)]
    known = [*pid.mutual_information.tolist(), float(pid.joint_mutual_information)]
    for name, value, bound in zip([*pid.names, "all"], known, proven, strict=True):
        rows.append([f"I({name}; label)", f"{value:.4f}", "", "", "" if bound is None else f"{bound:.4f}"])
    # What the text says below its columns: of few rows, and how exact the values are.
    notes = lines[len(rows) :]
    headers = ["", "bits", "interval", "noise", "at least"]
    is_used = [any(row[column] for row in rows) for column in range(len(headers))]
    body = "".join(_row("td", row, is_used) for row in rows)
    return (
        f"<table><caption>{escape(title)}</caption><thead>{_row('th', headers, is_used)}</thead><tbody>{body}</tbody>"
        f"</table><p>{'<br>'.join(escape(note.strip()) for note in notes)}</p>"
    )


def _row(tag: str, cells: Sequence[str], is_used: Sequence[bool]) -> str:
    inner = "".join(
        f"<{tag}>{escape(cell)}</{tag}>" for cell, used in zip(cells, is_used, strict=True) if used
    )
    return f"<tr>{inner}</tr>"
