"""Folders of image files, read recursively in sorted order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kaem.errors import DataError
from kaem.files import read_regular
from kaem_train.data.sources.encoded import count_left_out, digest_files, is_hidden_name, is_image_name, require_images


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """The image files below one folder.

    Attributes:
        path: The folder.
        names: Relative paths of its images, sorted.
        left_out: Number of other files, by suffix.
    """

    path: Path
    names: tuple[str, ...]
    left_out: Mapping[str, int]

    @property
    def origin(self) -> str:
        """The folder's path."""
        return str(self.path)

    def digest(self) -> str:
        """Return the SHA-256 of all names and contents."""
        return digest_files(self.read())

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and content in sorted order."""
        for name in self.names:
            try:
                yield name, read_regular(self.path / name)
            except OSError as error:
                raise _make_error(self.path / name, error) from None


def open_folder(path: Path) -> ImageFolder:
    """Find the images below `path`; links are followed.

    Raises:
        DataError: There are none, something cannot be read, or a link leads back to a folder above it.
    """
    files = list(_list_names(path, "", ()))
    names, left_out = tuple(sorted(filter(is_image_name, files))), count_left_out(files)
    require_images(names, str(path), left_out)
    return ImageFolder(path, names, left_out)


def _list_names(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        status = folder.stat()
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise _make_error(folder, error) from None
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise DataError(f"{folder} is a link that leads back to a folder above it", hint="remove the link")
    for entry in entries:
        if is_hidden_name(entry.name):
            continue
        if Path(entry.path).is_dir():
            yield from _list_names(folder / entry.name, f"{prefix}{entry.name}/", (*above, here))
        else:
            yield prefix + entry.name


def _make_error(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot read {path}: {error.strerror or error}", hint="repair it, or remove it")
