"""The site of the documentation: it builds, its pictures have commands, its messages exist, its notebooks run."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from documented_code import blocks_of
from ranks import ends, start_ranks

import ecsfusion

# The notebooks are executed in processes that are forked from this one, and need not import it each.
import ecsfusion.trainer

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


class _NoTags(yaml.SafeLoader):
    """Reads mkdocs.yml without the Python objects that it names."""


_NoTags.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


@pytest.fixture(scope="module")
def settings():
    return yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=_NoTags)  # noqa: S506


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `mkdocs build --strict` makes it."""
    pytest.importorskip("mkdocs", reason="the site is built where the extra docs is installed")
    pytest.importorskip("mkdocstrings", reason="the site is built where the extra docs is installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_and_asks_no_other_host(site):
    """Strict: every page is in the navigation, and every link, anchor and picture exists."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="?([^">\s]+)', text)
        loaded += re.findall(r'<link[^>]* rel="?(?:stylesheet|preconnect)"?[^>]* href="?([^">\s]+)', text)
        assert not [source for source in loaded if "//" in source], page


def test_every_public_name_is_in_the_reference(site):
    text = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").rglob("index.html"))
    missing = [name for name in ecsfusion.__all__ if f'id="ecsfusion.{name}"' not in text]
    assert missing == []


def test_lists_of_a_page_are_lists_on_the_site(site):
    """Python-Markdown wants an empty line before a list, which GitHub does not."""
    for page in site.rglob("index.html"):
        prose = re.sub(r"<pre.*?</pre>", "", page.read_text(encoding="utf-8"), flags=re.S)
        assert not re.search(r"<p>[^<]*(?:<(?!/p>)[^<]*)*\n- \S", prose), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_pictures_of_a_page_name_the_command_that_makes_them(page):
    text = page.read_text(encoding="utf-8")
    if re.search(r"!\[[^\]]*\]\([^)]*\.png\)", text):
        commands = re.findall(r"python ((?:docs|benchmarks)/\w+\.py)", text.replace("\n", " "))
        assert commands
        assert all((ROOT / command).exists() for command in commands)


def test_the_pictures_of_the_page_on_reading_are_those_of_its_code():
    code = "".join(block.code for block in blocks_of(DOCS / "reading.md"))
    drawn = set(re.findall(r'plot\("(\w+\.png)"\)', code))
    assert drawn == {path.name for path in (DOCS / "pictures").glob("*.png")}
    assert drawn == set(
        re.findall(r"\(pictures/(\w+\.png)\)", (DOCS / "reading.md").read_text(encoding="utf-8"))
    )


# ---- messages ----


def texts_of_the_code() -> list[list[str | None]]:
    """Every long text of library and recipe as its parts, with None for a value that is put in."""
    texts = []
    for path in [*(ROOT / "ecsfusion").rglob("*.py"), *(ROOT / "hf_recipes").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append([part.value if is_text(part) else None for part in node.values])
            elif is_text(node):
                texts.append([node.value])
    # Not one that would fit any message.
    return [text for text in texts if sum(len(part or "") for part in text) > 20]


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def fits(text: list[str | None], quoted: str) -> bool:
    if not all(part in quoted for part in text if part):
        return False
    pattern = "".join(".*" if part is None else re.escape(part) for part in text)
    return re.fullmatch(pattern, quoted) is not None


QUOTED = re.findall(r"```text\n(.*?)\n```", (DOCS / "faq.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def texts():
    return texts_of_the_code()


@pytest.mark.parametrize("quoted", QUOTED, ids=lambda text: text[:40])
def test_a_message_that_is_quoted_is_printed_like_that(quoted, texts):
    assert any(fits(text, quoted) for text in texts)


def test_there_are_messages():
    assert len(QUOTED) > 20


# ---- notebooks ----


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, tmp_path, quick_probes):
    """In a process of its own, as `python docs/notebooks/execute.py` runs it."""
    execute = runpy.run_path(str(DOCS / "notebooks" / "execute.py"))["execute"]
    cells = json.loads(notebook.read_text(encoding="utf-8"))

    def run():
        with contextlib.chdir(tmp_path):
            execute(cells)

    assert ends(start_ranks(run)) == [0]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_its_output_and_opens_on_colab(notebook, settings):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert any(cell.get("outputs") for cell in cells)
    address = settings["repo_url"].removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{address}/blob/main/docs/notebooks/{notebook.name}"
    assert colab in "".join(cells[0]["source"])
    assert colab in (DOCS / "notebooks" / "README.md").read_text(encoding="utf-8")
    # Only there is anything installed, and only the library, from PyPI.
    installs = [cell for cell in cells if "pip" in "".join(cell["source"]) and cell["cell_type"] == "code"]
    assert installs == [cells[1]]
    assert '"google.colab" in sys.modules' in "".join(installs[0]["source"])
