"""What a measurement ran on: versions, processor, device; one dictionary, written beside every result."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def environment(*packages: str) -> dict[str, Any]:
    """Versions of Python, torch, numpy and `packages`, this tree's commit, the processor, its threads and the GPU."""
    versions = {"python": platform.python_version()}
    for package in ("ecsfusion", "torch", "numpy", *packages):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "versions": versions,
        "commit": COMMIT,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Short hash of the commit that is checked out, with "+" if files differ from it; None outside a repository."""
    try:
        asked = ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
        return subprocess.run(
            asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


COMMIT = _commit()
"""That of the code that runs: files may be changed, and committed, while it does."""
