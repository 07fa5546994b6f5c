"""Which values say that a row lacks a modality: None, and what pandas puts in its place."""

from __future__ import annotations

import numbers
from typing import Any

PANDAS_TYPES = ("NAType", "NaTType")
"""Types of `pandas.NA` and `pandas.NaT`, by name: pandas need not be installed."""


def is_missing(value: Any) -> bool:
    """Whether a raw value is none: None, NaN, `pandas.NA` or `pandas.NaT`.

    A cell that is empty in a table of pandas is NaN in its rows. No picture, sound, text or row of numbers is a single
    NaN, so this is never a value.
    """
    if value is None or type(value).__name__ in PANDAS_TYPES:
        return True
    return isinstance(value, numbers.Real) and bool(value != value)
