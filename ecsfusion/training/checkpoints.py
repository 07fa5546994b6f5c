"""Writes, checks and finds checkpoints, so that an incomplete one is never used.

A checkpoint is written under another name, sealed by a manifest of its files, and then renamed. If the process is
killed at any moment, the folder is either complete or recognized as incomplete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils.constants import FSDP_MODEL_NAME
from safetensors import safe_open
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME

from ecsfusion.training.saving import UNFINISHED, written_whole

MANIFEST = "manifest.json"
"""The name of the file that holds the sizes and SHA-256 sums of all files of a checkpoint. It is written last."""

WRITTEN_BY_TORCH = (
    *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth"),
    # Under FSDP
    *("optimizer.bin", "pytorch_model_fsdp.bin"),
)
"""The files that the Trainer writes with `torch.save`: zip files, whose table of contents is at the end."""

LAYOUTS = {"FULL_STATE_DICT": f"{FSDP_MODEL_NAME}.bin", "SHARDED_STATE_DICT": f"{FSDP_MODEL_NAME}_0"}
"""The file or the folder of a checkpoint that FSDP writes the weights to, by its `state_dict_type`."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def check_written(folder: str | Path) -> None:
    """Check that no file that torch wrote ends too early.

    If the disk is full when `torch.save` closes a file, the last bytes are missing and there is no exception.

    Raises:
        OSError: names the first file that ends too early.
    """
    for path in (path for pattern in WRITTEN_BY_TORCH for path in sorted(Path(folder).glob(pattern))):
        if not zipfile.is_zipfile(path):
            raise OSError(errno.ENOSPC, "the disk took only a part of it", str(path))


def seal(folder: str | Path) -> None:
    """Write the manifest of a folder. From then on the folder counts as complete, also under another name."""
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
    """What is wrong with a sealed folder, as the end of a sentence; None if nothing is wrong."""
    folder = Path(folder)
    for path in folder.rglob("*"):
        if path.is_symlink():
            # A link could lead to any file, which would then be used as if the run had written it.
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
    """Read size and SHA-256 of each file.

    Raises:
        ValueError, KeyError or TypeError: the content is not what `seal` writes.
    """

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            # A damaged manifest can hold a name twice, and another file would then not be checked.
            raise ValueError("a name occurs twice")
        return dict(pairs)

    files = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=without_duplicates)["files"]
    return {
        name: {"size": int(entry["size"]), "sha256": str(entry["sha256"])} for name, entry in files.items()
    }


def replace_folder(new: str | Path, folder: str | Path) -> None:
    """Rename `new` to `folder`. The former content of `folder` is removed only when the new one is in place."""
    old = f"{folder}.old"
    if os.path.isdir(folder):
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def clear_up(folder: str | Path, names: Iterable[str]) -> None:
    """Remove or undo what a crash left unfinished in an output folder.

    Args:
        folder: the output folder.
        names: folders in it that are looked at, besides its checkpoints.
    """
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
    """Find the checkpoint to resume from.

    Args:
        wanted: the folder of a checkpoint, or True for the latest one in `output_dir`. If it is damaged, the checkpoint
            before it in the same folder is taken.
        output_dir: the output folder of the run.

    Returns:
        The folder of the checkpoint, and a sentence for each damaged checkpoint that was skipped. The folder is None if
        `wanted` is True and there is no complete checkpoint.

    Raises:
        ValueError: a folder that does not exist, or a damaged one without a complete one before it.
    """
    if isinstance(wanted, bool):
        candidates = _checkpoints(Path(output_dir))
    else:
        wanted_folder = Path(wanted)
        if not wanted_folder.is_dir():
            raise ValueError(
                f"resume_from_checkpoint is {str(wanted)!r}, but there is no such folder; give a folder "
                "checkpoint-STEP of an earlier run with the same arguments, or True for its latest."
            )
        wanted_step = _step(wanted_folder)
        earlier = [path for path in _checkpoints(wanted_folder.parent) if 0 <= _step(path) < wanted_step]
        candidates = [wanted_folder, *earlier]
    damaged: list[str] = []
    for path in candidates:
        damage = find_damage(path)
        if damage is None:
            return str(path), damaged
        damaged.append(f"The checkpoint {path} is damaged: {damage}.")
    if isinstance(wanted, bool):
        return None, damaged
    raise ValueError(f"{damaged[0]} There is no whole checkpoint before it in {Path(wanted).parent}.")


def inexact_because(
    checkpoint: str | Path,
    *,
    process: int | None,
    optimizer_names: Sequence[str],
    needs_scaler: bool,
    is_stream: bool,
    skips_rows: bool,
) -> list[str]:
    """Why a run that is resumed from a checkpoint differs from one without an interruption.

    Args:
        checkpoint: its folder.
        process: the index of this process; None if there is only one.
        optimizer_names: files or folders, of which one holds the state of the optimizer; empty if DeepSpeed saves all
            states under names of its own.
        needs_scaler: whether the run scales its loss (`fp16`).
        is_stream: whether the training rows are a stream, which has no length.
        skips_rows: whether the rows that were trained on already are skipped.

    Returns:
        Clauses, each with what is missing and what follows from it; empty where the resumed run is the same.
    """
    folder = Path(checkpoint)
    random_state = "rng_state.pth" if process is None else f"rng_state_{process}.pth"
    needed: dict[tuple[str, ...], str] = {
        (random_state,): "the state of the random numbers, so that dropout and the order of rows differ"
    }
    if optimizer_names:
        needed |= {
            tuple(optimizer_names): "the state of the optimizer, which starts anew",
            ("scheduler.pt",): "the state of the schedule of learning rates, which starts anew",
        }
    if needs_scaler:
        needed["scaler.pt",] = "the scale of the loss, which starts anew"
    lacks = [what for names, what in needed.items() if not any((folder / name).exists() for name in names)]
    clauses = [f"{folder.name} lacks {what}" for what in lacks]
    if lacks:
        clauses[-1] += " (save_only_model=False saves the whole state)"
    if not skips_rows:
        clauses.append("ignore_data_skip is True, so the rows of the epoch start again from the first")
    epoch = float(_state_of(folder).get("epoch") or 0.0)
    if is_stream and skips_rows and epoch >= 1.0:
        clauses.append(
            f"the training rows are a stream that ended and began again {int(epoch)} times before {folder.name}, and "
            "the position in a later pass cannot be found again; give a data set with a length for an exact resume"
        )
    return clauses


def _state_of(folder: Path) -> dict[str, Any]:
    file = folder / TRAINER_STATE_NAME
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def check_fits(folder: str | Path, model: nn.Module) -> None:
    """Check that the weights in a checkpoint have the names and shapes of the model's.

    The Trainer would list all weights that differ, or ignore names that it does not know.

    Raises:
        ValueError: names the modality or the fused head, and one weight that differs.
    """
    saved_shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(Path(folder).glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            saved_shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    if not saved_shapes:
        # FSDP saves weights in other formats, which are not checked.
        return
    weights = model.state_dict()
    # Of several weights that share their memory, only one is saved.
    saved = {weights[key].data_ptr() for key in saved_shapes if key in weights}
    model_shapes = {
        key: tuple(weight.shape)
        for key, weight in weights.items()
        if key in saved_shapes or weight.data_ptr() not in saved
    }
    for key in [*model_shapes, *saved_shapes]:
        if model_shapes.get(key) != saved_shapes.get(key):
            kind, _, rest = key.partition(".")
            name = rest.partition(".")[0]
            what = {
                "encoders": f"another encoder of modality {name!r}",
                "heads": f"another head of modality {name!r}",
                "fusion": "another fused head",
            }
            in_checkpoint, in_model = (
                f"of shape {shapes[key]}" if key in shapes else "missing"
                for shapes in (saved_shapes, model_shapes)
            )
            raise ValueError(
                f"the checkpoint {folder} has {what.get(kind, 'other weights')} than the model: {key} is "
                f"{in_checkpoint} there and {in_model} here. Build the model as it was for that run, or start anew in "
                "another output_dir."
            )


def check_layout(folder: str | Path, layout: str | None) -> None:
    """Check that a checkpoint was written as this run reads it: without FSDP, or under FSDP in one file or in parts.

    Args:
        folder: the checkpoint.
        layout: "FULL_STATE_DICT" or "SHARDED_STATE_DICT" of the run; None without FSDP.

    Raises:
        ValueError: it was not.
    """
    saved = next((kind for kind, name in LAYOUTS.items() if Path(folder, name).exists()), None)
    if saved != layout:
        there, here = (
            "whole weights alone, as runs without FSDP or with save_only_model write them"
            if kind is None
            else f"the state of FSDP with {kind}"
            for kind in (saved, layout)
        )
        raise ValueError(
            f"the checkpoint {folder} holds {there}, but this run reads {here}; resume as that run was started, or "
            "start anew in another output_dir."
        )


def link_folder(source: str | Path, target: str | Path) -> None:
    """Copy a folder, with hard links instead of copies of the weights if the disk allows it.

    Files of weights are never changed in place, so links are safe.

    Raises:
        ValueError: the folder holds a symbolic link, which could lead to any file on this machine.
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
                    # The target is on another disk, or the disk has no hard links: copy the file.
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
    """The checkpoint of the latest step. It was complete when it got its name."""
    return next(iter(_checkpoints(Path(folder))), None)


def _checkpoints(folder: Path) -> list[Path]:
    """Folders called checkpoint-STEP, the latest first."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.is_dir() and _step(path) >= 0]
    return sorted(checkpoints, key=_step, reverse=True)


def _step(folder: Path) -> int:
    match = _CHECKPOINT.fullmatch(folder.name)
    return int(match.group(1)) if match else -1


def _fingerprint(path: Path, sync: bool = False) -> dict[str, int | str]:
    if sync:
        # The content must be on the disk before the folder is renamed, in case of a power failure.
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}
