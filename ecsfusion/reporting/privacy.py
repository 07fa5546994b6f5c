"""What must not be published: paths of this machine, and tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

# A Hub token is "hf_" and 34 letters and digits. 16 leave a margin, and let "hf_recipes" pass.
_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}")
# A path: "~/x", "../x", "./x", "file://x", "C:\x", or two components from the root. A slash after a letter, a
# digit, ":" or "/" belongs to a URL or to a name on the Hub.
_LOCAL_PATH = re.compile(r"(?<![\w.:/~-])(?:~[\w.-]*/|\.{1,2}/|/[\w.@+~-]+/[\w.@+~-]+)|file://|\b[A-Za-z]:\\")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


def hub_name(name: str | None) -> str | None:
    """Return `name` where it can be a name on the Hugging Face Hub, and None for a path.

    A name that exists as a file or folder here is taken for a path.
    """
    if name is None or not _HUB_NAME.fullmatch(name) or Path(name).exists():
        return None
    return name


def check_no_secrets(text: str, forbidden: Iterable[str | Path] = ()) -> None:
    """Refuse a text that names a local path or carries a Hub token.

    Args:
        text: what is about to be written or uploaded.
        forbidden: further paths that must not appear, as given or made absolute (output folder, data folder). The home
            folder is always among them.

    Raises:
        ValueError: it names the line and what is in it; a token is not repeated.
    """
    paths = {str(Path.home())}
    for path in forbidden:
        paths.add(str(Path(path).absolute()))
        # A bare word such as "output" may well be part of a sentence.
        if len(Path(path).parts) > 1:
            paths.add(str(path))
    named = re.compile(r"(?<![\w.:/~-])(?:" + "|".join(map(re.escape, sorted(paths - {"/"}))) + r")\b")
    for number, line in enumerate(text.splitlines(), start=1):
        if _TOKEN.search(line):
            raise ValueError(f"line {number} holds what looks like a Hub token; remove it before publishing.")
        local = _LOCAL_PATH.search(line) or named.search(line)
        if local:
            raise ValueError(
                f"line {number} holds the local path {local.group(0)!r}; name the model or the data by its "
                f"name on the Hub or in plain words: {line.strip()[:200]!r}"
            )
