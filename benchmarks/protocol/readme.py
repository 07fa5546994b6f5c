"""Tables in the README, between two markers: nothing there is typed by hand."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def fill(marker: str, text: str, path: Path = README) -> None:
    """Replace what is between `<!-- MARKER -->` and `<!-- end of MARKER -->`.

    Raises:
        ValueError: the markers are not there.
    """
    first, last = f"<!-- {marker} -->", f"<!-- end of {marker} -->"
    old = path.read_text(encoding="utf-8")
    if old.count(first) != 1 or old.count(last) != 1:
        raise ValueError(f"{path.name} must have {first} and {last} once each.")
    before, rest = old.split(first)
    after = rest.split(last)[1]
    path.write_text(f"{before}{first}\n{text.strip()}\n{last}{after}", encoding="utf-8")
