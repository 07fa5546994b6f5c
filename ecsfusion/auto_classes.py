"""After `import ecsfusion`, the Auto classes and `pipeline` of transformers know a fusion model, in whichever order.

To import transformers takes seconds, which measuring information should not have to wait for. So nothing is imported
here: what transformers must know is registered when the part of it that needs it is imported, or at once where it is
already. The modules that are named below register themselves at their end. While a module of this library is imported
that waits for its end: the one to register may need it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from threading import local
from types import ModuleType

from ecsfusion.extras import MissingExtraError, OutdatedExtraError, extra_for, extra_for_module

REGISTERED_BY = {
    "transformers.models.auto.configuration_auto": "ecsfusion.model.configuration",
    "transformers.models.auto.modeling_auto": "ecsfusion.modeling",
    "transformers.models.auto.processing_auto": "ecsfusion.processing",
    "transformers.pipelines": "ecsfusion.pipeline",
}
"""Modules of transformers, and the module that registers there what we have."""


class _Importing(local):
    """What one thread imports.

    Attributes:
        depth: how many modules of this library, each because of the one before.
        postponed: what is to be imported after the outermost of them.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.postponed: list[str] = []


class _AfterImport(MetaPathFinder):
    """Finds modules as ever, and sees to it that ours are imported after them.

    Of modules of this library it also sees to the sentence for whoever lacks an extra.
    """

    def __init__(self, waiting: dict[str, str]) -> None:
        self.waiting = waiting
        self.importing = _Importing()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.startswith("ecsfusion."):
            return self._find_own(fullname, path, target)
        ours = self.waiting.pop(fullname, None)
        # Without the entry, this search is left to the other finders.
        spec = None if ours is None else find_spec(fullname)
        if ours is None or spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_both(module: ModuleType) -> None:
            load(module)
            if self.importing.depth:
                self.importing.postponed.append(ours)
            else:
                _import_once(ours)

        spec.loader.exec_module = load_both  # type: ignore[method-assign]
        return spec

    def _find_own(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        """Find a module of this library."""
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_explained(module: ModuleType) -> None:
            self.importing.depth += 1
            try:
                with extra_for_module(fullname):
                    load(module)
            finally:
                self.importing.depth -= 1
            while self.importing.postponed and not self.importing.depth:
                _import_once(self.importing.postponed.pop())

        spec.loader.exec_module = load_explained  # type: ignore[method-assign]
        return spec


def register_with_transformers() -> None:
    """Register, now or when it is imported."""
    waiting = {theirs: ours for theirs, ours in REGISTERED_BY.items() if theirs not in sys.modules}
    for theirs, ours in REGISTERED_BY.items():
        if theirs not in waiting:
            _import_once(ours)
    sys.meta_path.insert(0, _AfterImport(waiting))


def _import_once(name: str) -> None:
    # One that is being imported just now registers itself in the end.
    if name in sys.modules:
        return
    # Whoever only measures may have another transformers than models need, and must be able to use it.
    with suppress(MissingExtraError, OutdatedExtraError), extra_for(name, "train"):
        import_module(name)
