"""Draws the pictures of docs/reading.md, by executing its code in docs/pictures/.

python docs/pictures.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent


def main() -> None:
    """Execute the blocks of the page in one namespace; each picture is written by the code that is shown."""
    os.chdir(DOCS / "pictures")
    names: dict[str, object] = {}
    text = (DOCS / "reading.md").read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(code, names)  # noqa: S102  (this very code is what is shown)


if __name__ == "__main__":
    main()
