"""What the page's inputs hold, as raw values for the processor: contents of files, texts, numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ecsfusion.data.media import seconds_of

MAX_FILE_BYTES = 50 * 2**20
"""Largest file that the page takes."""
MAX_SECONDS = 300.0
"""Longest sound."""
MAX_FRAMES = 256
"""Most frames of a video."""
MAX_CHARACTERS = 50_000
"""Longest text, and longest row of numbers as it is written."""


def raw_value(kind: str, value: Any) -> Any:
    """The raw value of one input of the page; None where it is empty.

    Files are read here, so that no path of the page reaches a processor.

    Args:
        kind: as `FusionProcessor.kind` names it.
        value: the path of an uploaded file, for a video a list of paths, or a text.

    Raises:
        ValueError: a file, sound or text that is too large, or a text that holds no numbers.
    """
    if value is None or value in ("", []):
        return None
    if kind == "image":
        return {"bytes": _content(value)}
    if kind == "video":
        if len(value) > MAX_FRAMES:
            raise ValueError(f"the video has {len(value)} frames; the page takes at most {MAX_FRAMES}.")
        return [{"bytes": _content(path)} for path in value]
    if kind == "audio":
        content = _content(value)
        seconds = seconds_of(content, None)
        if seconds > MAX_SECONDS:
            raise ValueError(
                f"the sound lasts {seconds:.0f} seconds; the page takes at most {MAX_SECONDS:.0f}."
            )
        return {"bytes": content}
    text = str(value)
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the text has {len(text):,} characters; the page takes at most {MAX_CHARACTERS:,}.")
    if not text.strip():
        return None
    return text if kind == "text" else numbers_of(text)


def numbers_of(text: str) -> list[float] | list[list[float]]:
    """A row of numbers, or a time series with a line for each step.

    Args:
        text: numbers with commas, semicolons or spaces between them.

    Raises:
        ValueError: a word that is no finite number, or lines of different lengths.
    """
    lines = [_numbers_of_line(line) for line in text.strip().splitlines() if line.strip()]
    if any(len(line) != len(lines[0]) for line in lines):
        raise ValueError(
            f"the lines have {sorted({len(line) for line in lines})} numbers; give as many in every line, one line for "
            "each step of a series."
        )
    return lines[0] if len(lines) == 1 else lines


def _numbers_of_line(line: str) -> list[float]:
    numbers = []
    for word in re.split(r"[\s,;]+", line.strip(" \t,;")):
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                f"{word[:40]!r} is no number; give numbers such as 0.5, with commas or spaces between them."
            )
        numbers.append(number)
    return numbers


def _content(path: str | Sequence[str]) -> bytes:
    file = Path(str(path))
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(
            f"the file has {size / 2**20:.0f} MiB; the page takes at most {MAX_FILE_BYTES // 2**20}."
        )
    return file.read_bytes()
