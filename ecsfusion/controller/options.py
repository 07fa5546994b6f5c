"""Checks the options of a class that is chosen by name, before an instance is made."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def check_options(kind: type, options: Mapping[str, Any], what: str, argument: str) -> None:
    """Check that a class takes these options and that none is missing.

    Args:
        kind: the class. Its first parameter is the names of the modalities; all others are options.
        options: the options that the user gave.
        what: how the message names the class, such as "the rule 'fixed'".
        argument: the argument that holds the options, for the message.

    Raises:
        ValueError: names an option that the class does not take, or one that it needs and that is missing.
    """
    parameters = inspect.signature(kind).parameters
    allowed = [key for key, p in parameters.items() if key != "modalities" and p.kind is not p.VAR_KEYWORD]
    unknown = [key for key in options if key not in allowed]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise ValueError(f"unknown option {unknown[0]!r} of {what}; allowed are {allowed}.")
    missing = [
        key for key in allowed if parameters[key].default is inspect.Parameter.empty and key not in options
    ]
    if missing:
        raise ValueError(f"{what} needs the option {missing[0]!r}; give {argument}={{{missing[0]!r}: ...}}.")
