"""The functions of `ops` in plain PyTorch, which the kernels are tested against and which run without a GPU.

Every file lists its public names in `__all__`.
"""

from typing import TYPE_CHECKING, Any

from ..discovery import modules_in, public_names

_public = public_names(modules_in(__name__, __path__))
globals().update(_public)
__all__ = sorted(_public)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
