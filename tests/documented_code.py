"""The Python and shell code of a page: its blocks in order, and a page that is executed as a reader would type it."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ecsfusion.cli import main as ecsfusion_command

FENCE = re.compile(
    r"(?:^ *<!-- (?P<mark>[^\n]*) -->\n)?^ *```(?P<language>\w+)\n(?P<code>.*?)^ *```", flags=re.M | re.S
)
NOT_EXECUTED = "not executed: "
IN_THE_GATE = ("main job", "tests")
"""Marks of the commands that the gate executes, word for word, in empty environments."""


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: as behind the fence.
        code: its text.
        reason: why no test of a page executes it; None for one that is executed.
    """

    language: str
    code: str
    reason: str | None


@dataclass(frozen=True)
class Executed:
    """What executing a block left: the names of its page after it, and what it printed."""

    block: Block
    names: Mapping[str, object]
    printed: str


def blocks_of(page: Path) -> list[Block]:
    """All blocks of Python and shell code."""
    blocks = []
    for found in FENCE.finditer(page.read_text(encoding="utf-8")):
        mark = found["mark"] or ""
        reason = mark.removeprefix(NOT_EXECUTED) if mark.startswith(NOT_EXECUTED) else None
        if mark in IN_THE_GATE:
            reason = "the gate executes it"
        if found["language"] in ("python", "bash"):
            blocks.append(Block(found["language"], found["code"], reason))
    return blocks


def execute_page(page: Path, names: dict[str, object], stand_ins: Mapping[str, str]) -> list[Executed]:
    """Execute the blocks of a page in one namespace, in the present folder.

    Args:
        page: a Markdown file.
        names: what the page takes for granted, such as a data set.
        stand_ins: texts in the code, and what is put in their place, such as a tiny model for one of the Hub.
    """
    done = []
    for block in blocks_of(page):
        if block.reason is not None:
            continue
        code = block.code
        for shown, stand_in in stand_ins.items():
            code = code.replace(shown, stand_in)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if block.language == "python":
                exec(compile(code, page.name, "exec"), names)  # noqa: S102  (this very code is what is shown)
            else:
                execute_commands(code)
        done.append(Executed(block, dict(names), printed.getvalue()))
    return done


def execute_commands(code: str) -> None:
    """Execute lines of shell code that call the library's own command; others need a mark with the reason."""
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[:2] == ["pip", "install"]:
            continue
        if words[0] != "ecsfusion":
            raise ValueError(
                f"{line!r} is no command that a test can execute; mark its block with the reason"
            )
        if ecsfusion_command(words[1:]) != 0:
            raise ValueError(f"{line!r} has failed")
