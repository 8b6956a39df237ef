"""Folders of PNG and JPEG files, read recursively in sorted order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kaem.errors import DataError
from kaem_train.data.encoded import is_image_name, require_images


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """The image files below one folder.

    Attributes:
        path: The folder.
        names: Relative paths of its images, sorted.
    """

    path: Path
    names: tuple[str, ...]

    @property
    def origin(self) -> str:
        """The folder's path."""
        return str(self.path)

    def digest(self) -> str:
        """Return the SHA-256 of all names and contents."""
        digest = hashlib.sha256()
        for name, content in self.read():
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and content in sorted order."""
        for name in self.names:
            try:
                yield name, (self.path / name).read_bytes()
            except OSError as error:
                raise _unreadable(self.path / name, error) from None


def open_folder(path: Path) -> ImageFolder:
    """Find the images below `path`; links are followed.

    Raises:
        DataError: There are none, something cannot be read, or a link leads back to a folder above it.
    """
    names = tuple(sorted(_names(path, "", ())))
    require_images(names, str(path))
    return ImageFolder(path, names)


def _names(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        status = folder.stat()
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from None
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise DataError(f"{folder} is a link that leads back to a folder above it", hint="remove the link")
    for entry in entries:
        if not entry.name.startswith(".") and Path(entry.path).is_dir():
            yield from _names(folder / entry.name, f"{prefix}{entry.name}/", (*above, here))
        elif is_image_name(prefix + entry.name):
            yield prefix + entry.name


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot read {path}: {error.strerror or error}", hint="repair it, or remove it")
