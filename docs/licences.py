"""Writes `docs/licences.md`: the packages that the library and its extras bring, with their licences.

    python docs/licences.py            # writes the page, of the packages that are installed here
    python docs/licences.py --check    # writes nothing; the exit status is 1 if the page says otherwise

Install `ecsfusion[all]` first. What a package says of itself is in its metadata.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
LONGEST = 60
"""Characters of a licence's name; what is longer is its text."""
INTRODUCTION = """# Licences

ecsfusion is under the [Apache License 2.0](../LICENSE). It brings no code of others; `pip` installs the packages below.
Each is listed where it is first needed, with the licence that its own metadata names; `python docs/licences.py` writes
the page of what is installed, and a test compares the two.

What the metadata does not say: the wheels of soundfile contain libsndfile (LGPL 2.1 or later), those of NumPy and SciPy
OpenBLAS and the runtime of GCC. The listed torch is that for the CPU; with CUDA it brings packages of NVIDIA, which
have NVIDIA's own licences.
"""


class Row(NamedTuple):
    """A package of the page."""

    name: str
    version: str
    licence: str


def licence_of(package: Distribution) -> str:
    """The licence that the metadata of a package names, the newest field first."""
    metadata = package.metadata
    expression = metadata.get("License-Expression")
    if expression:
        return " ".join(expression.split())
    classifiers = metadata.get_all("Classifier") or []
    named = [text.split(" :: ")[-1] for text in classifiers if text.startswith("License :: ")]
    named = [name for name in named if name != "OSI Approved"]
    if named:
        return ", ".join(named)
    text = " ".join((metadata.get("License") or "").split())
    return text if 0 < len(text) <= LONGEST else "see its files"


def brought_by(requirements: list[str], seen: set[str]) -> list[Row]:
    """The installed packages that requirements lead to, sorted, without those seen before, which are added to it."""
    rows = []
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(requirement.name)
        key = name + "".join(f"[{extra}]" for extra in sorted(requirement.extras))
        if key in seen or name == "ecsfusion":
            continue
        is_new = name not in seen
        seen |= {key, name}
        package = distribution(name)
        if is_new:
            rows.append(Row(name, package.version.partition("+")[0], licence_of(package)))
        for text in package.requires or []:
            needed = Requirement(text)
            extras = ["", *requirement.extras]
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                waiting.append(needed)
    return sorted(rows)


def rows_by_extra() -> dict[str, list[Row]]:
    """The packages of the base, and of each extra those that none before it brings.

    Raises:
        PackageNotFoundError: one of them is not installed.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    seen: set[str] = set()
    groups = {"": brought_by(project["dependencies"], seen)}
    # Up to the one that is all of them; what follows is for those who develop it.
    for name in list(extras)[: list(extras).index("all")]:
        groups[name] = brought_by(extras[name], seen)
    return groups


def page() -> str:
    """The text of the page."""
    parts = [INTRODUCTION]
    for name, rows in rows_by_extra().items():
        title = f"## `pip install ecsfusion`{f' with the extra `{name}`' if name else ''}"
        table = ["| package | version | licence |", "| --- | --- | --- |"]
        table += [f"| {row.name} | {row.version} | {row.licence} |" for row in rows]
        parts += [title, "\n".join(table) if rows else "Nothing more."]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    try:
        text = page()
    except PackageNotFoundError as error:
        parser.error(f"{error.name} is not installed; run: pip install -e '.[all]'")
    is_current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    print(f"{PAGE.name} {'is up to date' if is_current else 'is not up to date' if check else 'was written'}")
    return int(check and not is_current)


if __name__ == "__main__":
    sys.exit(main())
