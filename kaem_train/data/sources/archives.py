"""Images inside tar and zip archives: members are read in place, nothing is ever extracted to disk."""

from __future__ import annotations

import hashlib
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kaem.errors import DataError
from kaem_train.data.sources.encoded import count_left_out, is_image_name, require_images

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
ZIP_SUFFIXES = (".zip",)
_MOST_BYTES = 2**28
# NotImplementedError: zipfile, of a version or compression that no tool writes.
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class ImageArchive:
    """The image files in one archive.

    Attributes:
        path: The archive.
        names: Names of its image members, sorted.
        left_out: Number of other files, by suffix.
    """

    path: Path
    names: tuple[str, ...]
    left_out: Mapping[str, int]

    @property
    def origin(self) -> str:
        """The archive's path."""
        return str(self.path)

    def digest(self) -> str:
        """Return the SHA-256 of the whole file."""
        with _report_damage(self.path), self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Yield member name and content in the archive's own order: a compressed tar cannot be read in another."""
        with _report_damage(self.path):
            members = _read_zip if _is_zip(self.path) else _read_tar
            yield from ((name, content) for name, content in members(self.path, is_read=True) if is_image_name(name))


def is_archive(path: Path) -> bool:
    """Return whether the name is that of a tar or zip archive."""
    return path.name.lower().endswith((*TAR_SUFFIXES, *ZIP_SUFFIXES))


def open_archive(path: Path) -> ImageArchive:
    """List the images of an archive.

    Raises:
        DataError: The archive is damaged or encrypted, holds no images, or a member is a link, repeats a name,
            or points outside the archive.
    """
    with _report_damage(path):
        members = _read_zip if _is_zip(path) else _read_tar
        files = [name for name, _ in members(path, is_read=False)]
    names, left_out = list(filter(is_image_name, files)), count_left_out(files)
    name, count = next(iter(Counter(str(PurePosixPath(name)) for name in names).most_common(1)), ("", 0))
    if count > 1:
        raise DataError(f"{path} holds {name} {count} times", hint="pack the archive again, each image once")
    require_images(names, str(path), left_out)
    return ImageArchive(path, tuple(sorted(names)), left_out)


def _is_zip(path: Path) -> bool:
    return path.name.lower().endswith(ZIP_SUFFIXES)


@contextmanager
def _report_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        # tarfile lists on further lines what every decompressor said.
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise DataError(f"cannot read {path}: {reason}", hint="the archive is damaged: get it again") from None


def _read_tar(path: Path, *, is_read: bool) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            if member.isdir():
                continue
            if not is_image_name(member.name):
                yield member.name, b""
                continue
            _check_member(path, member.name, member.size, is_regular=member.isreg())
            file = archive.extractfile(member) if is_read else None
            yield member.name, file.read() if file else b""
        # tarfile takes a cut or overwritten header for the end; the true end is a block of zeros.
        if archive.fileobj is not None:
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it ends before its end mark")


def _read_zip(path: Path, *, is_read: bool) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.replace("\\", "/")  # of tools that write them as Windows does
            if member.is_dir() or name.endswith("/"):
                continue
            if not is_image_name(name):
                yield name, b""
                continue
            kind = stat.S_IFMT(member.external_attr >> 16)
            _check_member(path, name, member.file_size, is_regular=kind in (0, stat.S_IFREG))
            if member.flag_bits & 0x1:
                raise DataError(f"{member.filename} in {path} is encrypted", hint="pack the archive again without")
            yield name, archive.read(member) if is_read else b""


def _check_member(path: Path, name: str, size: int, *, is_regular: bool) -> None:
    hint = "pack the archive again from plain files"
    if not is_regular:
        raise DataError(f"{name} in {path} is a link or device, not a file", hint=hint)
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise DataError(f"{name} in {path} points outside the archive", hint=hint)
    if size > _MOST_BYTES:
        raise DataError(f"{name} in {path} has {size} bytes, too many for one image", hint="remove it")
