"""Files that appear whole or not at all, that are read at once or not at all, and a folder of those made again."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kaem.errors import RequestError

FOLDER_VARIABLE = "KAEM_CACHE_DIR"


def cache_folder() -> Path:
    """Return $KAEM_CACHE_DIR, or `kaem` in the user's cache folder."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kaem"


def read_regular(path: Path, *, most_bytes: int | None = None) -> bytes:
    """Return the bytes of a regular file; nothing else is waited for, as a named pipe or a terminal would be.

    Args:
        path: The file.
        most_bytes: Largest size of the file, in bytes; None for any size.

    Raises:
        OSError: It is missing, cannot be read, is no regular file, or is larger; `strerror` says which.
        ValueError: No file can have such a name.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer opens at once
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if most_bytes is not None and found.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"it has {found.st_size} bytes; at most {most_bytes} are possible", str(path))
        return file.read()


def require_place(path: Path, *, source: Path | None = None) -> None:
    """Refuse a path where no file can go.

    Args:
        path: Path of a file to be written.
        source: What it is made from, which it must not replace.

    Raises:
        RequestError: The folder does not exist, `path` is a folder, or it is the source.
    """
    if not path.parent.is_dir():
        raise RequestError(f"no folder {path.parent} to write {path.name} into", hint="create it first")
    if path.is_dir():
        raise RequestError(f"{path} is a folder", hint="give a file name")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise RequestError(f"{path} would replace what it is made from", hint="give another file name")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give an empty file beside `path`; rename it there when the block succeeds, remove it when it does not.

    The name keeps its suffix, so that libraries which look at it behave the same.

    Raises:
        RequestError: The folder does not exist, `path` is a folder, or writing fails.
    """
    require_place(path)
    # Named before it exists: a signal at any moment then finds a name to remove.
    draft = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        draft.touch(exist_ok=False)
        yield draft
        with draft.open("rb") as written:
            os.fsync(written.fileno())  # on disk before the name says so, even through a power cut
        draft.replace(path)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        draft.unlink(missing_ok=True)
