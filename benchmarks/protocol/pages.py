"""Tables in pages of the documentation, each between two markers: nothing there is typed by hand."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
RESULTS_PAGE = ROOT / "docs" / "results.md"


def filled(text: str, marker: str, table: str) -> str:
    """The text of a page with this table between `<!-- MARKER -->` and `<!-- end of MARKER -->`.

    Raises:
        ValueError: the markers are not there once each.
    """
    first, last = f"<!-- {marker} -->", f"<!-- end of {marker} -->"
    if text.count(first) != 1 or text.count(last) != 1:
        raise ValueError(f"the page must have {first} and {last} once each.")
    before, rest = text.split(first)
    return f"{before}{first}\n{table.strip()}\n{last}{rest.split(last)[1]}"


def fill(page: Path, marker: str, table: str) -> None:
    """Write a table into a page; see `filled`."""
    page.write_text(filled(page.read_text(encoding="utf-8"), marker, table), encoding="utf-8")
