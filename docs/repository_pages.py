"""Hooks of mkdocs: pages and pictures of the repository that lie outside of `docs/`, and the links to them.

The pages are written for a reader on GitHub, where a link is relative to its file. On the site the README is the
home, other pages and the pictures keep their paths, and whatever else is linked, such as code, is shown on GitHub.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
HOME = "index.md"
OUTSIDE = (
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "benchmarks/results/compare/tables.md",
    "kernels/README.md",
)
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", flags=re.DOTALL)


def place_on_site(path: Path) -> str:
    """The path of a file on the site, relative to its root."""
    if path in (ROOT / "README.md", DOCS / "README.md"):
        return HOME
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, and the pictures that pages show."""
    added = [ROOT / "README.md", *(ROOT / page for page in OUTSIDE)]
    for page in [*added, *DOCS.rglob("*.md")]:
        for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
            picture = (page.parent / target).resolve()
            if picture.suffix in (".png", ".svg") and picture.is_file():
                added.append(picture)
    for path in added:
        place = place_on_site(path)
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let each link to a file of the repository lead to its place on the site, or to GitHub."""
    source = Path(page.file.abs_src_path or "")
    up = "../" * page.file.src_uri.count("/")

    def moved(link: re.Match[str]) -> str:
        path, anchor = (source.parent / link[1]).resolve(), link[2] or ""
        if "://" in link[1] or not path.exists():
            return link[0]  # mkdocs says what does not exist
        place = place_on_site(path)
        file = files.get_file_from_path(place)
        if file is not None and file.inclusion.is_included():
            return f"]({up}{place}{anchor})"
        kind = "tree" if path.is_dir() else "blob"
        return f"]({config.repo_url.rstrip('/')}/{kind}/main/{path.relative_to(ROOT).as_posix()}{anchor})"

    return LINK.sub(moved, FRONT_MATTER.sub("", markdown))
