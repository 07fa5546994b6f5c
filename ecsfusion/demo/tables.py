"""Answers, contributions, measurements and errors as HTML; every text in it is escaped."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

from ecsfusion.demo.answers import RowAnswer
from ecsfusion.model.names import CALIBRATED, FUSED
from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION
from ecsfusion.pid.decomposition import PID
from ecsfusion.reporting.heads import COMBINED_HEADS, head_label

MAX_CLASSES = 10
"""The most classes that a table lists."""


def error_html(sentence: str) -> str:
    """A sentence that says what went wrong."""
    sentence = " ".join(sentence.split()) or "Something went wrong."
    return f'<p class="ecs-error" role="alert">{escape(sentence[:1].upper() + sentence[1:])}</p>'


def answer_html(row: RowAnswer) -> str:
    """The answer in a sentence, and a table of the probabilities of all heads."""
    is_regression = row.problem_type == REGRESSION
    order = sorted(range(len(row.labels)), key=lambda index: -row.answer[index])
    if is_regression:
        order, said = list(range(len(row.labels))), "The prediction is"
        best = ", ".join(f"{row.labels[i]} = {row.answer[i]:.4g}" for i in order[:MAX_CLASSES])
    elif row.problem_type == MULTI_LABEL:
        likely = [i for i in order if row.answer[i] > 0.5]
        said, best = "The labels are", ", ".join(row.labels[i] for i in likely) or "none"
    else:
        said, best = "The answer is", f"{row.labels[order[0]]} ({row.answer[order[0]]:.1%})"
    missing = f", without {' and '.join(row.missing)}" if row.missing else ""
    columns = {CALIBRATED: row.answer} if row.is_calibrated else {}
    columns |= row.heads
    labels = [_head_title(head, row) for head in columns]
    cells = [
        [row.labels[i], *(_number(values[i], is_regression) for values in columns.values())]
        for i in order[:MAX_CLASSES]
    ]
    shown = (
        f"<p>The {MAX_CLASSES} most probable of {len(order)} classes.</p>" if len(order) > MAX_CLASSES else ""
    )
    return (
        f'<p class="ecs-answer">{said} <strong>{escape(best)}</strong>{escape(missing)}.</p>'
        + _table(["" if is_regression else "class", *labels], cells)
        + shown
    )


def contributions_html(row: RowAnswer) -> str:
    """What each modality adds to the answer, as bars."""
    if not row.contributions:
        return f"<p>{escape(row.why_no_contributions)}</p>"
    top = max(abs(value) for values in row.contributions.values() for value in values) or 1.0
    is_regression = row.problem_type == REGRESSION
    cells = []
    for name, values in row.contributions.items():
        for label, value in zip(row.labels if is_regression else [""], values, strict=True):
            side = "ecs-for" if value >= 0 else "ecs-against"
            bar = f'<span class="ecs-bar {side}" style="width:{100 * abs(value) / top:.1f}%"></span>'
            cells.append([name if not label else f"{name}, {label}", _Markup(bar), f"{value:+.2f}"])
    unit = "in the unit of the target" if is_regression else "bits"
    if is_regression:
        meaning = "The numbers of a target add up to how far its prediction is from the mean of the targets."
    elif row.problem_type == MULTI_LABEL:
        meaning = "The numbers add up to log2 of how much more probable the answer is than by the labels' frequencies."
    else:
        i = max(range(len(row.answer)), key=row.answer.__getitem__)
        meaning = (
            f"The numbers add up to log2 of how many times more probable {row.labels[i]!r} is for this row than by its "
            "frequency alone: 1 bit doubles the probability, and a negative number speaks against the answer."
        )
    return _table(["modality", "", unit], cells) + f"<p>{escape(meaning)}</p>"


def pids_html(pids: Mapping[str, PID]) -> str:
    """The picture and the table of each decomposition."""
    parts = []
    for name, pid in pids.items():
        title = f"<h3>{escape(name)}</h3>" if len(pids) > 1 else ""
        stream = io.BytesIO()
        pid.plot().savefig(stream, dpi=110, format="png")
        picture = picture_html(
            f"Redundancy, uniqueness and synergy of {name}, in bits",
            b64encode(stream.getvalue()).decode("ascii"),
        )
        parts.append(f'{title}{picture}<div class="ecs-table">{pid._repr_html_()}</div>')
    return "".join(parts)


def picture_html(caption: str, png: str) -> str:
    """A PNG in base64 with its caption. Nothing is served from the disk for it."""
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{png}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


class _Markup(str):
    """A cell that is HTML already."""


def _head_title(head: str, row: RowAnswer) -> str:
    if head == CALIBRATED:
        return "calibrated: all heads together"
    if head == FUSED and not row.is_fused_asked:
        return f"{COMBINED_HEADS[FUSED]} (not asked, as {' and '.join(row.missing)} is missing)"
    return head_label(head)


def _number(value: float, is_regression: bool) -> str:
    if is_regression:
        return f"{value:.4g}"
    bar = f'<span class="ecs-bar ecs-for" style="width:{100 * value:.1f}%"></span>'
    return _Markup(f'<span class="ecs-cell">{bar}<span>{value:.1%}</span></span>')


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in headers)
    body = "".join(
        "<tr>" + "".join(f"<td>{c if isinstance(c, _Markup) else escape(c)}</td>" for c in row) + "</tr>"
        for row in rows
    )
    return f'<div class="ecs-table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
