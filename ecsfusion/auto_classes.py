"""After `import ecsfusion`, the Auto classes and `pipeline` of transformers know a fusion model, in whichever order.

To import transformers takes seconds, which measuring information should not have to wait for. So nothing is imported
here: what transformers must know is registered when the part of it that needs it is imported, or at once where it is
already. The modules that are named below register themselves at their end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

REGISTERED_BY = {
    "transformers.models.auto.configuration_auto": "ecsfusion.model.configuration",
    "transformers.models.auto.modeling_auto": "ecsfusion.modeling",
    "transformers.models.auto.processing_auto": "ecsfusion.processing",
    "transformers.pipelines": "ecsfusion.pipeline",
}
"""Modules of transformers, and the module that registers there what we have."""


class _AfterImport(MetaPathFinder):
    """Finds modules as ever, and sees to it that ours are imported after them."""

    def __init__(self, waiting: dict[str, str]) -> None:
        self.waiting = waiting

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        ours = self.waiting.pop(fullname, None)
        # Without the entry, this search is left to the other finders.
        spec = None if ours is None else find_spec(fullname)
        if ours is None or spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_both(module: ModuleType) -> None:
            load(module)
            _import_once(ours)

        spec.loader.exec_module = load_both  # type: ignore[method-assign]
        return spec


def register_with_transformers() -> None:
    """Register, now or when it is imported."""
    waiting = {theirs: ours for theirs, ours in REGISTERED_BY.items() if theirs not in sys.modules}
    for theirs, ours in REGISTERED_BY.items():
        if theirs not in waiting:
            _import_once(ours)
    if waiting:
        sys.meta_path.insert(0, _AfterImport(waiting))


def _import_once(name: str) -> None:
    # One that is being imported just now registers itself in the end.
    if name not in sys.modules:
        import_module(name)
