"""Executes the notebooks of this folder as plain Python, cell by cell, and keeps what they print as their output.

    python docs/notebooks/execute.py            # writes the outputs into the notebooks
    python docs/notebooks/execute.py --check    # writes nothing; an error in a cell ends it with status 1

It works in an empty folder, so that nothing is left behind.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def execute_cell(code: str, names: dict[str, Any]) -> str:
    """What a cell prints, and the value of its last expression below, as Jupyter shows it."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), names)  # noqa: S102  (the notebooks are ours)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # noqa: S307
            if value is not None:
                print(value)
    return printed.getvalue()


def execute(notebook: dict[str, Any]) -> None:
    """Execute the cells of a notebook in one namespace, and put what they print into it."""
    names: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        number += 1
        text = execute_cell("".join(cell["source"]), names)
        cell["execution_count"] = number
        lines = text.splitlines(keepends=True)
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}] if text else []


def main() -> None:
    """Execute every notebook."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            execute(notebook)
        if not check:
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path.name} was executed")


if __name__ == "__main__":
    main()
