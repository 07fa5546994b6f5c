"""GPU kernels of the estimator of partial information, with plain PyTorch references.

The public functions are found, not listed: the kernels in `ops` and their references in `reference` name theirs in
`__all__`. Here a function of `ops` takes the place of the reference of the same name.
"""

from typing import TYPE_CHECKING, Any

# The references come first: the kernels import them.
from . import reference
from .discovery import public_names
from .ops import modules

_public = {name: getattr(reference, name) for name in reference.__all__} | public_names(modules())
globals().update(_public)
__all__ = sorted(_public)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
