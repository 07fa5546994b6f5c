"""The kernels: one file per group of operations, found by its place in this folder.

A file has three parts: the kernels, the launcher, the registration as a custom op. It lists its public functions in
`__all__`, and `variants()` returns every compilation that its launcher can ask for.
"""

from types import ModuleType

from ..discovery import modules_in


def modules() -> list[ModuleType]:
    """The kernel files, imported, in alphabetical order."""
    return modules_in(__name__, __path__)
