"""The extras of the installation, and the sentence for whoever uses something without its extra.

`pip install ecsfusion` brings what measuring information needs; everything else is an extra of `pyproject.toml`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import metadata

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
_EXTRA_OF_PART = {"data": None, "pid": None, "demo": "demo"}
"""The extra of a part of this library; "train" for others, None where it depends on the package."""
_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Where the name of a module differs from that of the package that brings it."""
_has_purpose = ContextVar("_has_purpose", default=False)
"""Whether an import is inside `extra_for`."""


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


class OutdatedExtraError(ImportError):
    """Something is used whose extra is installed in a version that is too old.

    Args:
        purpose: what needs it, such as "FusionTrainer".
        module: the module that is too old.
        extra: the extra that brings all that `purpose` needs.
        needed: the package and the versions that will do, such as "transformers>=5.18".
        installed: the version that is installed.
    """

    def __init__(self, purpose: str, module: str, extra: str, needed: str, installed: str) -> None:
        super().__init__(
            f'{purpose} needs {needed}, and {installed} is installed; run: pip install "ecsfusion[{extra}]"',
            name=module,
        )


@contextmanager
def extra_for(purpose: str, extra: str | None = None) -> Iterator[None]:
    """A context for imports, in which a package that is not installed is answered by the line that installs it.

    So is one whose version is too old, where that makes an import fail. Other errors of a package that is installed,
    and packages that no extra brings, are raised as they are.

    Args:
        purpose: what needs the package, such as "FusionTrainer" or "a sound file".
        extra: the extra that brings all that `purpose` needs; None for the one that brings the missing package.

    Raises:
        MissingExtraError: a package of an extra is not installed.
        OutdatedExtraError: an import failed, of a package whose version is too old.
    """
    token = _has_purpose.set(True)
    try:
        yield
    except (MissingExtraError, OutdatedExtraError):
        raise
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRA_OF:
            raise
        brings = extra or EXTRA_OF[module]
        # A missing submodule, such as "transformers.models", is a fault of an installed package.
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            raise MissingExtraError(purpose, module, brings) from error
        versions = _outdated(_DISTRIBUTIONS.get(module, module))
        if versions is None:
            raise
        raise OutdatedExtraError(purpose, module, brings, *versions) from error
    finally:
        _has_purpose.reset(token)


@contextmanager
def extra_for_module(name: str) -> Iterator[None]:
    """`extra_for` while a module of this library is imported, where nothing says what for.

    Args:
        name: the module's, such as "ecsfusion.trainer".
    """
    if _has_purpose.get():
        yield
        return
    extra = _EXTRA_OF_PART.get(name.split(".")[1], "train")
    with extra_for(name, extra):
        yield


def _outdated(package: str) -> tuple[str, str] | None:
    """What this library needs of a package, and the version that is installed, if that is another one."""
    try:
        # Every package of an extra but two brings it.
        from packaging.requirements import Requirement

        installed = metadata.version(package)
        wanted = [Requirement(line) for line in metadata.requires("ecsfusion") or ()]
    except ImportError:
        # Nothing is known of a checkout that is not installed.
        return None
    for each in wanted:
        if each.name.replace("_", "-") == package.replace("_", "-") and installed not in each.specifier:
            return f"{each.name}{each.specifier}", installed
    return None
