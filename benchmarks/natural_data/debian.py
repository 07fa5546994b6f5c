"""Data that ship inside a Debian package: the file is checked by its sha256 and unpacked, nothing of it is run."""

import hashlib
import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

AR_START, AR_HEADER = b"!<arch>\n", 60


@dataclass(frozen=True)
class DebianPackage:
    """A package file, by its version and checksum.

    Args:
        name: of the package.
        version: which is pinned.
        sha256: of the file.
        content: the folder inside the package that is read.
    """

    name: str
    version: str
    sha256: str
    content: str

    @property
    def command(self) -> str:
        """What fetches the file on Debian, into the working folder."""
        return f"apt-get download {self.name}={self.version}"

    def find(self, folder: Path) -> Path:
        """The package file in a folder, whole and as it is pinned.

        Raises:
            ValueError: it is absent, or another file than the one that is pinned.
        """
        # apt writes the colon of a version as %3a.
        files = sorted(folder.glob(f"{self.name}_*.deb"))
        if not files:
            raise ValueError(
                f"{folder} has no file {self.name}_*.deb; fetch it there with {self.command!r}, or from any mirror of "
                "Debian"
            )
        found = {file: _sha256(file) for file in files}
        for file, sha256 in found.items():
            if sha256 == self.sha256:
                return file
        raise ValueError(
            f"{files[0]} has the sha256 {found[files[0]]}, and {self.sha256} of version {self.version} is pinned; "
            f"fetch it again with {self.command!r}"
        )

    def unpack(self, file: Path, folder: Path) -> Path:
        """Write the files of the package below a folder.

        Returns:
            The folder `content` of the package.

        Raises:
            ValueError: the file is no Debian package, or lacks the folder.
        """
        try:
            with _data_archive(file) as archive:
                # Neither links nor names lead out of the folder, and no owner, device or permission is taken over.
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise ValueError(f"{file} is no Debian package of files ({error}); fetch it again") from error
        content = folder / self.content
        if not content.is_dir():
            raise ValueError(
                f"{file} has no folder {self.content}; take version {self.version} of {self.name}"
            )
        return content


@contextmanager
def unpacked(packages: Sequence[DebianPackage], folder: Path) -> Iterator[list[Path]]:
    """The content folders of packages, as long as they are needed.

    Args:
        packages: in the order of the result.
        folder: where the package files are; or, of a copy that is unpacked already (`dpkg -x`), the folder with `usr`.

    Raises:
        ValueError: a package is absent, or another one than is pinned.
    """
    if all((folder / package.content).is_dir() for package in packages):
        yield [folder / package.content for package in packages]
        return
    files = [package.find(folder) for package in packages]
    temporary = Path(tempfile.mkdtemp(prefix="natural-data-"))
    try:
        yield [
            package.unpack(file, temporary / package.name)
            for package, file in zip(packages, files, strict=True)
        ]
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _data_archive(file: Path) -> Iterator[tarfile.TarFile]:
    """The archive of files of a package, which is an `ar` archive with a member `data.tar.*`."""
    with file.open("rb") as stream:
        if stream.read(len(AR_START)) != AR_START:
            raise ValueError(f"{file} is no Debian package; fetch it again")
        while header := stream.read(AR_HEADER):
            name, size = header[:16].decode("latin1").strip(" /"), int(header[48:58] or b"0")
            if name.startswith("data.tar"):
                with tarfile.open(fileobj=_Member(stream, size), mode="r|*") as archive:
                    yield archive
                return
            # Members start at even positions.
            stream.seek(size + size % 2, 1)
    raise ValueError(f"{file} has no archive of files; fetch it again")


class _Member:
    """The bytes of one member, as a file that ends where the member ends."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self.stream, self.left = stream, size

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(data)
        return data


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
