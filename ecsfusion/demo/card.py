"""What the page shows of a model's card: its text without pictures from elsewhere, and the pictures beside it."""

from __future__ import annotations

import io
import re
from base64 import b64encode
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.utils import cached_file

PICTURES = {
    "trajectory.png": "How it was trained: what each modality knew, and which trained, step by step",
    "contributions.png": "What each modality contributes to the answers of the evaluation rows",
    "reliability.png": "Whether the probabilities are right: accuracy by confidence, before and after calibration",
}
"""Pictures that a run writes beside its card, and what they show."""
MAX_CARD_BYTES = 2**20
MAX_PICTURE_BYTES = 5 * 2**20
NO_CARD = "This model has no card. `trainer.create_model_card()` writes one beside it."


def card_of(model: Any) -> list[tuple[str, tuple[str, str] | None]]:
    """The card of the folder or repository that a model was loaded from.

    A card may be somebody else's: markup and pictures from elsewhere are left out, because a browser would ask other
    servers for them.

    Returns:
        Parts of its text as Markdown, each with the picture that follows it, or None: what the picture shows, and the
        picture as PNG in base64.
    """
    content = _file(model, "README.md", MAX_CARD_BYTES)
    if content is None:
        return [(NO_CARD, None)]
    text = content.decode("utf-8", errors="replace")
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    # Texts at even places, names of pictures between them.
    parts = re.split(rf"!\[[^\]]*\]\(({'|'.join(map(re.escape, PICTURES))})\)", text)
    return [
        (_plain(part), _picture(model, name))
        for part, name in zip_longest(parts[::2], parts[1::2], fillvalue="")
    ]


def _plain(text: str) -> str:
    """Markdown without pictures, and with markup as text."""
    text = re.sub(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])?", "", text)
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text).strip()


def _picture(model: Any, name: str) -> tuple[str, str] | None:
    content = _file(model, name, MAX_PICTURE_BYTES) if name else None
    if content is None or not _is_png(content):
        return None
    return PICTURES[name], b64encode(content).decode("ascii")


def _file(model: Any, name: str, limit: int) -> bytes | None:
    """The content of a file beside the model; None where there is none, or where it is too large."""
    if not model.name_or_path:
        return None
    try:
        found = cached_file(
            model.name_or_path, name, _raise_exceptions_for_missing_entries=False, **model.hub_options
        )
    except OSError:
        # The Hub is away; the model itself was in the cache.
        return None
    if found is None or Path(found).stat().st_size > limit:
        return None
    return Path(found).read_bytes()


def _is_png(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.verify()
    except Exception:
        # Pillow raises errors of many types for damaged files.
        return False
    return True
