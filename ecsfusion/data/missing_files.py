"""What is said of a value that should be a file, or any other value, and is not."""

import os
from typing import Any

MAX_SHOWN = 200
"""The most characters of a value in a message; a picture as base64 has millions."""
ADDRESSES = ("http://", "https://", "s3://", "gs://", "data:")


def shortened(value: Any) -> str:
    """The value as Python writes it, without its middle if that is long."""
    text = repr(value)
    half = MAX_SHOWN // 2
    return text if len(text) <= MAX_SHOWN else f"{text[:half]}...{text[-half:]}"


def is_address(text: Any) -> bool:
    """Whether a value is an address on the network, or a data URI, and no path."""
    return isinstance(text, str) and text.lstrip().lower().startswith(ADDRESSES)


def no_file(text: str) -> str:
    """The sentence for a path of no file: what it is instead, or what was meant, where that shows."""
    remedy = "give an existing file, or its bytes"
    if is_address(text):
        remedy = "addresses are not read: download it, or decode it to bytes"
    elif "\\" in text and os.path.isfile(text.replace("\\", "/")):
        remedy = "with / in place of \\ there is one: write paths so"
    return f"there is no file {shortened(text)}; {remedy}"
