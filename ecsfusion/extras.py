"""The extras of the installation, and the sentence for whoever uses something without its extra.

`pip install ecsfusion` brings what measuring information needs; everything else is an extra of `pyproject.toml`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

EXTRA_OF = {
    "PIL": "train",
    "accelerate": "train",
    "datasets": "data",
    "evaluate": "train",
    "gradio": "demo",
    "huggingface_hub": "train",
    "hf_recipes": "recipes",
    "jinja2": "train",
    "matplotlib": "plots",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "pyarrow": "data",
    "sklearn": "recipes",
    "soundfile": "audio",
    "transformers": "train",
    "yaml": "recipes",
}
"""The extra that brings a module, by the module's name."""


class MissingExtraError(ModuleNotFoundError):
    """Something is used whose extra is not installed.

    Args:
        purpose: what needs it, such as "FusionTrainer" or "a sound file".
        module: the module that is missing.
        extra: the extra that brings all that `purpose` needs.
    """

    def __init__(self, purpose: str, module: str, extra: str) -> None:
        super().__init__(
            f'{purpose} needs {module}, which is not installed; run: pip install "ecsfusion[{extra}]"',
            name=module,
        )


@contextmanager
def extra_for(purpose: str, extra: str | None = None) -> Iterator[None]:
    """A context for imports, in which a package that is not installed is answered by the line that installs it.

    Errors of a package that is installed, and packages that no extra brings, are raised as they are.

    Args:
        purpose: what needs the package, such as "FusionTrainer" or "a sound file".
        extra: the extra that brings all that `purpose` needs; None for the one that brings the missing package.

    Raises:
        MissingExtraError: a package of an extra is not installed.
    """
    try:
        yield
    except MissingExtraError:
        raise
    except ModuleNotFoundError as error:
        # A missing submodule, such as "transformers.models", is a fault of an installed package.
        if error.name not in EXTRA_OF:
            raise
        raise MissingExtraError(purpose, error.name, extra or EXTRA_OF[error.name]) from error
