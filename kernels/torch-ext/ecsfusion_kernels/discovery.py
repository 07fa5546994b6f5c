"""Modules of a package, found by their place in its folder."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any


def modules_in(package: str, folders: Iterable[str]) -> list[ModuleType]:
    """Import the modules of a package, in alphabetical order.

    Args:
        package: its full name, `__name__`.
        folders: its `__path__`.
    """
    return [import_module(f"{package}.{module.name}") for module in iter_modules(folders)]


def public_names(modules: Iterable[ModuleType]) -> dict[str, Any]:
    """What the modules list in `__all__`, by name."""
    return {name: getattr(module, name) for module in modules for name in module.__all__}
