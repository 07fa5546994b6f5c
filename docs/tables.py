"""Writes the tables of the documentation: strategies, rules, logged values, and the fields of `TrainingArguments`.

    python docs/tables.py            # writes the tables
    python docs/tables.py --check    # only checks whether they are up to date; the exit status is 1 if they are not

Do not edit the text between the markers of a table by hand.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import textwrap
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.append(str(Path(__file__).resolve().parent))

from arguments import arguments_table
from protocol.pages import filled

from ecsfusion.controller.registry import RULES
from ecsfusion.evaluation.logged_values import logged_names
from ecsfusion.strategies import STRATEGIES, Strategy

DOCS = Path(__file__).resolve().parent


def first_sentence(thing: type) -> str:
    """The first paragraph of a docstring on one line, as the cell of a table."""
    paragraph = (inspect.getdoc(thing) or "").split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


def options_of(kind: type) -> str:
    """The options of a strategy or a rule with their defaults."""
    shown = []
    for option in inspect.signature(kind).parameters.values():
        if option.kind is not option.KEYWORD_ONLY:
            continue
        default = "" if option.default is option.empty else f"={default_text(option.default)}"
        shown.append(f"`{option.name}{default}`")
    return ", ".join(shown)


def default_text(value: object) -> str:
    """A default value as text; floating-point numbers with four digits."""
    if isinstance(value, tuple):
        return f"({', '.join(default_text(part) for part in value)})"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def demands_of(kind: type[Strategy]) -> str:
    """The demands of a strategy on the run."""
    demands = {
        "two modalities": kind.only_two,
        "one process": kind.only_one_process,
        "no float16": kind.not_fp16,
        "one label a row": kind.only_single_label,
        "evaluations": kind.needs_evaluations,
        f"fused head `{kind.only_fusion}`": kind.only_fusion,
    }
    return ", ".join(demand for demand, reason in demands.items() if reason)


def strategies_table() -> str:
    """One row per strategy."""
    rows = [
        "| strategy | what it does | stages | unimodal losses | options | only for |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, kind in STRATEGIES.items():
        # The weight is that of the losses in stage 2, which a unimodal strategy does not have.
        weight = kind.auxiliary_weight
        losses = "" if kind.stages == "unimodal" else "as given" if weight is None else f"{weight:g}"
        link = f"[`{name}`](../{file_of(kind)})"
        cells = [link, first_sentence(kind), kind.stages, losses, options_of(kind), demands_of(kind)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def rules_table() -> str:
    """One row per rule."""
    rows = ["| rule | what it does | options |", "| --- | --- | --- |"]
    for name, kind in RULES.items():
        rows.append(f"| [`{name}`](../{file_of(kind)}) | {first_sentence(kind)} | {options_of(kind)} |")
    return "\n".join(rows)


def logged_values_list() -> str:
    """The keys of an evaluation's log, for a modality called NAME."""
    keys = ", ".join(f"`{name}`" for name in logged_names(("NAME",), "accuracy", with_optional=True))
    text = (
        f"{keys}. In regression `r2` takes the place of `accuracy`, and the calibration errors are left out; "
        "`dependence` is there only where a rule asks for it, or embeddings are clustered."
    )
    return textwrap.fill(text, width=118, break_on_hyphens=False)


def file_of(kind: type) -> str:
    """The path of the file of a class, from the root of the repository."""
    return f"{kind.__module__.replace('.', '/')}.py"


TABLES = {
    ("strategies.md", "strategies"): strategies_table,
    ("strategies.md", "rules"): rules_table,
    ("training.md", "logged values"): logged_values_list,
    ("arguments.md", "arguments"): arguments_table,
}


def outdated_pages() -> dict[Path, str]:
    """The new text of every page that is not up to date."""
    new: dict[Path, str] = {}
    for (page, marker), table in TABLES.items():
        path = DOCS / page
        text = new.get(path, path.read_text(encoding="utf-8"))
        new[path] = filled(text, marker, table())
    return {path: text for path, text in new.items() if text != path.read_text(encoding="utf-8")}


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    pages = outdated_pages()
    for path, text in pages.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        print(f"{path.name} {'is not up to date' if check else 'was written'}")
    return int(check and bool(pages))


if __name__ == "__main__":
    sys.exit(main())
