"""Folders that are whole, or known not to be: how checkpoints are written, checked, and found again.

A checkpoint is written under another name, sealed by a manifest of its files, and renamed. A kill at any moment leaves
either the whole folder or one that nothing takes for whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from ecsfusion.training.saving import UNFINISHED, written_whole

MANIFEST = "manifest.json"
"""Sizes and SHA-256 of all files of a checkpoint, written last."""

WRITTEN_BY_TORCH = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth")
"""What the Trainer writes by `torch.save`, as zip files, whose table of contents is at the end."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def check_written(folder: str | Path) -> None:
    """Raises OSError for a file of torch that ends too early.

    When the last bytes find no room, `torch.save` says nothing: it writes them as it lets go of the file.
    """
    for path in (path for pattern in WRITTEN_BY_TORCH for path in sorted(Path(folder).glob(pattern))):
        if not zipfile.is_zipfile(path):
            raise OSError(errno.ENOSPC, "the disk took only a part of it", str(path))


def seal(folder: str | Path) -> None:
    """Write the manifest of a folder; from now on it counts as whole, under whatever name."""
    folder = Path(folder)
    files = {
        path.relative_to(folder).as_posix(): _fingerprint(path, sync=True)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    with written_whole(folder / MANIFEST) as aside, open(aside, "w", encoding="utf-8") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def find_damage(folder: str | Path) -> str | None:
    """What is wrong with a sealed folder, as the end of a sentence; None when nothing is."""
    folder = Path(folder)
    for path in folder.rglob("*"):
        if path.is_symlink():
            # It may lead anywhere, and what it leads to would be taken for the run's own.
            name = path.relative_to(folder).as_posix()
            return f"{name} is a link, which no checkpoint holds; put the file itself there"
    try:
        files = _read_manifest(folder / MANIFEST)
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not written to its end"
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name}, which its {MANIFEST} names, is missing"
        size = path.stat().st_size
        if size != expected["size"]:
            return f"{name} has {size:,} bytes instead of {expected['size']:,}"
        if _fingerprint(path) != expected:
            return f"the content of {name} is not what was written"
    return None


def _read_manifest(path: Path) -> dict[str, dict[str, int | str]]:
    """Size and SHA-256 by file. Raises ValueError, KeyError or TypeError for what `seal` has not written."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            # A flipped bit made one name another's, which would hide a file.
            raise ValueError("a name twice")
        return dict(pairs)

    files = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)["files"]
    return {name: {"size": int(each["size"]), "sha256": str(each["sha256"])} for name, each in files.items()}


def replace_folder(new: str | Path, folder: str | Path) -> None:
    """Rename `new` to `folder`, whose former content stays until the new one is in place."""
    old = f"{folder}.old"
    if os.path.isdir(folder):
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def clear_up(folder: str | Path, names: Iterable[str]) -> None:
    """Undo what a crash left half done in an output folder: among its checkpoints, and these folders."""
    folder = Path(folder)
    if not folder.is_dir():
        return
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    checkpoints = [path.stem for path in folder.glob("checkpoint-*.old")]
    for name in (*names, *filter(_CHECKPOINT.fullmatch, checkpoints)):
        shutil.rmtree(folder / f"{name}.writing", ignore_errors=True)
        old = folder / f"{name}.old"
        if old.is_dir() and not (folder / name).is_dir():
            old.rename(folder / name)
        shutil.rmtree(old, ignore_errors=True)


def whole_checkpoint(wanted: str | bool, output_dir: str | Path) -> tuple[str | None, list[str]]:
    """The checkpoint to resume from, and a sentence for each damaged one that was passed over.

    Args:
        wanted: a checkpoint's folder, or True for the latest in `output_dir`. Where it is damaged, the one before it
            in the same folder is taken.
        output_dir: of the run.

    Returns:
        None for the folder when `wanted` is True and there is no whole checkpoint.

    Raises:
        ValueError: a folder that does not exist, or a damaged one without a whole one before it.
    """
    if isinstance(wanted, bool):
        candidates = _checkpoints(Path(output_dir))
    else:
        given = Path(wanted)
        if not given.is_dir():
            raise ValueError(
                f"resume_from_checkpoint is {str(wanted)!r}, but there is no such folder; give a folder "
                "checkpoint-STEP of an earlier run with the same arguments, or True for its latest."
            )
        earlier = [path for path in _checkpoints(given.parent) if 0 <= _step(path) < _step(given)]
        candidates = [given, *earlier]
    passed: list[str] = []
    for path in candidates:
        damage = find_damage(path)
        if damage is None:
            return str(path), passed
        passed.append(f"The checkpoint {path} is damaged: {damage}.")
    if isinstance(wanted, bool):
        return None, passed
    raise ValueError(f"{passed[0]} There is no whole checkpoint before it in {Path(wanted).parent}.")


def check_fits(folder: str | Path, model: nn.Module) -> None:
    """Refuse weights of another model: the Trainer lists all that differ, or ignores names that it does not know.

    Raises:
        ValueError: it names the modality, or the fused head, and one of its weights.
    """
    there: dict[str, tuple[int, ...]] = {}
    for path in sorted(Path(folder).glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            there |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    if not there:
        # FSDP has formats of its own.
        return
    weights = model.state_dict()
    saved = {weights[key].data_ptr() for key in there if key in weights}
    # Of weights that share their memory, one is saved.
    here = {key: tuple(w.shape) for key, w in weights.items() if key in there or w.data_ptr() not in saved}
    for key in [*here, *there]:
        if here.get(key) != there.get(key):
            kind, _, rest = key.partition(".")
            name = rest.partition(".")[0]
            what = {
                "encoders": f"another encoder of modality {name!r}",
                "heads": f"another head of modality {name!r}",
                "fusion": "another fused head",
            }
            found = [f"of shape {shapes[key]}" if key in shapes else "missing" for shapes in (there, here)]
            raise ValueError(
                f"the checkpoint {folder} has {what.get(kind, 'other weights')} than the model: {key} is {found[0]} "
                f"there and {found[1]} here. Build the model as it was for that run, or start anew in another "
                "output_dir."
            )


def link_folder(source: str | Path, target: str | Path) -> None:
    """Copy a folder; weights, which nobody changes in place, are hard links where the disk allows it.

    Raises:
        ValueError: a symbolic link in it, which could lead to anything on this machine.
    """
    for path in sorted(Path(source).rglob("*")):
        if path.is_symlink():
            raise ValueError(f"{path} is a link, which is not followed; put the file itself there.")
        if path.is_file():
            copy = Path(target) / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                try:
                    os.link(path, copy)
                    continue
                except OSError:
                    # Another disk, or one without links.
                    pass
            shutil.copyfile(path, copy)


def same_weights(one: str | Path, other: str | Path) -> bool:
    """Whether two folders hold the same weights."""
    names = [{path.name for path in Path(folder).glob("*.safetensors")} for folder in (one, other)]
    if names[0] != names[1] or not names[0]:
        return False
    pairs = [(Path(one) / name, Path(other) / name) for name in names[0]]
    return all(os.path.samefile(a, b) or _fingerprint(a) == _fingerprint(b) for a, b in pairs)


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of the latest step, which has its name because it was whole when it was written."""
    return next(iter(_checkpoints(Path(folder))), None)


def _checkpoints(folder: Path) -> list[Path]:
    """Folders called checkpoint-STEP, the latest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and _step(path) >= 0]
    return sorted(found, key=_step, reverse=True)


def _step(folder: Path) -> int:
    match = _CHECKPOINT.fullmatch(folder.name)
    return int(match.group(1)) if match else -1


def _fingerprint(path: Path, sync: bool = False) -> dict[str, int | str]:
    if sync:
        # So that a power failure after the rename finds the content on the disk.
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}
